"""Refuse settings that no search can have, each in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autocompress.errors import LimitError
from autocompress.search.problem.options import Settings, check_settings


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(n_trials=1, seed=0, workers=1, finalize_steps=0),
        Settings(strategy="progressive"),
        Settings(sampler="random", workers=3, finalize_steps=7),
        Settings(workers=2, ray="local"),
        Settings(library_memory=1),
    ],
)
def test_the_least_values_are_accepted(settings: Settings) -> None:
    check_settings(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            Settings(n_trials=0),
            "search: n_trials must be at least 1, got 0; nearest valid value: 1",
        ),
        (Settings(seed=-1), "search: seed must be at least 0, got -1; nearest valid value: 0"),
        (
            Settings(seed="a"),
            "search: seed must be a whole number, got 'a'; nearest valid value: 0",
        ),
        (
            Settings(n_trials=8.0),
            "search: n_trials must be a whole number, got 8.0; nearest valid value: 8",
        ),
        (Settings(workers=0), "search: workers must be at least 1, got 0; nearest valid value: 1"),
        (
            Settings(finalize_steps=-2),
            "search: finalize_steps must be at least 0, got -2; nearest valid value: 0",
        ),
        (
            Settings(strategy="progresive"),
            "search: strategy 'progresive' is unknown; nearest: progressive",
        ),
        (Settings(sampler="tpee"), "search: sampler 'tpee' is unknown; nearest: tpe"),
        (
            Settings(strategy="progressive", sampler="tpe"),
            "search: the progressive strategy proposes by itself; sampler must be guided, got tpe",
        ),
        (
            Settings(ray="local"),
            "search: ray places the other workers; workers must be at least 2, got 1; nearest "
            "valid value: 2",
        ),
        (
            Settings(strategy="progressive", workers=2),
            "search: the progressive strategy takes one step after another; workers must be 1, "
            "got 2",
        ),
        (
            Settings(library_memory="many"),
            "limit library_memory: expected a value such as 512MB, got 'many'; nearest: 512MB",
        ),
        (
            Settings(library_memory="0MB"),
            "limit library_memory: must be above 0, got '0MB'; nearest: 512MB",
        ),
    ],
)
def test_what_cannot_be_is_said(settings: Settings, message: str) -> None:
    with pytest.raises(LimitError) as caught:
        check_settings(settings)
    assert str(caught.value) == message


def test_settings_come_back_from_json() -> None:
    settings = Settings(
        space={"modules": [{"match": "*"}]},
        limits={"max_size": "25%", "min_metric": {"f1": 0.9}},
        objectives=("f1",),
        library_memory="1MB",
    )
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    paths = Settings(space=Path("a.yaml"), target_table=Path("b.json")).to_json()
    assert (paths["space"], paths["target_table"]) == ("a.yaml", "b.json")
    assert settings.library_bytes == 1_000_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_trials": 0}, "n_trials must be at least 1, got 0; nearest valid value: 1"),
        ({"finalize_steps": -1}, "finalize_steps must be at least 0, got -1"),
        ({"strategy": "guide"}, "strategy 'guide' is unknown; nearest: guided"),
        ({"sampler": "tp"}, "sampler 'tp' is unknown; nearest: tpe"),
        ({"strategy": "progressive", "sampler": "tpe"}, "sampler must be guided, got tpe"),
        ({"strategy": "progressive", "workers": 2}, "workers must be 1, got 2"),
        ({"library_memory": "many"}, "limit library_memory"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(LimitError, match=message):
        check_settings(Settings(**wrong))
