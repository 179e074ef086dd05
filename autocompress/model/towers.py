"""Find the tower of each module and its role.

Towers (vision, text, head, ...) group modules in the search space and in reports; roles choose the
default rules of a space.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from autocompress.argument_types import shown
from autocompress.errors import TaskError, nearest_name

ATTENTION_WORDS = {
    *("attn", "attention", "self_attn", "multihead_attn"),
    *("q_proj", "k_proj", "v_proj", "out_proj", "qkv"),
}
HEAD_TOWERS = {"head", "classifier", "fc", "lm_head", "output", "score", "proj_out"}
TOWER_WORDS = (
    *("vision", "visual", "image", "text", "language", "audio", "speech"),
    *("projector", "connector", "encoder", "decoder", "backbone"),
)


def find_towers(names: list[str], towers: Mapping[str, list[str]] | None) -> dict[str, str]:
    """Return the tower of each module.

    Args:
        names: of the modules in the order of their first call.
        towers: name -> patterns of module names; None: a tower is the child of the model that holds
            a module. A child that holds several towers, such as `model` beside a head, is split.

    Returns:
        Module -> tower.

    Raises:
        TaskError: a pattern matches nothing.
    """
    if towers is not None:
        return _towers_by_patterns(names, towers)
    prefix = ""
    while True:
        children = {name[len(prefix) :].partition(".")[0] for name in names}
        if len(children) != 1 or any(name == prefix + next(iter(children)) for name in names):
            break
        prefix += next(iter(children)) + "."
    split = _split_children(names, prefix)
    result = {}
    for name in names:
        child, _, inside = name[len(prefix) :].partition(".")
        if child in split and inside:
            child, _, inside = inside.partition(".")
        named = child in HEAD_TOWERS or (inside and not child.isdigit()) or child in split
        result[name] = child if named else "model"
    return result


def check_towers(towers: Any) -> None:
    """Check the form of towers; `find_towers` checks that their patterns match.

    Args:
        towers: as the user gives them; None is valid.

    Raises:
        TaskError: they are no mapping from names to lists of patterns.
    """
    if towers is None:
        return
    if not isinstance(towers, Mapping) or not all(isinstance(name, str) for name in towers):
        raise TaskError(
            "task: towers must be a mapping from names to lists of patterns, got "
            f"{shown(towers)}; nearest: {{'vision': ['encoder.*']}}"
        )
    for tower, patterns in towers.items():
        is_list = isinstance(patterns, (list, tuple))
        if not is_list or not all(isinstance(pattern, str) for pattern in patterns):
            near = [patterns] if isinstance(patterns, str) else ["encoder.*"]
            raise TaskError(
                f"task: towers[{tower!r}] must be a list of patterns, got {shown(patterns)}; "
                f"nearest: {near}"
            )


def _towers_by_patterns(names: list[str], towers: Mapping[str, list[str]]) -> dict[str, str]:
    """Return the tower of each module by the user's patterns; "other" if none matches."""
    tower_of: dict[str, str] = {}
    for tower, patterns in towers.items():
        for pattern in patterns:
            matches = [name for name in names if fnmatchcase(name, pattern)]
            if not matches:
                raise TaskError(
                    f"task: towers[{tower!r}] pattern {pattern!r} matches no module; "
                    f"nearest: {nearest_name(pattern, names)}"
                )
            for name in matches:
                tower_of.setdefault(name, tower)
    return {name: tower_of.get(name, "other") for name in names}


def _split_children(names: list[str], prefix: str) -> set[str]:
    """Return the children that hold several towers themselves, such as `model` beside a head."""
    inside: dict[str, set[str]] = {}
    for name in names:
        child, _, rest = name[len(prefix) :].partition(".")
        if rest:
            inside.setdefault(child, set()).add(rest.partition(".")[0])
    split = set()
    for child, parts in inside.items():
        if sum(any(word in part for word in TOWER_WORDS) for part in parts) > 1:
            split.add(child)
    return split


def role_of(model: nn.Module, name: str, kind: str, tower: str, last: bool) -> str:
    """Return the role of a module.

    Args:
        model: that holds the module.
        name: of the module.
        kind: as `kind_of` returns it.
        tower: of the module.
        last: True if it is called last.

    Returns:
        "embedding", "head", "conv", "attention" or "mlp".
    """
    if kind == "embedding":
        return "embedding"
    if last or tower in HEAD_TOWERS:
        return "head"
    if kind == "conv":
        return "conv"
    parent = type(model.get_submodule(name.rpartition(".")[0])).__name__.lower()
    attention = bool(ATTENTION_WORDS & set(name.split("."))) or "attention" in parent
    return "attention" if attention else "mlp"
