"""Find the blocks of a model: the parts that are reconstructed one after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

MOST_MODULES = 8  # in a parent that is no element of a list


@dataclass(frozen=True)
class Block:
    """Name a part of a model that is called as one module.

    Attributes:
        name: qualified name of the part.
        modules: the compressible modules inside, or the part itself.
        calls: number of calls in one pass of the model.
    """

    name: str
    modules: tuple[str, ...]
    calls: int


def find_blocks(
    model: nn.Module, compressible: Collection[str], run: Callable[[], Any]
) -> list[Block]:
    """Return the blocks of a model in the order of their first calls.

    A block is an element of a list (an encoder layer), or of a sequence if its class occurs more
    than once (a residual block). Of nested ones the innermost is taken, unless it leaves modules of
    the outer one without a block. Modules outside of such elements form a block with the others of
    their parent, or alone if the parent is large or the model itself.

    Args:
        model: the model; hooks are added and removed again.
        compressible: names of its compressible modules.
        run: calls the model once.

    Returns:
        Disjoint blocks. Modules that no called part holds are left out.
    """
    modules = dict(model.named_modules())
    holders: dict[str, list[str]] = {}
    for name in compressible:
        for holder in _ancestors(name):
            holders.setdefault(holder, []).append(name)
    calls = _calls({name: modules[name] for name in [*holders, *compressible]}, run)
    called = [name for name in holders if name and name in calls]
    repeated = _repeated(modules, called)
    owners: dict[str, str] = {}
    for name in compressible:
        owner = _owner(name, repeated, holders, calls)
        if owner is not None:
            owners[name] = owner
    chosen = set(owners.values())
    members: dict[str, list[str]] = {}
    for name, owner in owners.items():
        outer = [other for other in _ancestors(owner) if other in chosen]
        members.setdefault(outer[-1] if outer else owner, []).append(name)
    order = list(calls)
    return [
        Block(name, tuple(members[name]), calls[name]) for name in sorted(members, key=order.index)
    ]


def _ancestors(name: str) -> list[str]:
    """Return the names of the modules that hold a module, the innermost first."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, -1, -1)]


def _calls(modules: Mapping[str, nn.Module], run: Callable[[], Any]) -> dict[str, int]:
    """Return the number of calls of each module that is called, in the order of first calls."""
    calls: dict[str, int] = {}

    def count(name: str, module: nn.Module, args: Any) -> None:
        calls[name] = calls.get(name, 0) + 1

    hooks = []
    for name, module in modules.items():
        hooks.append(module.register_forward_pre_hook(partial(count, name)))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _repeated(modules: Mapping[str, nn.Module], called: list[str]) -> set[str]:
    """Return the elements of lists, and those elements of sequences whose class is repeated."""
    elements = [name for name in called if name.rpartition(".")[2].isdigit()]
    classes = Counter(type(modules[name]) for name in elements)
    repeated = set()
    for name in elements:
        parent = modules[name.rpartition(".")[0]]
        if isinstance(parent, nn.ModuleList) or classes[type(modules[name])] > 1:
            repeated.add(name)
    return repeated


def _owner(
    name: str,
    repeated: Collection[str],
    holders: Mapping[str, list[str]],
    calls: Mapping[str, int],
) -> str | None:
    """Return the block of a module, or None if no part that holds it is called."""
    ancestors = _ancestors(name)
    for ancestor in ancestors:
        if ancestor in repeated:
            return ancestor
    parent = ancestors[0]
    inside = [other for other in repeated if other.startswith(f"{parent}.")]
    if parent and parent in calls and not inside and len(holders[parent]) <= MOST_MODULES:
        return parent
    return name if name in calls else None
