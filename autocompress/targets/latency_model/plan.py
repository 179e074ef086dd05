"""Plan the whole models to profile, and the ones to time for a check of the predictions.

The profiled models must show every kernel that a search space offers on the target.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.targets.workload import Layout, workload

POOL = 160  # random candidates to choose from
LEAST, MOST, CHECKED = 16, 40, 24  # profiled models, and timed ones for the check
SHOWN = 2  # models that each kernel should be profiled in


@dataclass(frozen=True)
class Subject:
    """Describe the model to profile, and its space.

    Attributes:
        layout: structure of the model.
        feed: inputs by name.
        baseline: content of the float file.
        noise_file: candidate -> (file without real weights, owner of each tensor).
        choices: per module a config for each form that it may take, untouched first.
        ratios: pruning ratios of each prunable group, by its root.
    """

    layout: Layout
    feed: Mapping[str, Any]
    baseline: bytes
    noise_file: Callable[[Candidate], tuple[bytes, Mapping[str, str]]]
    choices: Mapping[str, tuple[ModuleConfig, ...]]
    ratios: Mapping[str, tuple[float, ...]]

    def source(self, candidate: Candidate) -> Callable[[], bytes]:
        """Return a function that builds a candidate's file when it is called.

        Args:
            candidate: config of each module.
        """
        return lambda: self.noise_file(candidate)[0]


def form_choices(
    layout: Layout, offered: Callable[[str], Iterable[ModuleConfig]]
) -> dict[str, tuple[ModuleConfig, ...]]:
    """Return one config per form and module.

    Ranks alone and bits alone are included, as a search tries them on the way to a candidate.
    Values that do not affect latency are reset.

    Args:
        layout: structure of the model.
        offered: returns the configs that the space offers a module.

    Returns:
        Configs by module, the untouched one first.
    """
    choices: dict[str, tuple[ModuleConfig, ...]] = {}
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
        choices[module.name] = tuple(forms.values())
    return choices


def uniform_candidate(subject: Subject, form: str, depth: float = 0.0) -> Candidate:
    """Return a candidate with every module in the same form, or untouched if it lacks the form.

    Args:
        subject: model and space.
        form: see `Kernel.form`.
        depth: 0 for the smallest pruning ratio of each group, 1 for the largest.
    """
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
    """Return a random joint candidate of the space.

    The preference for each form and the depth of pruning are random too: fronts hold mixtures of
    all kinds, and independent choices would all look alike.

    Args:
        subject: model and space.
        generator: source of all draws.
    """
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
    # Latency does not depend on which channels go; magnitudes are the fastest to rank.
    return replace(config, pruning_ratio=ratio, importance="l2") if ratio > 0 else config


def shown_candidates(subject: Subject, generator: np.random.Generator) -> list[Candidate]:
    """Return the models to profile.

    All modules in one form each come first, then mixtures. Each step takes the candidate with most
    kernels that were not seen SHOWN times yet.

    Args:
        subject: model and space.
        generator: draws the pool of mixtures.
    """
    layout = subject.layout
    forms = all_forms(subject)
    chosen = [uniform_candidate(subject, form) for form in forms[:2]]
    pool = [uniform_candidate(subject, form, depth) for form in forms for depth in (0.0, 1.0)]
    pool += [random_candidate(subject, generator) for _ in range(POOL)]
    pool = [candidate for candidate in dict.fromkeys(pool) if candidate not in chosen]
    kernels: dict[Candidate, Counter[Any]] = {}
    for candidate in (*chosen, *pool):
        work = workload(layout, candidate)
        kernels[candidate] = Counter(kernel[:5] for kernel in work.kernels.values())
    seen: Counter[Any] = Counter()
    for candidate in chosen:
        seen += kernels[candidate]
    while pool and len(chosen) < MOST:
        gains = []
        for candidate in pool:
            counts = kernels[candidate].items()
            gains.append(sum(max(0, min(SHOWN - seen[place], n)) for place, n in counts))
        best = int(np.argmax(gains))
        if gains[best] == 0 and len(chosen) >= LEAST:
            break
        seen += kernels[pool[best]]
        chosen.append(pool.pop(best))
    return chosen


@dataclass(frozen=True)
class Plan:
    """Hold the candidates to measure.

    Attributes:
        profiled: profiled and timed, for the fit.
        checked: timed only, to check the predictions.
    """

    profiled: tuple[Candidate, ...]
    checked: tuple[Candidate, ...]

    @classmethod
    def of(cls, subject: Subject, seed: int) -> Plan:
        """Return a plan for the kernels that the space offers.

        Args:
            subject: model and space.
            seed: of all draws.
        """
        generator = np.random.default_rng(seed)
        profiled = shown_candidates(subject, generator)
        drawn = dict.fromkeys(random_candidate(subject, generator) for _ in range(4 * CHECKED))
        return cls(
            tuple(profiled),
            tuple(candidate for candidate in drawn if candidate not in profiled)[:CHECKED],
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Return a plan from the content of `to_json`.

        Args:
            data: candidates by role.
        """
        return cls(
            tuple(map(Candidate.from_json, data["profiled"])),
            tuple(map(Candidate.from_json, data["checked"])),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the candidates by role, in plain types."""
        return {
            "profiled": [candidate.to_json() for candidate in self.profiled],
            "checked": [candidate.to_json() for candidate in self.checked],
        }


def least_shown(subject: Subject, profiled: Sequence[Candidate]) -> int:
    """Return the number of first candidates that show every form of every kernel.

    Args:
        subject: model and space.
        profiled: in the order of measurement.
    """
    works = [workload(subject.layout, candidate) for candidate in profiled]
    shown = [{(kernel.signature, kernel.form) for kernel in w.kernels.values()} for w in works]
    wanted: set[tuple[str, str]] = set().union(*shown)
    seen: set[tuple[str, str]] = set()
    for count, forms in enumerate(shown, 1):
        seen |= forms
        if seen >= wanted:
            return count
    return len(profiled)


def all_forms(subject: Subject) -> list[str]:
    """Return every form that some module may take.

    Args:
        subject: model and space.
    """
    layout = subject.layout
    forms: dict[str, None] = {}
    for module in layout.module_map:
        for option in subject.choices[module.name]:
            forms[layout.form(module, option)] = None
    return list(forms)
