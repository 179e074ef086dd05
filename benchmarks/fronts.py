"""Compute the hypervolume of the fronts of run folders, each relative to its own baseline.

`python -m benchmarks.fronts reports/a reports/b`.

It is the share of the box (baseline's size, baseline's latency, --drop of accuracy lost) that a
front dominates, from the measured files; once with the accuracy of the validation split and once
with that of the test split.
"""

from __future__ import annotations

from pathlib import Path

from autocompress import Measurement, read_front
from autocompress.results.pareto import hypervolume
from benchmarks.output import parser_of, write_figures


def share(folder: Path, drop: float, split: str) -> float:
    """Return the dominated share of the box, with the accuracy of a split.

    Args:
        folder: of a run.
        drop: loss of a metric up to 1, or share of another one, at the edge of the box.
        split: "validation" or "test".
    """
    front = read_front(folder)
    base = front.baseline

    def accuracy(m: Measurement) -> float:
        value = m.accuracy if split == "validation" else m.test_accuracy
        return float("nan") if value is None else value

    rows = [
        (
            p.measured.size_bytes / base.size_bytes,
            p.measured.latency_ms / base.latency_ms,
            max(accuracy(base) - accuracy(p.measured), 0.0) / (drop * base.accuracy_scale),
        )
        for p in (*front.points, *front.dominated)
    ]
    return hypervolume(rows, (1.0, 1.0, 1.0))


def main() -> None:
    """Print a line for each folder."""
    parser = parser_of(__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--drop", type=float, default=0.05)
    arguments = parser.parse_args()
    figures = {}
    for folder in arguments.folders:
        shares = {split: share(folder, arguments.drop, split) for split in ("validation", "test")}
        base = read_front(folder).baseline
        smallest = read_front(folder).smallest(max_accuracy_drop=0.01 * base.accuracy_scale)
        print(
            f"{folder}: hypervolume {shares['validation']:.4f} (validation), {shares['test']:.4f} "
            f"(test); within {0.01 * base.accuracy_scale:.2g} smallest "
            f"{base.size_bytes / smallest.measured.size_bytes:.1f}x, "
            f"{base.latency_ms / smallest.measured.latency_ms:.2f}x"
        )
        figures |= {f"{folder.name}_{split}": value for split, value in shares.items()}
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
