"""Whatever can be judged without a model is refused before the task is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import autocompress as ac
from autocompress.errors import AutocompressError
from autocompress.search.arguments import checked_settings
from autocompress.search.problem.options import Settings

NUMBER = "must be a whole number, got"
WRONG = [
    ({"workers": "2"}, f"search: workers {NUMBER} '2'; nearest valid value: 2"),
    ({"workers": True}, f"search: workers {NUMBER} True; nearest valid value: 1"),
    ({"n_trials": 1.5}, f"search: n_trials {NUMBER} 1.5; nearest valid value: 2"),
    ({"n_trials": None}, f"search: n_trials {NUMBER} None; nearest valid value: 100"),
    ({"seed": "x"}, f"search: seed {NUMBER} 'x'; nearest valid value: 0"),
    (
        {"seed": 2**32},
        "search: seed must be from 0 to 4294967295, got 4294967296; nearest valid value: "
        "4294967295",
    ),
    ({"finalize_steps": "9"}, f"search: finalize_steps {NUMBER} '9'; nearest valid value: 9"),
    ({"timeout_s": "a"}, "search: timeout_s must be a number, got 'a'; nearest valid value: 600"),
    ({"timeout_s": math.nan}, "search: timeout_s must be a number, got nan; nearest valid value: "),
    ({"timeout_s": -1}, "search: timeout_s must be at least 0, got -1; nearest valid value: 0"),
    ({"max_size": object()}, "limit max_size: expected a value such as 2MB or 25%, got <object ob"),
    ({"max_size": True}, "limit max_size: expected a value such as 2MB or 25%, got True; nearest"),
    ({"max_latency": [3]}, "limit max_latency: expected a value such as 3ms or 0.5x, got [3]; "),
    ({"max_accuracy_drop": {}}, "limit max_accuracy_drop: expected a number such as 0.005 or 1%, "),
    (
        {"min_metric": ["f1"]},
        "search: min_metric must be a mapping from names of metrics to limits, got ['f1']; nearest "
        "valid value: {'f1': 0.9}",
    ),
    ({"min_metric": 0.9}, "search: min_metric must be a mapping from names of metrics to limits, "),
    ({"min_metric": {1: 0.9}}, "search: min_metric must be a mapping from names of metrics to lim"),
    ({"min_metric": {"f1": None}}, "limit min_metric f1: expected a number such as 0.9 or 99%, "),
    (
        {"library_memory": []},
        "search: library_memory must be a text, got []; nearest valid value: ",
    ),
    (
        {"library_memory": math.nan},
        "search: library_memory must be a number, got nan; nearest vali",
    ),
    ({"library_memory": "a"}, "limit library_memory: expected a value such as 512MB, got 'a'; ne"),
    (
        {"library_memory": None},
        "search: library_memory must be a text, got None; nearest valid value: '512MB'",
    ),
    (
        {"objectives": "f1"},
        "search: objectives must be a list of texts, got 'f1'; nearest valid value: ['f1']",
    ),
    ({"objectives": None}, "search: objectives must be a list of texts, got None; nearest valid "),
    ({"out": 3}, "search: out must be a path, got 3; nearest valid value: 'reports/run'"),
    ({"out": None}, "search: out must be a path, got None; nearest valid value: 'reports/run'"),
    ({"quiet": "yes"}, "search: quiet must be True or False, got 'yes'; nearest valid value: True"),
    ({"portable": "no"}, "search: portable must be True or False, got 'no'; nearest valid value: "),
    ({"target": None}, "search: target must be a text, got None; nearest valid value: 'onnxruntim"),
    ({"target": Path("a.yaml")}, "search: target must be a text, got PosixPath('a.yaml'); nearest"),
    ({"target": "tpu"}, "target 'tpu' is unknown; nearest: litert-cpu; valid: "),
    ({"sampler": 3}, "search: sampler must be a text, got 3; nearest valid value: 'guided'"),
    ({"strategy": ["guided"]}, "search: strategy must be a text, got ['guided']; nearest valid va"),
    ({"storage": 5}, "search: storage must be a text, got 5; nearest valid value: 'sqlite:///stud"),
    ({"storage": "foo://x"}, "storage foo://x: cannot be opened (Can't load plugin: "),
    ({"device": 0}, "search: device must be a text, got 0; nearest valid value: 'cpu'"),
    ({"device": "meta"}, "search: device 'meta' is not supported; nearest: cpu"),
    ({"device": "gpu"}, "device 'gpu' is unknown; nearest: cpu"),
    ({"ray": 1}, "search: ray must be a text, got 1; nearest valid value: 'local'"),
    (
        {"target_table": 1},
        "search: target_table must be a path, got 1; nearest valid value: 'table",
    ),
    ({"target_table": "no.json"}, "no.json: no such file; measure a table with: "),
    ({"space": 3}, "space: expected a file, the name of a shipped space or a mapping, got 3; "),
    ({"space": {"modules": 3}}, "space: 'modules' must be a list of rules, got 3; "),
]


@pytest.mark.parametrize(
    ("wrong", "message"), WRONG, ids=lambda value: str(value).split(" at 0x")[0][:40]
)
def test_wrong_arguments_are_one_line(wrong: dict[str, Any], message: str) -> None:
    """There is no such task: an error that names it would show that it was loaded."""
    with pytest.raises(AutocompressError, match="^" + re.escape(message)) as caught:
        ac.search("no_such_task:make", **wrong)
    assert "\n" not in str(caught.value)


def test_a_path_is_no_device() -> None:
    with pytest.raises(AutocompressError, match=r"got device\(type='cpu'\); nearest"):
        ac.search("no_such_task:make", device=torch.device("cpu"))  # type: ignore[arg-type]


def test_numbers_of_numpy_become_plain() -> None:
    settings = checked_settings(
        Settings(
            n_trials=np.int64(3),  # type: ignore[arg-type]
            seed=np.uint32(4),  # type: ignore[arg-type]
            timeout_s=math.inf,
            library_memory=np.int64(1000),  # type: ignore[arg-type]
            objectives=["f1"],
        )
    )
    assert (type(settings.n_trials), type(settings.seed)) == (int, int)
    assert settings.timeout_s is None
    assert type(settings.library_memory) is int
    assert settings.objectives == ("f1",)
    assert checked_settings(settings) == settings


SINGLE = [
    ({"target": 3}, "{name}: target must be a text, got 3; nearest valid value: 'onnxruntime-cpu'"),
    ({"target": "tpu"}, "target 'tpu' is unknown; nearest: litert-cpu; valid: "),
    ({"recover": "no"}, "{name}: recover must be True or False, got 'no'; nearest valid value: Fa"),
    ({"seed": "x"}, "{name}: seed must be a whole number, got 'x'; nearest valid value: 0"),
    ({"seed": -1}, "{name}: seed must be from 0 to 4294967295, got -1; nearest valid value: 0"),
    ({"device": 1}, "{name}: device must be a text, got 1; nearest valid value: 'cpu'"),
    ({"device": "meta"}, "{name}: device 'meta' is not supported; nearest: cpu"),
    ({"portable": 1}, "{name}: portable must be True or False, got 1; nearest valid value: True"),
    ({"target_table": 3}, "{name}: target_table must be a path, got 3; nearest valid value: 'tab"),
    ({"target_table": "no.json"}, "no.json: no such file; measure a table with: "),
    ({"activation_range": None}, "{name}: activation_range must be a text, got None; nearest val"),
    ({"activation_range": "minmax"}, "{name}: activation_range 'minmax' is unknown; nearest: min_"),
]


@pytest.mark.parametrize(
    ("wrong", "message"), SINGLE, ids=lambda value: str(value).split(" at 0x")[0][:40]
)
def test_wrong_arguments_of_one_candidate_are_one_line(wrong: dict[str, Any], message: str) -> None:
    for name, call in (
        ("compress", lambda: ac.compress("no_such_task:make", {}, **wrong)),
        ("export_onnx", lambda: ac.export_onnx("no_such_task:make", {}, "one.onnx", **wrong)),
    ):
        words = "^" + re.escape(message.format(name=name))
        with pytest.raises(AutocompressError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ac.export_onnx("t:t", {}, 3), "export_onnx: path must be a path, got 3; nearest"),
        (lambda: ac.load(3), "load: folder must be a path, got 3; nearest valid value: 'point'"),
        (lambda: ac.load("x", 3), "load: model must be a torch.nn.Module, got 3; nearest"),
        (lambda: ac.open_session(None), "open_session: path must be a path, got None; nearest"),
        (lambda: ac.read_front(3), "read_front: folder must be a path, got 3; nearest"),
        (lambda: ac.reproduce(3, "x"), "reproduce: folder must be a path, got 3; nearest"),
        (lambda: ac.reproduce("x", 3), "reproduce: to must be a path, got 3; nearest"),
        (lambda: ac.reproduce("x", "y", 3), "task: expected an autocompress.Task or a text, got"),
        (lambda: ac.load_task(3), "task: expected a text such as package.module:function, got 3; "),
        (
            lambda: ac.load_task(Path("a.py:task")),
            "task: expected a text such as package.module:function, got PosixPath('a.py:task'); "
            "nearest: 'a.py:task'",
        ),
        (lambda: ac.load_task(None), "task: expected a text such as package.module:function, got"),
    ],
)
def test_other_functions_name_their_argument(call: Callable[[], object], message: str) -> None:
    with pytest.raises(AutocompressError, match="^" + re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)
