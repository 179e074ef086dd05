"""Plan which whole models show every kernel."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
from small_layout import MODULES, layout

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.targets.latency_model.plan import (
    CHECKED,
    KNOWN_CHECKED,
    KNOWN_LEAST,
    LEAST,
    MOST,
    Plan,
    Subject,
    all_forms,
    form_choices,
    random_candidate,
    shown_candidates,
    uniform_candidate,
    unshown_forms,
)
from autocompress.targets.workload import workload

CONV, A, B, TABLE = MODULES
INT8 = ModuleConfig(8, 8)
OFFERED = {
    "a": (
        INT8,
        ModuleConfig(8, 8, rank_ratio=0.5),
        ModuleConfig(4),
        ModuleConfig(4, smoothing=0.5),
    ),
    "b": (INT8,),
    "conv": (ModuleConfig(8, 8, activation_mode="dynamic"),),
}


def subject(ratios: tuple[float, ...] = (0.0, 0.25, 0.5)) -> Subject:
    given = layout()
    choices = form_choices(given, lambda name: OFFERED.get(name, ()))
    return Subject(given, {}, lambda: b"", lambda candidate: (b"", {}), choices, {"a": ratios})


def test_one_config_stands_for_each_form_and_for_its_parts() -> None:
    found = subject().choices
    forms = {m.name: [layout().form(m, c) for c in found[m.name]] for m in MODULES}
    assert forms == {
        # 4 bits run in float; the rank is tried alone too.
        "a": ["float", "int8", "int8-rank0.5", "float-rank0.5"],
        "b": ["float", "int8"],
        "conv": ["float", "int8-dynamic"],
        "table": ["float"],
    }
    assert all(configs[0] == ModuleConfig() for configs in found.values())
    assert all(config.smoothing == 0 for configs in found.values() for config in configs)
    assert all_forms(subject()) == [
        "float",
        "int8-dynamic",
        "int8",
        "int8-rank0.5",
        "float-rank0.5",
    ]


def test_a_uniform_candidate_takes_the_form_where_a_module_has_it() -> None:
    found = uniform_candidate(subject(), "int8")
    assert dict(found.modules) == {"a": INT8, "b": INT8}
    assert uniform_candidate(subject(), "float") == Candidate()


def test_depth_is_a_place_among_the_ratios() -> None:
    ratios = [
        uniform_candidate(subject(), "float", depth).config("a").pruning_ratio
        for depth in (0.0, 0.2, 0.5, 1.0)
    ]
    assert ratios == [0.0, 0.0, 0.25, 0.5]
    assert uniform_candidate(subject(), "float", 1.0).config("a").importance == "l2"


def test_random_candidates_are_of_the_space_and_of_the_seed() -> None:
    given = subject()
    first, again = (
        [random_candidate(given, np.random.default_rng(0)) for _ in range(2)] for _ in range(2)
    )
    assert first == again
    generator = np.random.default_rng(1)
    drawn = [random_candidate(given, generator) for _ in range(200)]
    forms = {
        m.name: Counter(given.layout.form(m, c.config(m.name)) for c in drawn) for m in MODULES
    }
    assert set(forms["a"]) == {"float", "int8", "int8-rank0.5", "float-rank0.5"}
    assert set(forms["table"]) == {"float"}
    assert {c.config("a").pruning_ratio for c in drawn} == {0.0, 0.25, 0.5}
    assert {c.config("b").pruning_ratio for c in drawn} == {0.0}


def test_shown_candidates_show_every_kernel_twice() -> None:
    given = subject()
    found, unknown = shown_candidates(given, np.random.default_rng(0))
    assert found[0] == Candidate()
    assert unknown == 1.0
    forms = set(given.forms["a"])
    shown = [{k.form for k in workload(given.layout, c).kernels.values()} for c in found]
    assert len(shown[1] - {"float"}) >= 2, "a mixture shows several forms at once"
    assert forms <= set().union(*shown[:4])
    assert LEAST <= len(found) <= MOST
    assert len(set(found)) == len(found)
    seen = Counter(
        kernel[:5] for one in found for kernel in workload(given.layout, one).kernels.values()
    )
    generator = np.random.default_rng(5)
    offered = {
        kernel[:5]
        for _ in range(300)
        for kernel in workload(given.layout, random_candidate(given, generator)).kernels.values()
    }
    assert all(seen[kernel] >= 2 for kernel in offered)


def test_a_space_of_few_candidates_is_shown_whole() -> None:
    given = layout()
    choices = {m.name: (ModuleConfig(),) for m in MODULES}
    small = Subject(given, {}, lambda: b"", lambda candidate: (b"", {}), choices, {"a": (0.0, 0.5)})
    found, _ = shown_candidates(small, np.random.default_rng(0))
    assert set(found) == {
        Candidate(),
        Candidate.of({"a": ModuleConfig(pruning_ratio=0.5, importance="l2")}),
    }
    assert Plan.of(small, 0).checked == ()


def test_a_plan_checks_other_candidates_and_is_read_as_it_was_written() -> None:
    plan = Plan.of(subject(), 3)
    assert plan == Plan.of(subject(), 3) != Plan.of(subject(), 4)
    assert not set(plan.profiled) & set(plan.checked)
    assert 0 < len(plan.checked) <= CHECKED
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def places(given: Subject, candidates: list[Candidate]) -> set:
    works = [workload(given.layout, candidate) for candidate in candidates]
    return {kernel[:5] for work in works for kernel in work.kernels.values()}


def test_kernels_that_are_known_are_not_shown_again() -> None:
    given = subject()
    first = Plan.of(given, 0)
    known = places(given, [*first.profiled, *first.checked])
    second = Plan.of(given, 0, known)
    assert len(first.profiled) >= LEAST > KNOWN_LEAST == len(second.profiled)
    assert len(second.checked) == KNOWN_CHECKED
    assert second.profiled[0] == Candidate()
    works = [workload(given.layout, candidate) for candidate in second.profiled]
    forms = [len({kernel.form for kernel in work.kernels.values()}) for work in works]
    assert sum(count >= 3 for count in forms) >= 2, "mixtures show how fast the machine is"
    half = {place for place in known if place[0].startswith("linear 16x8")}
    partly = Plan.of(given, 0, half)
    assert KNOWN_LEAST < len(partly.profiled) < LEAST


def test_a_form_that_is_not_known_is_shown_first() -> None:
    given = subject()
    known = places(given, list(Plan.of(given, 0).profiled))
    missing = {place for place in known if place[2] == "int8-rank0.5"}
    profiled = Plan.of(given, 0, known - missing).profiled
    assert missing & places(given, [profiled[1]])


def test_widths_between_known_ones_are_known() -> None:
    given = subject((0.0, 0.125, 0.25, 0.5, 0.75))
    known = places(given, list(Plan.of(given, 0).profiled))
    between = {place for place in known if 12 in place[3:]}
    assert between
    assert len(Plan.of(given, 0, known - between).profiled) == KNOWN_LEAST


def test_forms_that_nothing_shows_are_named_once() -> None:
    given = subject()
    works = [workload(given.layout, Candidate())]
    signatures = given.layout.signatures
    assert unshown_forms(given, works) == (
        (signatures["conv"], "int8-dynamic"),
        (signatures["a"], "int8"),
        (signatures["a"], "int8-rank0.5"),
        (signatures["a"], "float-rank0.5"),
        (signatures["b"], "int8"),
    )
    known = {(signatures["a"], 4, "int8", 4, 4)}
    assert (signatures["a"], "int8") not in unshown_forms(given, works, known)


def test_sources_are_made_when_they_are_asked_for() -> None:
    asked = []
    given = subject()
    made = Subject(
        given.layout,
        {},
        lambda: b"",
        lambda candidate: (asked.append(candidate) or b"file", {}),
        given.choices,
        {},
    )
    source = made.source(Candidate())
    assert asked == []
    assert source() == b"file"
    assert asked == [Candidate()]
