"""What a space may say about recovery, and the Optuna parameters that it becomes."""

from __future__ import annotations

import pytest

from autocompress.errors import SpaceError
from autocompress.space.recovery import ALPHA, BLOCKS_FROM, parse_recovery


def test_a_number_of_steps_has_a_rung_on_the_way_and_a_list_has_its_own() -> None:
    assert parse_recovery("s", {}).rungs == ()
    assert parse_recovery("s", {"steps": 100}).rungs == (30, 100)
    assert parse_recovery("s", {"steps": 1}).rungs == (1,)
    assert parse_recovery("s", {"steps": [0, 30, 90, 200]}).rungs == (30, 90, 200)
    found = parse_recovery("s", {"steps": [0, 30, 90, 200]}).distillation({})
    assert (found.steps, found.restarts) == (200, (30, 90))
    rounds = parse_recovery("s", {"steps": 100, "schedule": "linear"}).distillation({})
    assert (rounds.steps, rounds.restarts) == (100, ())


def test_parameters_choose() -> None:
    space = parse_recovery(
        "s",
        {
            "alpha": {"low": 0.2, "high": 0.8},
            "temperature": [1, 4],
            "features": [0, 0.5],
            "sequences": 0.25,
            "learning_rate": [1e-4, 1e-3],
            "steps": 10,
            "accumulation": 2,
            "checkpointing": True,
            "batch_norm": "train",
        },
    )
    assert space.alpha_is_searched
    assert space.searched == {
        "distillation/temperature": (1.0, 4.0),
        "distillation/features": (0.0, 0.5),
        "distillation/learning_rate": (1e-4, 1e-3),
    }
    found = space.distillation(
        {
            ALPHA: 0.3,
            "distillation/temperature": 1,
            "distillation/features": 1,
            "distillation/learning_rate": 0,
        }
    )
    assert (
        found.alpha,
        found.temperature,
        found.features,
        found.sequences,
        found.learning_rate,
    ) == (0.3, 4.0, 0.5, 0.25, 1e-4)
    assert (found.accumulation, found.checkpointing) == (2, True)
    assert found.batch_norm == "train"
    assert space.student_lesson().batch_norm == "frozen"
    assert type(found).from_json(found.to_json()) == found


def test_what_means_nothing_is_not_searched() -> None:
    space = parse_recovery(
        "s", {"alpha": {"low": 0.0, "high": 1.0}, "temperature": [1, 2, 4], "steps": 10}
    )
    unlabelled = space.fitted(has_labels=False, has_logits=True, parameters=9)
    assert not unlabelled.alpha_is_searched
    assert set(unlabelled.searched) == {"distillation/temperature"}
    assert set(space.fitted(has_labels=True, has_logits=False, parameters=9).searched) == set()
    untrained = parse_recovery(
        "s", {"alpha": {"low": 0.0, "high": 1.0}, "temperature": [1, 2, 4], "steps": 0}
    )
    assert not untrained.alpha_is_searched
    assert not untrained.searched


def test_what_a_space_does_not_say_is_planned() -> None:
    untrained = parse_recovery("s", {})
    assert (untrained.steps, untrained.plans_steps, untrained.tests_rates) == (0, False, False)
    for data in ({"alpha": 0.3}, {"steps": "auto", "learning_rate": "auto"}):
        left_open = parse_recovery("s", data)
        assert left_open.plans_steps
        assert left_open.tests_rates
        assert left_open.steps > 0
        found = left_open.planned((20, 60), 1e-3).distillation({})
        assert (found.steps, found.restarts, found.learning_rate) == (60, (20,), 1e-3)
        assert left_open.planned((9,), None).distillation({}).learning_rate == 2e-4
    rounds = parse_recovery("s", {"schedule": "cubic"}).planned((20, 60, 180), None)
    assert (rounds.distillation({}).steps, rounds.distillation({}).restarts) == (60, ())
    assert rounds.planned((20,), None).distillation({}).steps == 20
    given = parse_recovery("s", {"steps": 7, "learning_rate": [1e-4, 3e-4]})
    assert given.planned((20, 60), 1e-3) == given
    rate = parse_recovery("s", {"steps": 7, "learning_rate": "auto"})
    assert (rate.plans_steps, rate.tests_rates) == (False, True)
    assert rate.planned((20,), 1e-3).distillation({}).learning_rate == 1e-3
    assert rate.planned((20,), 1e-3).rungs == rate.rungs
    assert not parse_recovery("s", {"steps": 7}).tests_rates, "steps of old spaces keep their rate"


@pytest.mark.parametrize(
    ("value", "has_labels", "parameters", "by_blocks"),
    [
        ("auto", True, BLOCKS_FROM, False),
        ("auto", True, BLOCKS_FROM + 1, True),
        ("auto", False, 9, False),
        (True, True, 9, True),
        (False, False, BLOCKS_FROM + 1, False),
    ],
)
def test_large_models_are_recovered_by_blocks(
    value: object, has_labels: bool, parameters: int, by_blocks: bool
) -> None:
    space = parse_recovery("s", {"steps": 10, "blocks": value})
    fitted = space.fitted(has_labels, has_logits=True, parameters=parameters)
    assert fitted.by_blocks is by_blocks
    assert not fitted.distillation({}).blocks, "trials train the whole model for their few steps"


@pytest.mark.parametrize(
    ("data", "norms", "expected"),
    [
        ({"steps": "auto"}, True, "train"),
        ({"steps": "auto"}, False, "frozen"),
        ({"steps": 10}, True, "frozen"),
        ({"steps": "auto", "batch_norm": "frozen"}, True, "frozen"),
        ({"steps": "auto", "batch_norm": "auto"}, True, "auto"),
        ({"steps": "auto", "batch_norm": "train"}, False, "train"),
    ],
)
def test_planned_trainings_train_statistics_where_batches_are_large(
    data: dict[str, object], norms: bool, expected: str
) -> None:
    space = parse_recovery("s", data)
    fitted = space.fitted(has_labels=True, has_logits=True, parameters=9, norms=norms)
    assert fitted.distillation({}).batch_norm == expected
    assert fitted.planned((20,), None).distillation({}).batch_norm == expected
    assert fitted.student_lesson().batch_norm == "frozen"


def test_null_is_no_way_to_leave_normalisations_open() -> None:
    with pytest.raises(SpaceError, match="batch_norm None is unknown; nearest"):
        parse_recovery("s", {"batch_norm": None})


def test_auto_is_the_default_of_blocks() -> None:
    given = {"steps": 0}
    assert parse_recovery("s", given) == parse_recovery("s", {**given, "blocks": "auto"})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"blocks": "yes"}, "blocks must be true, false or auto, got 'yes'; nearest valid value"),
        ({"blocks": 1}, "blocks must be true, false or auto, got 1; nearest valid value: auto"),
        ({"step": 3}, "s: distillation: unknown key 'step'; nearest: steps"),
        ({"steps": "many"}, "steps must be numbers or auto, got 'many'; nearest: auto"),
        ({"steps": -1}, "steps must be an integer >= 0, got -1; nearest valid value: 0"),
        ({"steps": [30, 0]}, "steps must grow, got [30, 0]; nearest valid value: [0, 30]"),
        ({"temperature": 0}, "temperature must be above 0, got 0; nearest valid value: 1"),
        ({"temperature": ["warm"]}, "temperature must be above 0, got 'warm'"),
        ({"features": -0.1}, "features must be at least 0, got -0.1; nearest valid value: 0"),
        ({"sequences": 2}, "sequences must be in [0, 1], got 2; nearest valid value: 0"),
        (
            {"learning_rate": 5},
            "learning_rate must be above 0 and below 1, got 5; nearest valid value: 0.0002",
        ),
        (
            {"accumulation": 0},
            "accumulation must be an integer >= 1, got 0; nearest valid value: 1",
        ),
        ({"batch_norm": "trained"}, "batch_norm 'trained' is unknown; nearest: train"),
        ({"batch_norm": True}, "batch_norm True is unknown; nearest: "),
        ({"checkpointing": 1}, "checkpointing must be true or false, got 1"),
        (
            {"student_steps": 1.5},
            "student_steps must be an integer >= 0, got 1.5; nearest valid value: 0",
        ),
        ({"alpha": {"low": 0.5, "high": 0.1}}, "alpha must be a number or {low, high} in [0, 1]"),
    ],
)
def test_bad_values_are_named(data: dict, text: str) -> None:
    with pytest.raises(SpaceError) as caught:
        parse_recovery("s", data)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
