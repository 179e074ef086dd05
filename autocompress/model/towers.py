"""Where a module stands in a model and what it does there: its tower, and its role."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn

from autocompress.errors import TaskError, nearest_name

ATTENTION_WORDS = {
    "attn",
    "attention",
    "self_attn",
    "multihead_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "qkv",
}
HEAD_TOWERS = {"head", "classifier", "fc", "lm_head", "output", "score", "proj_out"}
TOWER_WORDS: tuple[str, ...] = (
    "vision",
    "visual",
    "image",
    "text",
    "language",
    "audio",
    "speech",
    "projector",
    "connector",
)
TOWER_WORDS += ("encoder", "decoder", "backbone")


def find_towers(names: list[str], towers: Mapping[str, list[str]] | None) -> dict[str, str]:
    """Return the tower of each module: by the user's patterns, else the child that holds it, in which a model with a head is looked into.

    Raises:
        TaskError: a pattern matches nothing.
    """
    if towers is not None:
        found: dict[str, str] = {}
        for tower, patterns in towers.items():
            for pattern in patterns:
                matches = [name for name in names if fnmatchcase(name, pattern)]
                if not matches:
                    raise TaskError(
                        f"task: towers[{tower!r}] pattern {pattern!r} matches no module; nearest: {nearest_name(pattern, names)}"
                    )
                for name in matches:
                    found.setdefault(name, tower)
        return {name: found.get(name, "other") for name in names}
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
        result[name] = (
            child
            if child in HEAD_TOWERS or (inside and not child.isdigit()) or child in split
            else "model"
        )
    return result


def _split_children(names: list[str], prefix: str) -> set[str]:
    """The children that hold several towers themselves, as the `model` inside of a model with a head on it."""
    inside: dict[str, set[str]] = {}
    for name in names:
        child, _, rest = name[len(prefix) :].partition(".")
        if rest:
            inside.setdefault(child, set()).add(rest.partition(".")[0])
    return {
        child
        for child, parts in inside.items()
        if sum(any(word in part for word in TOWER_WORDS) for part in parts) > 1
    }


def role_of(model: nn.Module, name: str, kind: str, tower: str, last: bool) -> str:
    """Return what a module does: "embedding", "head" (`last`: it is called last), "conv", "attention" or "mlp"."""
    if kind == "embedding":
        return "embedding"
    if last or tower in HEAD_TOWERS:
        return "head"
    if kind == "conv":
        return "conv"
    parent = type(model.get_submodule(name.rpartition(".")[0])).__name__.lower()
    attention = bool(ATTENTION_WORDS & set(name.split("."))) or "attention" in parent
    return "attention" if attention else "mlp"
