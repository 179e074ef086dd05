"""Watch one run of a model for what its module tree does not show.

`plain` keeps the tree of a model only if all its products with weights are in covered modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autocompress.model.plain.program import COVERED
from autocompress.task.batches import Inputs, map_inputs
from autocompress.task.calls import call_model
from autocompress.task.copies import copied, with_gradients
from autocompress.task.user_code import UserCodeError

FUSED = (nn.MultiheadAttention, nn.RNNBase)
ROUNDED = 1e-5  # by which rows that were shortened may be longer than they should
# In the names of operators that multiply by a weight, or look rows of it up.
PRODUCTS = ("mm", "matmul", "linear", "convolution", "embedding")


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record which operators a run calls on parameters outside covered modules.

    Attributes:
        multiplies_more: an operator multiplies by a parameter that no covered module holds (a
            transposed matrix, a stack of experts), by a view of it or by a copy.
        hides: the model runs operators whose inside nothing can look into (torch.cond,
            torch.while_loop, scan).
        shortens: a lookup with `max_norm` would write to a table. The run leaves that out.
    """

    def __init__(self, storages: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages, self.multiplies_more, self.hides = storages, False, False
        self.shortens = False
        self.copies: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "embedding_renorm_" in name:
            table, _, most, power = args
            longest = table.norm(power, dim=1).max()
            self.shortens = self.shortens or bool(longest > most * (1 + ROUNDED))
            return table
        result = func(*args, **(kwargs or {}))
        if self.multiplies_more or not any(map(self._is_watched, args)):
            return result
        self.multiplies_more = any(word in name for word in PRODUCTS)
        if "clone" in name or "_to_copy" in name:
            self.copies.append(result)  # held, so that no other tensor takes its memory
            self.storages.add(result.untyped_storage().data_ptr())
        return result

    def _is_watched(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage().data_ptr() in self.storages


def watched(model: nn.Module, inputs: Inputs) -> Watch:
    """Run a model once and return what was seen.

    Args:
        model: any module.
        inputs: one batch of inputs on the model's device.

    Returns:
        The record of the run.
    """
    held = covered_weights(model)
    storages = set()
    for value in model.parameters():
        if value.dim() >= 2 and id(value) not in held:
            storages.add(value.untyped_storage().data_ptr())
    watch = Watch(storages)
    try:
        with torch.no_grad(), watch:
            call_model(model, map_inputs(inputs, Tensor.clone))
    except Exception:
        torch._dynamo.reset()  # code that was compiled under the watch does not run without it
        watch.hides = True
    return watch


def learns(model: nn.Module, inputs: Inputs) -> bool:
    """Return True if the primary output of a model has a gradient, once its weights learn.

    A forward under `torch.no_grad` or `torch.inference_mode` gives none.

    Args:
        model: any module; it is not changed.
        inputs: one batch of inputs on the model's device.

    Returns:
        True also if a run with gradients fails.
    """
    own = copied(model, None, shares_weights=True)
    try:
        with with_gradients(own):
            return call_model(own, inputs).requires_grad
    except UserCodeError:
        return True


def covered_weights(model: nn.Module) -> dict[int, int]:
    """Return the sizes of the parameters that covered modules hold.

    An attention or a recurrent layer that was not split is not covered.

    Args:
        model: a tree with its fused modules split, or a program.

    Returns:
        Identity of the parameter -> number of elements.
    """
    sizes: dict[int, int] = {}
    whole = [module for module in model.modules() if isinstance(module, FUSED)]
    inside = {id(part) for module in whole for part in module.modules()}
    for module in model.modules():
        if isinstance(module, COVERED) and id(module) not in inside:
            for parameter in module.parameters(recurse=False):
                sizes[id(parameter)] = parameter.numel()
    return sizes
