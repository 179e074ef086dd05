"""Round the results of functions between modules, as files of integers do.

Sums of residual blocks, gates, means and softmax are calls of functions in the model's own code,
for which no module stands. A torch function mode sees them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autocompress.compress.assemble.calls import Calls
from autocompress.compress.quantize.activation import RangeQuantizer


class Place(NamedTuple):
    """Name a call of a function in one pass of a model.

    Attributes:
        function: its name in PyTorch.
        call: index among the calls of that name outside of the simulated modules.
    """

    function: str
    call: int


def _silu(input: Tensor, inplace: bool = False) -> Tensor:
    result = input * torch.sigmoid(input)
    return _written(input, result) if inplace else result


def _written(place: Tensor, result: Tensor) -> Tensor:
    """Write a result over what an operator in place has read; a backward pass may need that."""
    return result if torch.is_grad_enabled() else place.copy_(result)


# Functions that files compute in two steps, of which the first one is rounded too.
STEPS: Mapping[str, Callable[..., Tensor]] = {
    "silu": _silu,
    "silu_": partial(_silu, inplace=True),
    "silu.default": _silu,
}


class Between(TorchFunctionMode):
    """Count the calls of functions in a pass of a model, and round the results of some.

    Attributes:
        quantizers: by place; results of other calls stay as they are.
        results: (place, result) of all calls in their order, if they are recorded; else None.
    """

    def __init__(self, calls: Calls) -> None:
        """Set up without any rounding.

        Args:
            calls: counts the calls of the model's modules, and those of functions too.
        """
        super().__init__()
        self.calls = calls
        self.quantizers: dict[Place, RangeQuantizer] = {}
        self.results: list[tuple[Place, Tensor]] | None = None
        self._inside = 0
        self._pass = contextlib.ExitStack()  # holds the mode while the model runs

    def watch(self, model: nn.Module, modules: Sequence[nn.Module]) -> None:
        """Be active in each pass of a model, but not inside of some of its modules.

        Args:
            model: the whole model.
            modules: whose calls of functions depend on how they are compressed.
        """
        model.register_forward_pre_hook(self._start)
        model.register_forward_hook(self._stop, always_call=True)
        for module in modules:
            module.register_forward_pre_hook(self._go_in)
            module.register_forward_hook(self._go_out, always_call=True)

    def again(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which a part of a pass is computed once more."""
        return self if self._needed else contextlib.nullcontext()

    @property
    def _needed(self) -> bool:
        return bool(self.quantizers) or self.results is not None

    def _start(self, *_: object) -> None:
        self._inside = 0
        self._pass.close()  # of a pass that Ctrl-C ended
        if self._needed:
            self._pass.enter_context(self)

    def _stop(self, *_: object) -> None:
        self._pass.close()

    def _go_in(self, *_: object) -> None:
        self._inside += 1

    def _go_out(self, *_: object) -> None:
        self._inside -= 1

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, and round its result if it has a quantizer."""
        name, named = getattr(func, "__name__", ""), dict(kwargs or {})
        if self._inside:
            return func(*args, **named)
        if name in STEPS:
            with self:
                return STEPS[name](*args, **named)
        result = func(*args, **named)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        place = Place(name, self.calls.next(f"{name}()", 1 << 30) or 0)
        if self.results is not None:
            self.results.append((place, result.detach().clone()))
        quantizer = self.quantizers.get(place)
        if quantizer is None:
            return result
        rounded = quantizer(result)
        return _written(result, rounded) if args and result is args[0] else rounded
