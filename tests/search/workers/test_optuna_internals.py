"""Hold that the private parts of Optuna exist in every version that pyproject.toml allows."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState

import autocompress
from autocompress.search.workers import optuna_internals
from autocompress.search.workers.optuna_internals import (
    FITS,
    HELD,
    PRIVATE,
    backend_of,
    database_methods,
)
from autocompress.search.workers.storage import open_study

ROOT = Path(autocompress.__file__).parent


def test_the_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert f"optuna{FITS}" in project["dependencies"]
    least, below = re.fullmatch(r">=(\d+)\.\d+,<(\d+)", FITS).groups()
    assert int(least) <= int(version("optuna").split(".")[0]) < int(below)


@pytest.mark.parametrize(
    ("held", "unfinished", "first"),
    [
        ("_set_trial_param", "_set_trial_param_without_commit", "session"),
        ("set_trial_user_attr", "_set_trial_attr_without_commit", "model_cls"),
        ("set_trial_system_attr", "_set_trial_attr_without_commit", "model_cls"),
    ],
)
def test_unfinished_writes_take_what_the_held_methods_take(
    held: str, unfinished: str, first: str
) -> None:
    given = list(inspect.signature(getattr(RDBStorage, held)).parameters)
    taken = list(inspect.signature(getattr(RDBStorage, unfinished)).parameters)
    assert taken[1] == "session"
    assert first in taken[1:3]
    rest = taken[taken.index(first) + 1 :]
    assert len(rest) >= len(given) - 1
    assert rest[0] == given[1] == "trial_id"


def test_every_method_that_reaches_the_database_is_there() -> None:
    methods = database_methods()
    assert {*HELD, *PRIVATE, "set_trial_state_values", "get_all_trials"} <= set(methods)
    assert BaseStorage.__abstractmethods__ - {"get_best_trial"} <= set(methods)


def test_a_study_has_the_backend_that_batches(tmp_path: Path) -> None:
    for url in (f"{tmp_path}/study.journal", f"sqlite:///{tmp_path}/study.db"):
        assert hasattr(backend_of(open_study(url)), "batch")
    assert backend_of(optuna.create_study()) is None


def test_writes_together_refuse_a_finished_trial(tmp_path: Path) -> None:
    study = open_study(f"sqlite:///{tmp_path}/study.db")
    trial = study.ask()
    study.tell(trial.number, state=TrialState.FAIL)
    call = optuna_internals.Call("set_trial_user_attr", (trial._trial_id, "a", 1), {})
    with pytest.raises(UpdateFinishedTrialError):
        optuna_internals.write_together(backend_of(study), [call])


def private_parts(tree: ast.AST) -> list[str]:
    """Imports of private modules of Optuna, and private attributes of studies and trials."""
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna."):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            parts += [name for name in names if name.startswith("_")]
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else None
            owner = node.value.id if isinstance(node.value, ast.Name) else owner
            if owner in ("study", "trial", "storage", "_study"):
                parts.append(node.attr)
    return parts


def test_no_other_file_touches_private_parts() -> None:
    for path in ROOT.rglob("*.py"):
        parts = private_parts(ast.parse(path.read_text()))
        assert bool(parts) == (path.name == "optuna_internals.py"), f"{path}: {parts}"
