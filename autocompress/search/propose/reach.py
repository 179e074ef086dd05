"""Check early whether limits can be met: before the search, and after its first trial."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.errors import LimitError
from autocompress.results.limits import Limits, distance
from autocompress.results.measurement import score_words
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.allocation import Allocator
from autocompress.search.propose.tables.memory_budget import MemoryBudget
from autocompress.search.propose.tables.stored_size import smallest_candidate

FILES = 40  # files without weights that are built to find the least memory
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


def check_memory(bench: Problem, limits: Limits) -> None:
    """Refuse a limit of memory below the least that candidates of the space are found to take.

    All channel groups are pruned as far as they can be, all modules compute with integers, and then
    one module after the other with floats where that takes less.

    Args:
        bench: the space, and the memory of its candidates.
        limits: max_memory_bytes counts.

    Raises:
        LimitError: names the least memory, which a candidate takes.
    """
    most, least = limits.max_memory_bytes, None
    if most is None:
        return
    for candidate in _lean_candidates(bench):
        memory = bench.activation_bytes(candidate)
        if memory <= most:
            return
        least = memory if least is None else min(least, memory)
    raise LimitError(
        f"limits: max_memory {most:.0f} B is below the least memory of activations that a "
        f"candidate of the search space was found to take, {least} B; nearest valid value: {least}"
    )


def _lean_candidates(bench: Problem) -> Iterator[Candidate]:
    """Yield candidates with few activations; each change of one that takes less is kept."""
    forms, integers, floats = dict[str, list[ModuleConfig]](), {}, {}
    for module in bench.layout.module_map:
        ratio = max(bench.space.numbers(module.name, "pruning_ratio"))
        known: dict[str, ModuleConfig] = {}
        for config in bench.space.configs(module.name):
            known.setdefault(bench.layout.form(module, config), config)
        # Whole modules come before factors, and integers by calibrated ranges before other forms.
        usual = ["int8" if module.kind == "conv" else "int8-static", "int8", "float"]
        order = sorted(known, key=lambda form: usual.index(form) if form in usual else len(usual))
        own = [replace(known[form], pruning_ratio=ratio) for form in order]
        forms[module.name], integers[module.name] = own, own[0]
        floats[module.name] = next((c for c in own if c.activation_bits == 32), own[0])
    configs, best, files = integers, math.inf, 0
    for start in (integers, floats) if floats != integers else (integers,):
        yield Candidate.of(start)
        files, memory = files + 1, bench.activation_bytes(Candidate.of(start))
        if memory < best:
            configs, best = start, memory
    for name, own in forms.items():
        for config in own:
            if config == configs[name]:
                continue
            if files >= FILES:
                return
            changed = {**configs, name: config}
            yield Candidate.of(changed)
            files, memory = files + 1, bench.activation_bytes(Candidate.of(changed))
            if memory < best:
                configs, best = changed, memory


def out_of_reach(
    bench: Problem, allocator: Allocator, limits: Limits, memory: MemoryBudget | None = None
) -> str:
    """Return a warning if no candidate is predicted to keep the limits of size, latency and memory.

    Args:
        bench: size, latency and memory of candidates.
        allocator: finds the smallest and fastest candidates, at any loss.
        limits: max_size_bytes, max_latency_ms and max_memory_bytes count.
        memory: changes candidates that take too much memory; None without such a limit.

    Returns:
        One line with the nearest candidate; "" if the limits can be kept.
    """
    if limits.max_size_bytes is None and limits.max_latency_ms is None and memory is None:
        return ""
    angles = (np.arange(ANGLES) + 0.5) / ANGLES * np.pi / 2
    prices = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    free = np.full((ANGLES, len(allocator.features)), 1e-9)  # the loss only decides between equals
    nearest: tuple[float, int, float, int | None] | None = None
    allocated = allocator.allocate(prices, free)
    if memory is not None:
        allocated = memory.relieved(allocated, free)
    for choices in np.unique(allocated, axis=0):
        candidate = Candidate(bench.space.candidate(allocator.parameters(choices)).modules)
        size, latency = bench.size_bytes(candidate), bench.latency_ms(candidate)
        taken = None if memory is None else bench.activation_bytes(candidate)
        missed = distance(limits.violations(size, latency, None, None, taken))
        if missed == 0:
            return ""
        if nearest is None or missed < nearest[0]:
            nearest = missed, size, latency, taken
    if nearest is None:
        return ""
    asked = [] if limits.max_size_bytes is None else [f"{limits.max_size_bytes:.0f} B"]
    asked += [] if limits.max_latency_ms is None else [f"{limits.max_latency_ms:.4g} ms"]
    found = f"{nearest[1]} B and {nearest[2]:.4g} ms"
    if limits.max_memory_bytes is not None:
        asked += [f"{limits.max_memory_bytes:.0f} B of activations"]
        found = f"{nearest[1]} B, {nearest[2]:.4g} ms and {nearest[3]} B of activations"
    return (
        f"limits: no candidate of the space is predicted to keep {' and '.join(asked)}; "
        f"the nearest has {found}; "
        "the search goes on to come as near as it can"
    )


def short_of(first: TrialRecord) -> str:
    """Return a warning if the first trial of a guided search misses the limits of quality.

    That trial is the one with the least predicted loss within the limits of size, latency and
    memory.

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
