"""Watch one run of a model for what its module tree does not show.

`plain` keeps the tree of a model only if all its products with weights are in covered modules.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autocompress.model.plain.program import COVERED
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.task.batches import Inputs, map_inputs
from autocompress.task.calls import call_model
from autocompress.task.copies import copied, with_gradients
from autocompress.task.user_code import UserCodeError

FUSED = (nn.MultiheadAttention, nn.RNNBase, nn.ConvTranspose1d, nn.ConvTranspose2d)
ROUNDED = 1e-5  # by which rows that were shortened may be longer than they should
# In the names of operators that multiply by a weight, or look rows of it up.
PRODUCTS = ("mm", "matmul", "linear", "convolution", "embedding")


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record which operators a run calls on parameters.

    Attributes:
        covered: identities of the parameters that covered modules multiplied by when they ran.
        outside: identities of the parameters that other operators multiply by, or by what is made
            of them (a transposed matrix, a stack of experts, the weight of a layer that is not
            called).
        roots: memory of a parameter, or of what is made of parameters and buffers alone -> identity
            of the parameters.
        running: identities of the weights of each covered module that runs.
        sizes: identity of each parameter -> its number of elements.
        hides: the model runs operators whose inside nothing can look into (torch.cond,
            torch.while_loop, scan).
        shortens: a lookup with `max_norm` would write to a table. The run leaves that out.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.roots: dict[int, set[int]] = {}
        self.covered: set[int] = set()
        self.outside: set[int] = set()
        self.running: list[set[int]] = []
        self.buffers = {_memory(buffer) for buffer in model.buffers()}
        self.hides = self.shortens = False
        self.made: list[Tensor] = []
        self.sizes: dict[int, int] = {}
        for value in model.parameters():
            if value.dim() >= 2:
                self.roots.setdefault(_memory(value), set()).add(id(value))
                self.sizes[id(value)] = value.numel()

    @property
    def covered_size(self) -> int:
        """Elements of the parameters that covered modules alone multiply by."""
        return sum(self.sizes[weight] for weight in self.covered - self.outside)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "embedding_renorm_" in name:
            table, _, most, power = args
            longest = table.norm(power, dim=1).max()
            self.shortens = self.shortens or bool(longest > most * (1 + ROUNDED))
            return table
        result = func(*args, **(kwargs or {}))
        memories = [_memory(value) for value in tree_leaves(args) if isinstance(value, Tensor)]
        roots = {root for memory in memories for root in self.roots.get(memory, ())}
        if not roots:
            return result
        if any(word in name for word in PRODUCTS):
            held = self.running[-1] if self.running else set()
            self.covered |= roots & held
            self.outside |= roots - held
        elif all(memory in self.roots or memory in self.buffers for memory in memories):
            for value in tree_leaves(result):
                if isinstance(value, Tensor) and _memory(value) not in self.roots:
                    self.made.append(value)  # held, so that no other tensor takes its memory
                    self.roots[_memory(value)] = roots
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def watched(model: nn.Module, inputs: Inputs) -> Watch:
    """Run a model once and return what was seen.

    Args:
        model: a tree with its fused modules split; hooks are set and removed.
        inputs: one batch of inputs on the model's device.

    Returns:
        The record of the run.
    """
    watch, hooks = Watch(model), []
    for module in model.modules():
        weights = _weights(module)
        if weights:
            hooks.append(module.register_forward_pre_hook(partial(_enter, watch, weights)))
            hooks.append(module.register_forward_hook(partial(_leave, watch)))
    try:
        with torch.no_grad(), watch:
            call_model(model, map_inputs(inputs, Tensor.clone))
    except Exception:
        torch._dynamo.reset()  # code that was compiled under the watch does not run without it
        watch.hides = True
    finally:
        for hook in hooks:
            hook.remove()
    watch.made.clear()
    return watch


def _enter(watch: Watch, weights: set[int], module: nn.Module, inputs: Any) -> None:
    watch.running.append(weights)


def _leave(watch: Watch, module: nn.Module, inputs: Any, outputs: Any) -> None:
    watch.running.pop()


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


def _weights(module: nn.Module) -> set[int]:
    """Return the identities of the matrices that a covered module multiplies by; else none."""
    if isinstance(module, FUSED) or not isinstance(module, (*COVERED, SplitRecurrent)):
        return set()
    return {id(parameter) for parameter in module.parameters() if parameter.dim() >= 2}
