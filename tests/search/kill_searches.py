"""Kill a search in each phase: python kill_searches.py TASK FOLDER SPACE PHASES.

The searches are children of one process that has loaded everything already.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import autocompress as ac
from autocompress.search import opening
from autocompress.search.problem import progress

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import fewer_measurements

for module, name, value in fewer_measurements():
    setattr(module, name, value)
opening.torch.set_num_threads(1)
opening.torch.set_num_threads = lambda count: None
spec, folder = sys.argv[1:3]
space, kills = json.loads(sys.argv[3]), json.loads(sys.argv[4])
task = ac.load_task(spec)
random.seed(0)
for i, phase in enumerate(kills):
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:

        def phases(self, what, share, pipe=writes, original=progress.SearchProgress.phase):
            os.write(pipe, (what + "\n").encode())
            return original(self, what, share)

        def trials(self, *arguments, pipe=writes, original=progress.SearchProgress.trials):
            os.write(pipe, b"searching\n")
            return original(self, *arguments)

        progress.SearchProgress.phase, progress.SearchProgress.trials = phases, trials
        try:
            ac.search(task, space, n_trials=2 * (i + 1), out=folder, quiet=True, finalize_steps=6)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as lines:
        for line in lines:
            if line.strip() == phase:
                break
        time.sleep(random.random() * 0.25)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed, code = os.WIFSIGNALED(status), os.waitstatus_to_exitcode(status)
    print(json.dumps({"phase": phase, "killed": killed, "code": code}), flush=True)
    sys.stdin.readline()
