"""Run the command line with slow trials: python slow_worker.py SECONDS WORKERS LEASE_S COMMAND...

A trial takes a moment, so that one of them is in flight when a worker is killed. From the fifth
trial on, trials wait until `WORKERS` workers have taken one, however long these take to start. All
workers of a study need the same lease: one that counts slower looks dead.
"""

import sys
import time

from autocompress.cli.main import main
from autocompress.search.evaluate.judge import Judge
from autocompress.search.workers import lease

lease.LEASE_S = float(sys.argv[3])
judge, workers = Judge.judge, int(sys.argv[2])


def takers(study):
    """Return the names of the workers that have taken a trial."""
    return {t.user_attrs.get("worker") for t in study.get_trials(deepcopy=False)} - {None}


def slowly(self, study, number, candidate):
    time.sleep(float(sys.argv[1]))
    while number >= 4 and len(takers(study)) < workers:
        time.sleep(0.1)
    return judge(self, study, number, candidate)


Judge.judge = slowly
main(sys.argv[4:])
