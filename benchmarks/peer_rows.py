"""Hold the files of `benchmarks.peers` as rows; compare them and print them as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

EQUAL = 0.002  # an accuracy that is lower by at most this share of the float model's is equal
FLOAT, OURS = "float", "ours"
MISSING = "not installed"  # a reason that is no failure of the tool


@dataclass
class Row:
    """Hold one file, or why there is none.

    Attributes:
        method: what made it.
        path: of the file.
        minutes: that it took to make.
        reason: why it was not written, or does not load or run; "" if it runs.
        test: metric on the test samples; higher is better.
        time: latency as a share of the float file's.
        interval: 95 % interval of `time`.
        version: package and version of the library.
    """

    method: str
    path: Path
    minutes: float = 0.0
    reason: str = ""
    test: float = float("nan")
    time: float = float("nan")
    interval: tuple[float, float] = (float("nan"), float("nan"))
    version: str = ""

    @property
    def size(self) -> int:
        """Return its bytes, with those of the weights that lie beside it."""
        beside = self.path.with_name(self.path.name + ".data")
        return self.path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def dominates(a: Row, b: Row) -> bool:
    """Return True if a file is nowhere worse than another, and somewhere better."""
    first, second = (np.array((row.size, row.time, -row.test)) for row in (a, b))
    return bool((first <= second).all() and (first < second).any())


def against(peer: Row, ours: Sequence[Row], scale: float) -> tuple[float, float]:
    """Return how many times smaller and faster our files of at least equal accuracy are; or 0."""
    equal = [row for row in ours if row.test >= peer.test - EQUAL * scale]
    if not equal:
        return 0.0, 0.0
    return peer.size / min(r.size for r in equal), peer.time / min(r.time for r in equal)


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return all that the table of a model shows, for a file of JSON; the float file is first."""
    base = rows[0]
    ours = [row for row in rows if row.method.startswith(OURS) and not row.reason]
    records: list[dict[str, Any]] = []
    for row in rows:
        record = {"method": row.method, "minutes": round(row.minutes, 2), "version": row.version}
        records.append(record)
        if row.reason:
            record["reason"] = row.reason
            continue
        record |= {"bytes": row.size, "smaller": base.size / row.size, "faster": 1 / row.time}
        record |= {"faster_interval": [1 / end for end in reversed(row.interval)]}
        record |= {"test": row.test}
        if row is not base and row not in ours and ours:
            smaller, faster = against(row, ours, abs(base.test))
            record |= {"ours_smaller": smaller, "ours_faster": faster}
            record |= {"dominated": any(dominates(our, row) for our in ours)}
    return records


def print_table(name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of a model."""
    print(f"\n{name}\n{'file':30}{'bytes':>12}{'smaller':>9}{'faster':>9}{'test':>10}{'min':>7}")
    for row in records:
        if "reason" in row:
            print(f"{row['method']:30}{'none':>12}  {row['reason']}")
            continue
        words = f"{row['method']:30}{row['bytes']:12d}{row['smaller']:8.2f}x{row['faster']:8.2f}x"
        words += f"{row['test']:10.4f}{row['minutes']:7.1f}"
        if "dominated" in row:
            words += f"  ours: {row['ours_smaller']:.2f}x smaller, {row['ours_faster']:.2f}x faster"
            words += ", dominates" if row["dominated"] else ""
        print(words, flush=True)


def figures_of(name: str, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the figures of a model."""
    figures: dict[str, float] = {}
    peers = [row for row in records if "dominated" in row]
    if peers:
        figures[f"{name}_ours_dominates"] = float(np.mean([row["dominated"] for row in peers]))
        figures[f"{name}_smaller_at_equal_accuracy"] = min(row["ours_smaller"] for row in peers)
        figures[f"{name}_faster_at_equal_accuracy"] = min(row["ours_faster"] for row in peers)
    theirs = [row for row in records if not row["method"].startswith(OURS)]
    failed = [row for row in theirs if row.get("reason", MISSING) != MISSING]
    figures[f"{name}_peers_failed"] = len(failed)
    return figures
