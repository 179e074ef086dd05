"""Check early whether limits can be met: before the search, and after its first trial."""

from __future__ import annotations

import numpy as np

from autocompress.candidate import Candidate
from autocompress.errors import LimitError
from autocompress.results.limits import Limits, distance
from autocompress.results.measurement import score_words
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.allocation import Allocator
from autocompress.search.propose.tables.stored_size import smallest_candidate

ANGLES = 24  # trade-offs between size and latency that are tried


def check_size(bench: Problem, limits: Limits) -> None:
    """Refuse a size limit below the smallest file of the space, whose size is exact.

    Args:
        bench: the space, and the bytes of its candidates.
        limits: max_size_bytes counts.

    Raises:
        LimitError: names the smallest size.
    """
    if limits.max_size_bytes is None:
        return
    smallest = bench.size_bytes(smallest_candidate(bench.space, bench.layout))
    if smallest > limits.max_size_bytes:
        raise LimitError(
            f"limits: max_size {limits.max_size_bytes:.0f} B contradicts the search space, "
            f"whose smallest file has {smallest} B; nearest valid value: {smallest}"
        )


def out_of_reach(bench: Problem, allocator: Allocator, limits: Limits) -> str:
    """Return a warning if no candidate is predicted to keep the limits of size and latency.

    Args:
        bench: size and latency of candidates.
        allocator: finds the smallest and fastest candidates, at any loss.
        limits: max_size_bytes and max_latency_ms count.

    Returns:
        One line with the nearest candidate; "" if the limits can be kept.
    """
    if limits.max_size_bytes is None and limits.max_latency_ms is None:
        return ""
    angles = (np.arange(ANGLES) + 0.5) / ANGLES * np.pi / 2
    prices = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    free = np.full((ANGLES, len(allocator.features)), 1e-9)  # the loss only decides between equals
    nearest: tuple[float, int, float] | None = None
    for choices in np.unique(allocator.allocate(prices, free), axis=0):
        candidate = Candidate(bench.space.candidate(allocator.parameters(choices)).modules)
        size, latency = bench.size_bytes(candidate), bench.latency_ms(candidate)
        missed = distance(limits.violations(size, latency, None))
        if missed == 0:
            return ""
        if nearest is None or missed < nearest[0]:
            nearest = missed, size, latency
    if nearest is None:
        return ""
    asked = [] if limits.max_size_bytes is None else [f"{limits.max_size_bytes:.0f} B"]
    asked += [] if limits.max_latency_ms is None else [f"{limits.max_latency_ms:.4g} ms"]
    return (
        f"limits: no candidate of the space is predicted to keep {' and '.join(asked)}; "
        f"the nearest has {nearest[1]} B and {nearest[2]:.4g} ms; "
        "the search goes on to come as near as it can"
    )


def short_of(first: TrialRecord) -> str:
    """Return a warning if the first trial of a guided search misses the limits of quality.

    That trial is the one with the least predicted loss within the limits of size and latency.

    Args:
        first: the ended trial.

    Returns:
        One line with the missing amounts; "" if it keeps all limits.
    """
    missed = {name: by for name, by in first.violations.items() if by > 0}
    if not first.is_complete or not missed:
        return ""
    size, latency, accuracy = first.size_bytes, first.latency_ms, first.accuracy
    amounts = ", ".join(f"{name} by {score_words(by)}" for name, by in missed.items())
    return (
        "limits: the candidate with the least predicted loss "
        f"({size:.0f} B, {latency:.4g} ms, accuracy {score_words(accuracy)}) misses {amounts}; "
        "the search goes on to come as near as it can"
    )
