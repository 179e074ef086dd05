"""Adapt to private parts of Optuna; no other file touches them.

Optuna writes each parameter and each attribute of a trial by itself. To write a batch in one
transaction, its own unfinished writes have to be called (`*_without_commit`). To wait for a
database, all methods that reach it have to be wrapped, three private ones among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
from optuna.storages import BaseStorage

if TYPE_CHECKING:  # imports SQLAlchemy, which journals do not need
    from optuna.storages import RDBStorage

FITS = ">=5.0,<6"  # versions of Optuna, as in pyproject.toml
PARAMETER = "_set_trial_param"
ATTRIBUTES = ("set_trial_user_attr", "set_trial_system_attr")
HELD = (PARAMETER, *ATTRIBUTES)  # methods of a database storage that a batch keeps back
PRIVATE = ("_create_new_trial", "_get_trials", PARAMETER)  # which Optuna's cache calls


class Call(NamedTuple):
    """Hold a call of one of the methods `HELD`.

    Attributes:
        name: of the method.
        arguments: positional ones.
        keywords: named ones.
    """

    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


def write_together(storage: RDBStorage, calls: Sequence[Call]) -> None:
    """Write parameters and attributes of trials in one transaction, all or nothing.

    Args:
        storage: a database.
        calls: calls of the methods `HELD`, in their order. What is there already is not an
            error: then an earlier try arrived, and its answer did not.
    """
    from optuna.storages._rdb.models import TrialSystemAttributeModel, TrialUserAttributeModel
    from optuna.storages._rdb.storage import _create_scoped_session

    models: tuple[Any, Any] = (TrialUserAttributeModel, TrialSystemAttributeModel)
    with _create_scoped_session(storage.scoped_session, True) as session:
        for name, arguments, keywords in calls:
            if name == PARAMETER:
                storage._set_trial_param_without_commit(session, *arguments, **keywords)
            else:
                model = models[ATTRIBUTES.index(name)]
                storage._set_trial_attr_without_commit(session, model, *arguments, **keywords)


def database_methods() -> dict[str, Callable[..., Any]]:
    """Return by name the methods of a database storage that reach the database."""
    from optuna.storages import RDBStorage

    public = [name for name in vars(BaseStorage) if not name.startswith("_")]
    methods = {name: getattr(RDBStorage, name, None) for name in (*public, *PRIVATE)}
    return {name: method for name, method in methods.items() if callable(method)}


def backend_of(study: optuna.Study) -> Any:
    """Return what is behind the cache of a study's storage: a database or a journal file.

    Args:
        study: any study.

    Returns:
        The backend; None where the storage has none.
    """
    return getattr(study._storage, "_backend", None)
