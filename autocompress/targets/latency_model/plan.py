"""Which whole models show a target every kernel that a space offers, and which check what follows from them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.targets.workload import Layout, workload

POOL = 160
LEAST, MOST, CHECKED = 16, 40, 24
SHOWN = 2  # how often every kernel is to be seen


@dataclass(frozen=True)
class Subject:
    """What is profiled.

    Attributes:
        blank: candidate -> (file, owner of each tensor).
        choices: per module a config for each form that it may take, untouched first.
        ratios: pruning ratios of each prunable group, by its root.
    """

    layout: Layout
    feed: Mapping[str, Any]
    baseline: bytes
    blank: Callable[[Candidate], tuple[bytes, Mapping[str, str]]]
    choices: Mapping[str, tuple[ModuleConfig, ...]]
    ratios: Mapping[str, tuple[float, ...]]

    def source(self, candidate: Candidate) -> Callable[[], bytes]:
        """The content of a candidate's file, made when it is asked for."""
        return lambda: self.blank(candidate)[0]


def form_choices(
    layout: Layout, offered: Callable[[str], Iterable[ModuleConfig]]
) -> dict[str, tuple[ModuleConfig, ...]]:
    """Per module, one config for each form among those that are offered, and among their parts: ranks alone and bits alone, as they are
    tried on the way to a candidate. What plays no part in latency is left out of them."""
    found: dict[str, tuple[ModuleConfig, ...]] = {}
    for module in layout.module_map:
        forms = {layout.form(module, ModuleConfig()): ModuleConfig()}
        for config in offered(module.name):
            bits = replace(config.quantized(), smoothing=0.0)
            for plain in (
                replace(bits, rank_ratio=config.rank_ratio, decomposition=config.decomposition),
                config.factorised(),
                bits,
            ):
                forms.setdefault(layout.form(module, plain), plain)
        found[module.name] = tuple(forms.values())
    return found


def uniform_candidate(subject: Subject, form: str, depth: float = 0.0) -> Candidate:
    """Every module in the same form, as far as it has it, and untouched otherwise; `depth` is where in its ratios each group is."""
    configs = {}
    for module in subject.layout.module_map:
        options = subject.choices[module.name]
        chosen = next(
            (option for option in options if subject.layout.form(module, option) == form),
            options[0],
        )
        ratios = subject.ratios.get(module.name, (0.0,))
        configs[module.name] = _pruned(chosen, ratios[round(depth * (len(ratios) - 1))])
    return Candidate.of(configs)


def random_candidate(subject: Subject, generator: np.random.Generator) -> Candidate:
    """A joint candidate of the space; how much it likes each form and how deep it prunes is itself random, since fronts lie at mixtures
    of all kinds, and independent choices would all look the same."""
    layout = subject.layout
    liking: dict[str, float] = defaultdict(lambda: float(np.exp(2 * generator.standard_normal())))
    share, depth = generator.random(2)
    configs = {}
    for module in layout.module_map:
        options = subject.choices[module.name]
        weights = np.array([liking[layout.form(module, option)] for option in options])
        chosen = options[int(generator.choice(len(options), p=weights / weights.sum()))]
        ratios = subject.ratios.get(module.name, (0.0,))
        prunes = generator.random() < share
        configs[module.name] = _pruned(
            chosen, ratios[int(generator.binomial(len(ratios) - 1, depth))] if prunes else 0.0
        )
    return Candidate.of(configs)


def _pruned(config: ModuleConfig, ratio: float) -> ModuleConfig:
    # Which channels go plays no part, and magnitudes are the quickest to rank.
    return replace(config, pruning_ratio=ratio, importance="l2") if ratio > 0 else config


def shown_candidates(subject: Subject, generator: np.random.Generator) -> list[Candidate]:
    """The models to profile: all modules in one form each, then mixtures, greedily those that show most kernels not yet seen twice."""
    layout = subject.layout
    forms = all_forms(subject)
    chosen = [uniform_candidate(subject, form) for form in forms[:2]]
    pool = [uniform_candidate(subject, form, depth) for form in forms for depth in (0.0, 1.0)]
    pool += [random_candidate(subject, generator) for _ in range(POOL)]
    pool = [candidate for candidate in dict.fromkeys(pool) if candidate not in chosen]
    kernels = {
        candidate: Counter(kernel[:5] for kernel in workload(layout, candidate).kernels.values())
        for candidate in (*chosen, *pool)
    }
    seen: Counter[Any] = Counter()
    for candidate in chosen:
        seen += kernels[candidate]
    while pool and len(chosen) < MOST:
        gains = [
            sum(max(0, min(SHOWN - seen[k], n)) for k, n in kernels[candidate].items())
            for candidate in pool
        ]
        best = int(np.argmax(gains))
        if gains[best] == 0 and len(chosen) >= LEAST:
            break
        seen += kernels[pool[best]]
        chosen.append(pool.pop(best))
    return chosen


@dataclass(frozen=True)
class Plan:
    """Candidates whose models are profiled, and those that are timed only, to check the predictions."""

    profiled: tuple[Candidate, ...]
    checked: tuple[Candidate, ...]

    @classmethod
    def of(cls, subject: Subject, seed: int) -> Plan:
        """Chosen for the kernels that the subject's space offers."""
        generator = np.random.default_rng(seed)
        profiled = shown_candidates(subject, generator)
        drawn = dict.fromkeys(random_candidate(subject, generator) for _ in range(4 * CHECKED))
        return cls(
            tuple(profiled),
            tuple(candidate for candidate in drawn if candidate not in profiled)[:CHECKED],
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Reverse of `to_json`."""
        return cls(
            *(
                tuple(Candidate.from_json(one) for one in data[role])
                for role in ("profiled", "checked")
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            role: [candidate.to_json() for candidate in getattr(self, role)]
            for role in ("profiled", "checked")
        }


def least_shown(subject: Subject, profiled: Sequence[Candidate]) -> int:
    """How many of the first candidates show every form of every kind of kernel that all of them show."""
    shown = [
        {(k.signature, k.form) for k in workload(subject.layout, one).kernels.values()}
        for one in profiled
    ]
    wanted: set[tuple[str, str]] = set().union(*shown)
    seen: set[tuple[str, str]] = set()
    for count, forms in enumerate(shown, 1):
        seen |= forms
        if seen >= wanted:
            return count
    return len(profiled)


def all_forms(subject: Subject) -> list[str]:
    """Every form that some module may take."""
    layout = subject.layout
    return list(
        dict.fromkeys(
            layout.form(module, option)
            for module in layout.module_map
            for option in subject.choices[module.name]
        )
    )
