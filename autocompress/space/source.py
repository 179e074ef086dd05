"""Read the text of a search space: a YAML file, a space that the package ships, or a mapping.

`search_space.py` checks its keys and binds it to a model.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from autocompress.argument_types import shown
from autocompress.errors import SpaceError
from autocompress.targets.phases import DECODE

SHIPPED = files("autocompress.space") / "examples"
DEFAULT = "default"
# Default spaces of Hugging Face tasks that have one of their own.
LANGUAGE = "language"
DEFAULTS = {"text-generation": LANGUAGE, "image-text-to-text": LANGUAGE}
GENERATION = "generation"  # that of decoders with a cache, where the time of a token decides


def shipped_spaces() -> tuple[str, ...]:
    """Return the names of the spaces that the package ships, sorted."""
    names = [Path(file.name).stem for file in SHIPPED.iterdir() if file.name.endswith(".yaml")]
    return tuple(sorted(names))


def default_space(pipeline: str | None, phase: str = "") -> str:
    """Return the name of the shipped space that a search without a space takes.

    Args:
        pipeline: name of the Hugging Face task, None for tasks of another origin.
        phase: `Target.phase`, the latency that decides for decoders with a cache.
    """
    if phase:
        return GENERATION if phase == DECODE else LANGUAGE
    return DEFAULT if pipeline is None else DEFAULTS.get(pipeline, DEFAULT)


def read_space(
    source: str | Path | Mapping[str, Any] | None, pipeline: str | None = None, phase: str = ""
) -> tuple[str, Any]:
    """Return a space as YAML describes it, unchecked.

    Args:
        source: path of a YAML file, name of a shipped space, mapping, or None for the default
            space. A file wins over a shipped space of the same name.
        pipeline: of the task, as for `default_space`.
        phase: of the target, as for `default_space`.

    Returns:
        Name of the source for errors, and the parsed YAML.

    Raises:
        SpaceError: if there is neither such a file nor such a shipped space, or the file is not
            YAML.
    """
    if source is None:
        name = default_space(pipeline, phase)
        where = "default space" if name == DEFAULT else f"space {name}"
        return where, yaml.safe_load(_shipped_text(name))
    if isinstance(source, Mapping):
        return "space", dict(source)
    if not isinstance(source, (str, Path)):
        raise SpaceError(
            "space: expected a file, the name of a shipped space or a mapping, got "
            f"{shown(source)}; shipped spaces: {', '.join(shipped_spaces())}"
        )
    where, path = str(source), Path(source)
    if path.is_file():
        try:
            return where, yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise SpaceError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    if where in shipped_spaces():
        return where, yaml.safe_load(_shipped_text(where))
    raise no_such_space(where)


def is_space(name: str) -> bool:
    """Return True if there is a file or a shipped space of a name.

    Args:
        name: as the user gave it.
    """
    return Path(name).is_file() or name in shipped_spaces()


def no_such_space(name: str) -> SpaceError:
    """Return the error of a name that is neither a file nor a shipped space.

    Args:
        name: as the user gave it.
    """
    path, names = Path(name), list(shipped_spaces())
    if path.parent.is_dir():
        names += [file.name for file in path.parent.glob("*.yaml")]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    return SpaceError(
        f"{name}: no such file; nearest: {near[0] if near else 'none'}; "
        f"shipped spaces: {', '.join(shipped_spaces())}"
    )


def default_rules(pipeline: str | None, phase: str = "") -> Any:
    """Return the rules of the default space, which hold where a space names none.

    Args:
        pipeline: of the task, as for `default_space`.
        phase: of the target, as for `default_space`.
    """
    return yaml.safe_load(_shipped_text(default_space(pipeline, phase)))["modules"]


def fits_any_model(source: str | Path | Mapping[str, Any] | None) -> bool:
    """Return True for spaces that the package ships: their rules may match no module.

    A file of the user is another matter: a rule that matches nothing is likely a typing error.

    Args:
        source: as for `read_space`.
    """
    if source is None:
        return True
    if isinstance(source, Mapping) or Path(source).is_file():
        return False
    return str(source) in shipped_spaces()


def _shipped_text(name: str) -> str:
    return (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
