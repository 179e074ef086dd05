"""Plan which whole models show every kernel."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
from small_layout import MODULES, layout

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.targets.latency_model.plan import (
    CHECKED,
    LEAST,
    MOST,
    Plan,
    Subject,
    all_forms,
    form_choices,
    least_shown,
    random_candidate,
    shown_candidates,
    uniform_candidate,
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
    return Subject(given, {}, b"", lambda candidate: (b"", {}), choices, {"a": ratios})


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
    found = shown_candidates(given, np.random.default_rng(0))
    assert found[:2] == [uniform_candidate(given, form) for form in all_forms(given)[:2]]
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
    small = Subject(given, {}, b"", lambda candidate: (b"", {}), choices, {"a": (0.0, 0.5)})
    found = shown_candidates(small, np.random.default_rng(0))
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


def test_the_least_number_shows_every_form() -> None:
    given = subject()
    plain, integer = Candidate(), uniform_candidate(given, "int8")
    rank = uniform_candidate(given, "int8-rank0.5")
    assert least_shown(given, [plain, integer, plain, integer]) == 2
    assert least_shown(given, [plain, plain, integer, rank, plain]) == 4
    assert least_shown(given, [plain]) == 1
    half = uniform_candidate(given, "float", 1.0)
    assert least_shown(given, [plain, half]) == 1, "a width is no other form"


def test_sources_are_made_when_they_are_asked_for() -> None:
    asked = []
    given = subject()
    made = Subject(
        given.layout,
        {},
        b"",
        lambda candidate: (asked.append(candidate) or b"file", {}),
        given.choices,
        {},
    )
    source = made.source(Candidate())
    assert asked == []
    assert source() == b"file"
    assert asked == [Candidate()]
