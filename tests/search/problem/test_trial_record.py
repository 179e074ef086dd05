from __future__ import annotations

import math
from dataclasses import asdict, replace

import optuna
from optuna.trial import TrialState

from autocompress.candidate import Candidate, Distillation, ModuleConfig
from autocompress.results.limits import Limits
from autocompress.search.problem.trial_record import TrialRecord, records_of

CANDIDATE = Candidate.of({"a": ModuleConfig(4)}, Distillation(0.5, 2.0, 6))


def told(record: TrialRecord) -> TrialRecord:
    """The record as another process reads it."""
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    trial = study.ask()
    for name, value in {**record.attributes_before(), **record.attributes_after()}.items():
        trial.set_user_attr(name, value)
    for name, missed in record.violations.items():
        trial.set_constraint(name, missed)
    if record.is_complete:
        study.tell(trial, list(record.values))
    else:
        study.tell(trial, state=record.state)
    return records_of(study)[0]


def test_a_complete_trial_comes_back_as_it_was_told() -> None:
    record = replace(
        TrialRecord.of(0, CANDIDATE, "me"),
        size_bytes=1234,
        latency_ms=0.123456789,
        qualities=(0.9,),
        violations={"max_size": -0.5},
        samples=64,
        seen=1.0,
        divergence=0.25,
        scores={"divergence": "text"},
        race="digest",
        accuracy_before_recovery=0.8,
        trained=True,
        recovered=True,
        rungs={"0": 0.8, "6": 0.9},
        metrics={"f1": 0.7},
        cause="",
    ).ended(TrialState.COMPLETE, 1.23456)
    again = told(record)
    assert again.seconds is not None
    assert replace(again, seconds=None) == record
    assert again.candidate == CANDIDATE
    assert (again.accuracy, again.feasible, again.ended_itself) == (0.9, True, True)
    assert again.row == {
        "number": 0,
        "state": "COMPLETE",
        "size_bytes": 1234,
        "latency_ms": 0.123457,
        "accuracy": 0.9,
        "seconds": 1.235,
        "cause": "",
    }


def test_a_small_accuracy_is_not_rounded_away() -> None:
    record = replace(TrialRecord.of(0, CANDIDATE), latency_ms=1.0, qualities=(-1.25e-7,))
    assert record.ended(TrialState.COMPLETE, 1.0).row["accuracy"] == -1.25e-7


def test_a_stopped_trial_has_size_and_latency_but_no_accuracy() -> None:
    record = replace(
        TrialRecord.of(0, CANDIDATE),
        size_bytes=1234,
        latency_ms=0.5,
        violations={"max_size": 0.5},
        cause="over budget",
    )
    again = told(record.ended(TrialState.PRUNED, 1.0))
    assert (again.size_bytes, again.latency_ms, again.qualities) == (1234, 0.5, ())
    assert math.isnan(again.accuracy)
    assert not again.feasible
    assert again.cause == "over budget"
    assert again.divergence is None


def test_what_was_told_under_other_limits_may_not_stand() -> None:
    limits = Limits(max_size_bytes=1000.0, max_accuracy_drop=0.01, floors={"f1": 0.9})
    record = replace(TrialRecord.of(0, CANDIDATE), size_bytes=1500, latency_ms=0.5)
    over = told(replace(record, violations={"max_size": 0.5}).ended(TrialState.PRUNED, 1.0))
    assert over.stands(limits)
    assert not over.stands(Limits(max_size_bytes=2000.0))
    assert over.stands(Limits(max_size_bytes=2000.0, max_latency_ms=0.4))
    stopped = told(replace(record, limits=asdict(limits)).ended(TrialState.PRUNED, 1.0))
    assert stopped.stands(limits)
    assert not stopped.stands(replace(limits, floors={"f1": 0.8}))
    assert not stopped.stands(replace(limits, max_accuracy_drop=0.02))
    early = told(record.ended(TrialState.PRUNED, 1.0))
    assert early.stands(Limits()), "an earlier version does not say"
    whole = told(replace(record, qualities=(0.9,)).ended(TrialState.COMPLETE, 1.0))
    assert whole.stands(Limits())
    assert record.stands(Limits()), "it is still running"


def test_a_repeat_of_trial_0_is_a_repeat() -> None:
    record = replace(TrialRecord.of(3, CANDIDATE), size_bytes=1, latency_ms=1.0, repeats=0)
    assert record.attributes_after()["repeats"] == 1
    assert told(record.ended(TrialState.PRUNED, 0.0)).repeats == 0


def test_a_killed_trial_did_not_end_itself() -> None:
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    study.tell(study.ask(), state=TrialState.FAIL)
    (record,) = records_of(study)
    assert not record.ended_itself
    assert record.killed().row["state"] == "FAIL"
    assert record.retry_attributes() == {"attempt": 1, "retry_of": 0}
    assert math.isnan(record.size_bytes)
