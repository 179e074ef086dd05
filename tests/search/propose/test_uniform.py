"""Name the uniform candidates of a search, and make them its first trials."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest

from autocompress import ModuleConfig
from autocompress.search.propose import uniform
from autocompress.search.propose.uniform import (
    GLOBAL_RATIO,
    enqueue,
    enqueued,
    first_candidates,
    nearest_parameters,
    points_in_time,
    uniform_parameters,
)
from autocompress.space.recovery import RecoverySpace
from autocompress.space.search_space import BoundSpace, Knob

GROUPS = [
    SimpleNamespace(name="a", reason=None),
    SimpleNamespace(name="b", reason="an output"),
    SimpleNamespace(name="c", reason=None),
]


def problem(
    bits: tuple[int, ...],
    ratios: tuple[float, ...],
    wide: frozenset[str] = frozenset(),
    groups: tuple[int, ...] = (0,),
) -> SimpleNamespace:
    """A problem of three modules; `a` and `b` offer ratios, and only `a` can be pruned."""
    knobs = [Knob(name, "weight_bits", bits) for name in "abc"]
    knobs += [Knob("a", "pruning_ratio", ratios)] if len(ratios) > 1 else []
    offered = {"a": ratios, "b": (0.0, 0.5), "c": (0.0,)}
    pruner = SimpleNamespace(scores=lambda group, criterion: f"{criterion} of {group.name}")
    return SimpleNamespace(
        module_map=SimpleNamespace(groups=GROUPS),
        space=SimpleNamespace(
            kinds=dict.fromkeys("abc", "linear"),
            knobs=knobs,
            numbers=lambda name, axis: groups if axis == "group_size" else offered[name],
        ),
        layout=SimpleNamespace(pruner=pruner),
        stitcher=SimpleNamespace(library=SimpleNamespace(evidence=SimpleNamespace(wide=wide))),
    )


def test_two_widths_and_one_pruned_by_one_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ratios(scores: dict, ratio: float) -> dict[str, float]:
        asked.append((scores, ratio))
        return {"a": 0.4}

    monkeypatch.setattr(uniform, "global_ratios", ratios)
    given = problem((4, 8, 16), (0.0, 0.25, 0.5))
    points = uniform_parameters(given)
    assert asked == [({"a": "l2 of a"}, GLOBAL_RATIO)]
    names = [knob.parameter for knob in given.space.knobs]
    assert [[point[name] for name in names] for point in points] == [
        [1, 1, 1, 0],
        [0, 0, 0, 0],
        [1, 1, 1, 2],
    ]


def test_linear_layers_of_inputs_with_a_wide_range_read_floats() -> None:
    given = problem((4, 8), (0.0,), frozenset("bc"))
    given.space.kinds["c"] = "conv"
    given.space.knobs += [Knob(name, "activation_bits", (8, 32)) for name in "abc"]
    points = uniform_parameters(given)
    names = [knob.parameter for knob in given.space.knobs]
    assert [[point[name] for name in names] for point in points] == [
        [1, 1, 1, 0, 1, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ], "the last one rounds weights only"


def test_the_largest_groups_without_zero_points_are_a_candidate_too() -> None:
    groups = (32, 64, 128)
    given = problem((4, 8), (0.0,), frozenset("abc"), groups)
    given.space.knobs += [
        *(Knob(name, "group_size", groups) for name in "abc"),
        *(Knob(name, "symmetric", (False, True)) for name in "abc"),
    ]
    points = uniform_parameters(given)
    names = [knob.parameter for knob in given.space.knobs]
    assert [[point[name] for name in names] for point in points] == [
        [1, 1, 1, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 2, 2, 2, 1, 1, 1],
    ]


def test_one_scale_for_a_whole_row_is_the_largest_group() -> None:
    """32 is nearer to 256 than 0, but 0 stands for all inputs."""
    given = problem((4, 8), (0.0,), groups=(32, 0))
    given.space.knobs += [Knob("a", "group_size", (32, 0)), Knob("a", "symmetric", (False, True))]
    points = uniform_parameters(given)
    assert [(p["a/weight_bits"], p["a/group_size"], p["a/symmetric"]) for p in points] == [
        (1, 1, 1),
        (0, 1, 0),
        (0, 1, 1),
    ]


def test_equal_candidates_are_one() -> None:
    assert len(uniform_parameters(problem((8, 16), (0.0,)))) == 1


def test_values_that_are_not_offered_become_the_nearest() -> None:
    space = SimpleNamespace(
        knobs=[
            Knob("a", "weight_bits", (3, 6, 16)),
            Knob("a", "pruning_ratio", (0.0, 0.5)),
            Knob("a", "algorithm", ("nearest", "gptq")),
        ]
    )
    point = nearest_parameters(space, {"a": ModuleConfig(8, pruning_ratio=0.3, algorithm="gptq")})
    assert list(point.values()) == [1, 1, 1]


def test_they_are_the_first_trials_as_far_as_the_study_lacks_them() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 1})  # a process was killed after the first
    assert enqueue(study, [{"x": 1}, {"x": 2}])
    assert [study.ask().suggest_int("x", 0, 5) for _ in range(2)] == [1, 2]
    assert enqueue(study, [{"x": 1}, {"x": 2}])
    assert len(study.trials) == 2


def test_with_a_timeout_only_those_with_files_are_tried_and_three_in_any_case() -> None:
    points = [{"x": i} for i in range(4)]
    study = optuna.create_study()
    assert points_in_time(study, points, None) == points
    for files, count in ((set(), 3), ({0}, 3), ({0, 2}, 3), ({0, 1, 2, 3}, 4)):
        assert points_in_time(study, points, files) == points[:count]
    enqueue(study, points[:2])
    assert enqueued(study) == 2
    for _ in range(3):
        study.ask().suggest_int("x", 0, 5)
    assert enqueued(study) == 2
    assert points_in_time(study, points, None) == points[:2], "it goes on as it began"
    assert enqueue(study, points_in_time(study, points, {0, 1, 2}))
    assert len(study.trials) == 3


def test_a_study_of_other_trials_is_left_alone() -> None:
    study = optuna.create_study()
    study.ask().suggest_int("x", 4, 4)
    assert not enqueue(study, [{"x": 1}, {"x": 2}])
    assert len(study.trials) == 1


def test_candidates_of_the_first_trials_are_those_of_their_parameters() -> None:
    """Files were made before it was known that a rank gains nothing; both forms are known."""
    knobs = (Knob("a", "weight_bits", (8, 4)), Knob("a", "rank_ratio", (0.75, 0.5)))
    space = BoundSpace(knobs, {}, {"a": "linear"}, ("linear",), RecoverySpace(), {})
    space = replace(space, no_gain=frozenset({("a", 0.75, "auto")}))
    study = optuna.create_study()
    study.enqueue_trial({"a/weight_bits": 1, "a/rank_ratio": 0})
    study.enqueue_trial({"a/weight_bits": 0})
    found = first_candidates(study, space, 3)
    configs = [candidate.config("a") for candidate in found[0]]
    assert configs == [ModuleConfig(4), ModuleConfig(4, rank_ratio=0.75)]
    assert (found[1], found[2]) == ((), ()), "of another space, and not there"
