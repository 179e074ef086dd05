"""Share one search among processes that Ray places.

"auto" finds a cluster that runs; "local" starts one on this machine. Each worker loads the task
itself, so that the task is given by its file. On several machines the run folder needs the same
path everywhere.

pip install 'autocompress[ray]'
python examples/ray_workers.py --workers 8 --ray auto --out /shared/reports/digits
"""

import argparse
from pathlib import Path

import autocompress as ac

TASK = Path(__file__).with_name("image_classifier.py")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", default="local")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--space", default="cnn")  # a shipped space, or a file
    parser.add_argument("--out", default="reports/shared")
    options = parser.parse_args()
    result = ac.search(
        f"{TASK}:task",
        options.space,
        n_trials=options.trials,
        workers=options.workers,
        ray=options.ray if options.workers > 1 else None,
        out=options.out,
    )
    print(f"{len(result.front)} points in {options.out}")
