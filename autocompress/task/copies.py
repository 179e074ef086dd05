"""Copy the user's model, which is never changed itself.

Lookups of tables with `max_norm` shorten the rows that they read, in place. A file only reads, so
copies have tables with all rows shortened.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

TABLES = (nn.Embedding, nn.EmbeddingBag)
WRAPPED = "_orig_mod"  # the module that `torch.compile` wrapped


def copied(
    model: nn.Module,
    device: torch.device | str | None = "cpu",
    dtype: torch.dtype | None = None,
    shares_weights: bool = False,
) -> nn.Module:
    """Return a copy of a model in eval mode.

    The copy is made without gradients. Recurrent layers with parametrizations keep the weights that
    they make from others, and a weight with a history of gradients cannot be copied again. Tables
    with `max_norm` have all rows shortened, as lookups of all ids would leave them, and no
    `max_norm`. Modules that `torch.compile` wrapped come without the wrapper and its name.

    Args:
        model: any module; it is not changed.
        device: where the copy goes; None leaves it where the model is.
        dtype: type of the copy's floating-point numbers; None leaves them.
        shares_weights: True for a copy that is only run. Its parameters are its own, but they read
            the memory of the model's where device and type are the same. Buffers are copied always,
            since a forward may change them. So are parameters that a lookup or a switch to eval
            mode may write to.

    Returns:
        The copy.
    """
    with torch.no_grad():
        memo = _views(model) if shares_weights else {}
        for module in reversed(list(model.modules())):  # wrappers may hold wrappers
            if is_compiled(module):
                memo[id(module)] = copy.deepcopy(module.get_submodule(WRAPPED), memo)
        own = copy.deepcopy(model, memo)
        _shorten_rows(own)
        own = own if device is None else own.to(device)
        if dtype is not None:  # `to` would make complex numbers real

            def change(tensor: Tensor) -> Tensor:
                return tensor.to(dtype) if tensor.is_floating_point() else tensor

            own._apply(change)  # type: ignore[no-untyped-call]
        return own.eval()


def is_compiled(module: nn.Module) -> bool:
    """Return True if a module is a wrapper that `torch.compile` made of another.

    Args:
        module: one module; those below it are not looked at.
    """
    # Importing the class takes seconds, and nothing is compiled before it is imported.
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def switches_mode_itself(module: nn.Module) -> bool:
    """Return True if a module would be put into eval mode by a method of its own.

    Such a method may write to parameters, as where it merges low-rank branches into weights.

    Args:
        module: one module, without those below it.

    Returns:
        False for a module that is in eval mode.
    """
    own, kind = vars(module), type(module)
    methods = [own.get(name, getattr(kind, name)) for name in ("train", "eval")]
    return module.training and methods != [nn.Module.train, nn.Module.eval]


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model's state by their names.

    That is `state_dict` without what modules add to it (`get_extra_state`, hooks).

    Args:
        model: any module.

    Returns:
        Name -> parameter or persistent buffer, without its gradient; a tied weight has all names.
    """
    state: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        passing = module._non_persistent_buffers_set
        buffers = [(n, b) for n, b in module.named_buffers("", False, False) if n not in passing]
        parameters = module.named_parameters("", False, False)
        for name, value in (*parameters, *buffers):
            state[f"{path}.{name}".lstrip(".")] = value.detach()
    return state


def set_state(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write values to parameters and buffers of a model, without what its modules add to that.

    Args:
        model: it is changed.
        values: some of the tensors of `named_state`, of the same shapes.

    Raises:
        ValueError: the model has no such tensor.
    """
    state = named_state(model)
    for name, value in values.items():
        if name not in state or state[name].shape != value.shape:
            raise ValueError(f"the model has no {name} of shape {tuple(value.shape)}")
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)


@contextlib.contextmanager
def with_gradients(model: nn.Module) -> Iterator[None]:
    """Let all weights of a model have gradients inside the block, which keeps no activations.

    Only whether a tensor has a gradient can be found out there.

    Args:
        model: a copy; its weights have gradients behind the block too.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    nothing = torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda kept: kept)
    with torch.enable_grad(), nothing:
        yield


@contextlib.contextmanager
def shortened_rows(model: nn.Module) -> Iterator[None]:
    """Give a model tables without `max_norm` inside the block, as its copies have them.

    Args:
        model: any module; its own parameters are not written to, and are back behind the block.
    """
    with torch.no_grad():
        before = _shorten_rows(model)
    try:
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def _shorten_rows(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Put parameters with shortened rows in the place of tables, and return what was there."""
    before: list[tuple[nn.Module, str, Any]] = []
    for table in list(model.modules()):
        if not isinstance(table, TABLES) or table.max_norm is None or not _is_ordinary(table):
            continue
        long, numbers = table.weight, torch.arange(len(table.weight), device=table.weight.device)
        rows = torch.embedding_renorm_(
            long.detach().clone(), numbers, table.max_norm, table.norm_type
        )
        short = nn.Parameter(rows, requires_grad=long.requires_grad)
        for owner in model.modules():
            for name, value in owner.named_parameters(recurse=False, remove_duplicate=False):
                if value is long:
                    before.append((owner, name, long))
                    setattr(owner, name, short)
        before.append((table, "max_norm", table.max_norm))
        table.max_norm = None
    return before


def _is_ordinary(table: nn.Module) -> bool:
    """Return True if a table is a parameter that is looked up as its class of torch does it."""
    forwards = [kind.forward for kind in TABLES]
    own = type(table).forward not in forwards or "forward" in vars(table)
    return not own and "weight" in table._parameters


def _views(model: nn.Module) -> dict[int, Any]:
    """Return the memo of a deepcopy that takes new parameters on the same memory."""
    views: dict[int, Any] = {}
    written: set[int] = set()
    for module in model.modules():
        if getattr(module, "max_norm", None) is not None:  # a lookup shortens rows in place
            written.update(id(parameter) for parameter in module.parameters(recurse=False))
        if switches_mode_itself(module):
            written.update(id(parameter) for parameter in module.parameters())
    for parameter in model.parameters():
        plain = type(parameter) is nn.Parameter and not parameter.is_inference()
        if plain and id(parameter) not in written:
            views[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return views
