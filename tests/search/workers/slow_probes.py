"""Run the command line with slow measurements: python slow_probes.py SECONDS OTHERS LEASE_S ...

The remaining arguments are the command. Each measurement of a single change takes SECONDS more. The
first one of this process waits until other workers have told OTHERS of them. All workers of a study
need the same lease.
"""

import sys
import time

from autocompress.cli.main import main
from autocompress.search.propose.estimate.probe_board import ProbeBoard
from autocompress.search.workers import lease

lease.LEASE_S = float(sys.argv[3])
measure, others = ProbeBoard._measure, int(sys.argv[2])


def told(board):
    """Return the number of measurements that other workers have told."""
    entries = board._places().values()
    return sum("effect" in entry and entry["worker"] != board.worker for entry in entries)


def slowly(self, place, effect_of):
    def slow(*probe):
        time.sleep(float(sys.argv[1]))
        while told(self) < others:
            time.sleep(0.1)
        return effect_of(*probe)

    return measure(self, place, slow)


ProbeBoard._measure = slowly
main(sys.argv[4:])
