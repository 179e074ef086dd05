"""Add the times of a model at several inputs, such as those of the phases of a decoder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .sessions import Runnable

BETWEEN = " x "  # weight and name of an array
NUMBERED = ": "  # number of a part and its weight


@dataclass(frozen=True, eq=False)
class WeightedFeeds(Mapping[str, Any]):
    """Hold inputs whose times count as one, each multiplied by a weight.

    As a mapping it has all arrays, under names such as "0.7 x input_ids"; "1: 0.7 x input_ids" of
    the second part if its weight is that of an earlier one. Shapes and weights can thus be
    compared, and written to a file, as those of other inputs.

    Attributes:
        parts: (weight, arrays by input name).
    """

    parts: tuple[tuple[float, Mapping[str, Any]], ...]

    @property
    def _labels(self) -> list[str]:
        """Return what names of each part begin with."""
        weights = [repr(weight) for weight, _ in self.parts]
        return [f"{i}{NUMBERED}{w}" if w in weights[:i] else w for i, w in enumerate(weights)]

    def __getitem__(self, name: str) -> Any:
        """Return an array.

        Args:
            name: weight and name.
        """
        label, _, own = name.partition(BETWEEN)
        return self.parts[self._labels.index(label)][1][own]

    def __iter__(self) -> Iterator[str]:
        """Yield weights and names."""
        for label, (_, part) in zip(self._labels, self.parts, strict=True):
            yield from (f"{label}{BETWEEN}{name}" for name in part)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return sum(len(part) for _, part in self.parts)


def parts_of(feed: Mapping[str, Any]) -> tuple[tuple[float, Mapping[str, Any]], ...]:
    """Return the inputs that a feed consists of, with their weights.

    Args:
        feed: arrays by input name, or `WeightedFeeds`.
    """
    return feed.parts if isinstance(feed, WeightedFeeds) else ((1.0, feed),)


def read_feed(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the feed that a file holds as a mapping.

    Args:
        arrays: by input name, or by weight and name as `WeightedFeeds` has them.
    """
    if not all(BETWEEN in name for name in arrays):
        return arrays
    parts: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        label, _, own = name.partition(BETWEEN)
        parts.setdefault(label, {})[own] = array
    weights = [float(label.rpartition(NUMBERED)[2]) for label in parts]
    return WeightedFeeds(tuple(zip(weights, parts.values(), strict=True)))


def run_once(session: Runnable, feed: Mapping[str, Any]) -> float:
    """Run a session at all inputs of a feed.

    Args:
        session: of the model.
        feed: arrays by input name, or `WeightedFeeds`.

    Returns:
        Seconds of all runs together, whatever their weights are.
    """
    started = time.perf_counter()
    for _, part in parts_of(feed):
        session.run(None, part)
    return time.perf_counter() - started
