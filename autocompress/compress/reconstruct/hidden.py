"""Record the inputs and outputs of one block, and call it again with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.compress.assemble.calls import Calls
from autocompress.compress.reconstruct.blocks import Block
from autocompress.task.batches import Inputs
from autocompress.task.calls import run_model


class _Reached(BaseException):
    """End a pass behind the last call of a block; no model catches it as an error."""


@dataclass(frozen=True, eq=False)
class BlockCall:
    """Hold one call of a block.

    Attributes:
        inputs: positional and keyword arguments without their structure; tensors are copies.
        structure: of the arguments.
        seen: calls of compressible modules in the pass before this call.
        outputs: floating-point tensors of the result.
    """

    inputs: list[Any]
    structure: pytree.TreeSpec
    seen: dict[str, int]
    outputs: list[Tensor]

    def nbytes(self) -> int:
        """Return the bytes in memory of all tensors."""
        tensors = [value for value in self.inputs if isinstance(value, Tensor)] + self.outputs
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def fits(self, other: BlockCall) -> bool:
        """Return True if inputs and outputs of another call have the same shapes.

        Args:
            other: a call of the same block of another model.
        """
        return _shapes(self.inputs) == _shapes(other.inputs) and _shapes(self.outputs) == _shapes(
            other.outputs
        )


def _shapes(values: Sequence[Any]) -> list[Any]:
    return [value.shape if isinstance(value, Tensor) else None for value in values]


def record(
    model: nn.Module, block: Block, inputs: Inputs, calls: Calls | None = None
) -> list[BlockCall]:
    """Run a model up to the last call of a block and return the block's calls.

    Args:
        model: holds the block.
        block: the block.
        inputs: one batch of inputs on the model's device.
        calls: counts the calls of compressible modules of a simulated model; None for others.

    Returns:
        The calls in their order.
    """
    recorded: list[BlockCall] = []

    def ended(name: str, call: BlockCall) -> None:
        recorded.append(call)
        if len(recorded) == block.calls:
            raise _Reached

    with (
        watched(model, [block.name], lambda name, call: None, ended, calls),
        suppress(_Reached),
        torch.no_grad(),
    ):
        run_model(model, inputs)
    return recorded


@contextmanager
def watched(
    model: nn.Module,
    names: Collection[str],
    begun: Callable[[str, BlockCall], None],
    ended: Callable[[str, BlockCall], None],
    calls: Calls | None = None,
) -> Iterator[None]:
    """Tell of the calls of some blocks inside the context.

    Args:
        model: holds the blocks.
        names: of the blocks.
        begun: called with a block and its call before it runs; there are no outputs yet.
        ended: called with a block and its call afterwards.
        calls: counts the calls of compressible modules of a simulated model; None for others.
    """
    open_calls: list[BlockCall] = []

    def begin(name: str, module: nn.Module, args: Any, named: Any) -> None:
        leaves, structure = pytree.tree_flatten((args, named))
        seen = calls.seen if calls else {}
        open_calls.append(BlockCall([_copy(leaf) for leaf in leaves], structure, seen, []))
        begun(name, open_calls[-1])

    def end(name: str, module: nn.Module, args: Any, result: Any) -> None:
        outputs = [output.detach().clone() for output in floats(result)]
        ended(name, replace(open_calls.pop(), outputs=outputs))

    hooks = []
    for name in names:
        module = model.get_submodule(name)
        pre = module.register_forward_pre_hook(partial(begin, name), with_kwargs=True)
        hooks += [pre, module.register_forward_hook(partial(end, name))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def floats(result: Any) -> list[Tensor]:
    """Return the floating-point tensors of a nested result, in a fixed order.

    Args:
        result: what a module returns.
    """
    leaves = pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def again(module: nn.Module, call: BlockCall, inputs: Sequence[Any], calls: Calls) -> list[Tensor]:
    """Call a block once more, with other inputs.

    Args:
        module: the block.
        call: tells the structure of the inputs and the place of the call in the pass.
        inputs: in the place of the call's own.
        calls: counts the calls of compressible modules.

    Returns:
        The floating-point tensors of the result.
    """
    args, named = pytree.tree_unflatten([_copy(value) for value in inputs], call.structure)
    with calls.replaying(call.seen):
        return floats(module(*args, **named))


def mixed(compressed: Sequence[Any], original: Sequence[Any], share: float) -> list[Any]:
    """Return inputs of which each element comes from one of two calls at random.

    Source: Wei et al. 2022, "QDrop", equation 9, applied to the inputs of a block.

    Args:
        compressed: inputs of a block of the compressed model.
        original: inputs of the same block of the float model, of the same shapes.
        share: chance that an element comes from the float model.

    Returns:
        Inputs of the same shapes; values that are no floating-point tensors are the compressed
        model's.
    """
    result = []
    for ours, theirs in zip(compressed, original, strict=True):
        if share > 0 and isinstance(ours, Tensor) and ours.is_floating_point():
            result.append(torch.where(torch.rand_like(ours) < share, theirs, ours))
        else:
            result.append(ours)
    return result
