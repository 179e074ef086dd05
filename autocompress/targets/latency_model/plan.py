"""Plan the whole models to profile, and the ones to time for a check of the predictions.

The profiled models must show every kernel that a search space offers on the target. Kernels with a
known time on this machine need not be shown again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.targets.device.tuning import Source
from autocompress.targets.latency_model.run import Place
from autocompress.targets.workload import (
    Layout,
    Work,
    is_joinable,
    joined_signature,
    workload,
)

POOL = 160  # random candidates to choose from
SHORT_POOL = 40  # of them where time is limited
LEAST, MOST, CHECKED = 16, 40, 24  # profiled models, and timed ones for the check
# The same where all kernels are known: the models show how fast the machine is now.
KNOWN_LEAST, KNOWN_CHECKED = 4, 6
ENOUGH_WIDTHS = 4  # known widths of a kernel's form, between which others are interpolated
SHOWN = 2  # models that each kernel should be profiled in

NoiseFile = Callable[[Candidate], tuple[bytes | str, Mapping[str, str]]]


@dataclass(frozen=True)
class Subject:
    """Describe the model to profile, and its space.

    Attributes:
        layout: structure of the model.
        feed: inputs by name.
        baseline: returns the content or the path of the float file.
        noise_file: candidate -> (content or path of a file without real weights, owner of each
            tensor).
        choices: per module a config for each form that it may take, untouched first.
        ratios: pruning ratios of each prunable group, by its root.
    """

    layout: Layout
    feed: Mapping[str, Any]
    baseline: Source
    noise_file: NoiseFile
    choices: Mapping[str, tuple[ModuleConfig, ...]]
    ratios: Mapping[str, tuple[float, ...]]

    @property
    def inputs(self) -> dict[str, list[int]]:
        """Return the shapes of the feed by name."""
        return {name: list(array.shape) for name, array in self.feed.items()}

    @cached_property
    def forms(self) -> Mapping[str, tuple[str, ...]]:
        """Return the forms of each module, in the order of its choices."""
        forms = {}
        for module in self.layout.module_map:
            options = self.choices[module.name]
            forms[module.name] = tuple(self.layout.form(module, option) for option in options)
        return forms

    def source(self, candidate: Candidate) -> Source:
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
        forms = subject.forms[module.name]
        chosen = options[forms.index(form)] if form in forms else options[0]
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
    liking: dict[str, float] = defaultdict(lambda: float(np.exp(2 * generator.standard_normal())))
    share, depth = generator.random(2)
    configs = {}
    for module in subject.layout.module_map:
        options = subject.choices[module.name]
        weights = np.array([liking[form] for form in subject.forms[module.name]])
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


def shown_candidates(
    subject: Subject,
    generator: np.random.Generator,
    known: Collection[Place] = (),
    pool_size: int = POOL,
) -> tuple[list[Candidate], float]:
    """Return the models to profile.

    The untouched model comes first. Each further step takes the candidate with most forms of
    kernels that were not seen yet, then with most kernels that were not seen SHOWN times yet, then
    with most forms. So mixtures, which show several forms at once, come before uniform candidates.

    Args:
        subject: model and space.
        generator: draws the pool of mixtures.
        known: kernels that need not be shown.
        pool_size: number of drawn mixtures.

    Returns:
        (candidates, share of the kernels of the pool that are not known).
    """
    forms = all_forms(subject)
    chosen = [uniform_candidate(subject, forms[0])]
    pool = [uniform_candidate(subject, form, depth) for form in forms for depth in (0.0, 1.0)]
    pool += [random_candidate(subject, generator) for _ in range(pool_size)]
    pool = [candidate for candidate in dict.fromkeys(pool) if candidate not in chosen]
    kernels: dict[Candidate, Counter[Place]] = {}
    for candidate in (*chosen, *pool):
        work = workload(subject.layout, candidate)
        kernels[candidate] = Counter(kernel[:5] for kernel in work.kernels.values())
    wanted = {place for counts in kernels.values() for place in counts}
    widths = Counter(place[:3] for place in known)
    covered = {at for at in wanted if at in known or widths[at[:3]] >= ENOUGH_WIDTHS}
    unknown = 1 - len(covered) / max(1, len(wanted))
    least = between(KNOWN_LEAST, LEAST, unknown)
    seen = Counter(dict.fromkeys(covered, SHOWN)) + kernels[chosen[0]]
    shown = {_form_of(place) for place in (*known, *seen)}
    while pool and len(chosen) < MOST:
        gains = []
        for candidate in pool:
            counts = kernels[candidate].items()
            mixed = {_form_of(place) for place, _ in counts}
            kernels_gain = sum(max(0, min(SHOWN - seen[at], n)) for at, n in counts)
            forms_count = len({form for _, form in mixed})
            gains.append((len(mixed - shown), kernels_gain, forms_count))
        best = max(range(len(pool)), key=gains.__getitem__)
        if gains[best][:2] == (0, 0) and len(chosen) >= least:
            break
        seen += kernels[pool[best]]
        shown.update(map(_form_of, kernels[pool[best]]))
        chosen.append(pool.pop(best))
    return chosen, unknown


def between(known: int, unknown: int, share: float) -> int:
    """Return a number of models between the one for known kernels and the one for unknown ones.

    Args:
        known: number if all kernels are known.
        unknown: number if none is.
        share: of the kernels that are not known.
    """
    return known + round(share * (unknown - known))


def _form_of(place: Place) -> tuple[str, str]:
    return place[0], place[2]


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
    def of(
        cls, subject: Subject, seed: int, known: Collection[Place] = (), pool_size: int = POOL
    ) -> Plan:
        """Return a plan for the kernels that the space offers.

        Args:
            subject: model and space.
            seed: of all draws.
            known: kernels with a known time on this machine. The more there are, the fewer models
                are planned.
            pool_size: number of random candidates to choose from.
        """
        generator = np.random.default_rng(seed)
        profiled, unknown = shown_candidates(subject, generator, known, pool_size)
        checked: dict[Candidate, None] = {}
        wanted = between(KNOWN_CHECKED, CHECKED, unknown)
        for _ in range(4 * wanted):
            candidate = random_candidate(subject, generator)
            if candidate not in profiled and len(checked) < wanted:
                checked[candidate] = None
            elif len(checked) == wanted:
                break
        return cls(tuple(profiled), tuple(checked))

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


def unshown_forms(
    subject: Subject, works: Iterable[Work], known: Collection[Place] = ()
) -> tuple[tuple[str, str], ...]:
    """Return the forms of kernels that the space offers and that nothing shows.

    Args:
        subject: model and space.
        works: of the profiled models.
        known: kernels with a known time on this machine.

    Returns:
        (signature, form) of each, in the order of the modules.
    """
    shown = {_form_of(place) for place in known}
    for work in works:
        shown.update((kernel.signature, kernel.form) for kernel in work.kernels.values())
    missing: dict[tuple[str, str], None] = {}
    for name, forms in subject.forms.items():
        for form in forms:
            if (subject.layout.signatures[name], form) not in shown:
                missing[subject.layout.signatures[name], form] = None
    for names in subject.layout.joined:
        signature = joined_signature([subject.layout.signatures[name] for name in names])
        common = set.intersection(*(set(subject.forms[name]) for name in names))
        for form in filter(is_joinable, subject.forms[names[0]]):
            if form in common and (signature, form) not in shown:
                missing[signature, form] = None
    return tuple(missing)


def all_forms(subject: Subject) -> list[str]:
    """Return every form that some module may take.

    Args:
        subject: model and space.
    """
    forms: dict[str, None] = {}
    for module in subject.layout.module_map:
        forms.update(dict.fromkeys(subject.forms[module.name]))
    return list(forms)
