"""Copy models of other precisions in float32, also those that cast to half precision in forward.

`measure.prepare` replaces such a model by its copy; the search then decides about precisions.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from autocompress.differences import norm_difference
from autocompress.errors import TaskError
from autocompress.task.batches import NARROWED, Inputs, map_inputs
from autocompress.task.calls import FORWARD_FAILS, call_model
from autocompress.task.copies import copied
from autocompress.task.loading import FloatBatches, float32
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError, place

HALF = (torch.float16, torch.bfloat16)
CASTS = {Tensor.half: torch.float16, Tensor.bfloat16: torch.bfloat16, Tensor.double: torch.float64}
# Largest difference of a copy's outputs, relative to their norm: the model rounds to 16 bits, its
# copy does not.
APART = 0.1


def float_task(task: Task) -> Task:
    """Return the task with float32 copies of its models and data.

    Args:
        task: it is not changed.

    Returns:
        The task itself if no parameter has half or double precision.

    Raises:
        TaskError: a model mixes types so that its copy does not compute what it computes.
    """
    models = [model for model in (task.model, task.student) if model is not None]
    if not any(narrowed_types(model) for model in models):
        return task
    floats: dict[str, Any] = {}
    for split in ("validation", "train", "calibration", "test"):
        batches = getattr(task, split)
        floats[split] = None if batches is None else FloatBatches(batches)
    student = None if task.student is None else _checked_copy(task, task.student, "student")
    floats["example_inputs"] = map_inputs(task.example_inputs, float32)
    further = task.latency_inputs.items()
    floats["latency_inputs"] = {name: map_inputs(inputs, float32) for name, inputs in further}
    return replace(task, model=_checked_copy(task, task.model, "model"), student=student, **floats)


def narrowed_types(model: nn.Module) -> set[torch.dtype]:
    """Return the types of half and double precision among a model's parameters.

    Args:
        model: any module.

    Returns:
        Some of NARROWED.
    """
    return {parameter.dtype for parameter in model.parameters() if parameter.dtype in NARROWED}


def float_copy(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Return a float32 copy of a model.

    If a plain copy does not run, casts in its forward to half precision give float32 too.

    Args:
        model: any module; it is not changed.
        inputs: one batch of inputs that the copy is tried on.

    Returns:
        The copy.
    """
    return _tried_copy(model, inputs)[0]


def _tried_copy(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, UserCodeError | None]:
    """Return `float_copy`, and the error if no copy runs on `inputs`."""
    plain, types = copied(model, None, torch.float32), narrowed_types(model)
    if not types or _problem(plain, inputs) is None:
        return plain, None
    wide = _widened(plain, {*HALF, *types})
    problem = _problem(wide, inputs)
    return (wide, None) if problem is None else (copied(model, None, torch.float32), problem)


def _checked_copy(task: Task, model: nn.Module, what: str) -> nn.Module:
    """Return `float_copy`, or raise a TaskError if it does not compute what the model computes."""
    widened, problem = _tried_copy(model, task.example_inputs)
    if problem is None and type(widened) is type(model):
        return widened
    try:
        expected = _output(model, task.example_inputs)
    except UserCodeError:
        # The checks of the task tell why it fails, or these types have no kernel on this processor.
        return widened
    types = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    mixes = (
        f"task {task.name}: the {what} casts to types of its own beside its weights in "
        f"{' and '.join(sorted(types))}"
    )
    nearest = f"nearest: {what}.float(), and no casts to other types in forward"
    if problem is not None:
        reason = str(problem).removeprefix(f"{FORWARD_FAILS}: ")
        raise TaskError(f"{mixes}, and its float32 copy fails: {reason}; {nearest}") from problem
    output = _output(widened, map_inputs(task.example_inputs, float32))
    apart = norm_difference(output, expected)
    if apart > APART and bool(expected.isfinite().all()):
        raise TaskError(
            f"{mixes}, and its float32 copy gives outputs that are {apart:.0%} apart; {nearest}"
        )
    return widened


def _output(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return call_model(copied(model), map_inputs(inputs, lambda tensor: tensor.cpu())).double()


def _problem(model: nn.Module, inputs: Inputs) -> UserCodeError | None:
    try:
        _output(model, map_inputs(inputs, float32))
    except UserCodeError as error:
        return error
    return None


def _widened(model: nn.Module, types: Collection[torch.dtype]) -> nn.Module:
    """Return `model` with a class of its own, in whose forward casts to `types` give float32."""
    kind = type(model)

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _InFloat32(types):
            return kind.forward(self, *args, **kwargs)

    own = {"forward": forward, "__module__": kind.__module__}
    model.__class__ = type(kind.__name__, (kind,), own)
    return model


class _InFloat32(TorchFunctionMode):
    """Turn casts to some types, and results in them, into float32."""

    def __init__(self, narrowed: Collection[torch.dtype]) -> None:
        super().__init__()
        self.narrowed = narrowed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if CASTS.get(func) in self.narrowed:
            return args[0].float()
        if func is not Tensor.view:  # that reads the bits as they are
            args = tuple(map(self._wide, args))
            kwargs = {name: self._wide(value) for name, value in (kwargs or {}).items()}
        result = func(*args, **(kwargs or {}))
        narrowed = isinstance(result, Tensor) and result.dtype in self.narrowed
        return result.float() if narrowed else result

    def _wide(self, value: Any) -> Any:
        return torch.float32 if isinstance(value, torch.dtype) and value in self.narrowed else value


@contextlib.contextmanager
def noticed_casts() -> Iterator[list[str]]:
    """Notice `torch.autocast` and casts of a module's own parameters inside the block.

    Returns:
        A list that gets a phrase for the first of them: the cast, its place in the user's files,
        and the nearest thing that works.
    """
    seen: list[str] = []
    autocast = torch.amp.autocast_mode.autocast
    enter: Any = autocast.__enter__
    apply: Any = nn.Module._apply

    def notice_autocast(*_: object) -> None:
        if not seen and torch.is_autocast_enabled("cpu"):
            kind = _short(torch.get_autocast_dtype("cpu"))
            seen.append(
                f"runs under torch.autocast in {kind}{_here()}; no file can follow it, "
                "nearest: enabled=False"
            )

    def entered(context: Any) -> Any:
        result = enter(context)
        notice_autocast()
        return result

    def applied(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = [parameter.dtype for parameter in module.parameters()]
        result = apply(module, *args, **kwargs)
        for parameter, kind in zip(module.parameters(), before, strict=False):
            if parameter.dtype != kind and not seen:
                seen.append(
                    f"casts its own parameters to {_short(parameter.dtype)}{_here()}; no file can "
                    "follow it, nearest: cast the model before the task is made"
                )
        return result

    # The context is patched for functions under it that no module calls; the hook finds autocast
    # that is switched on in another way.
    autocast.__enter__ = entered  # type: ignore[method-assign]
    nn.Module._apply = applied  # type: ignore[method-assign, assignment]
    handle = register_module_forward_pre_hook(notice_autocast)
    try:
        yield seen
    finally:
        handle.remove()
        autocast.__enter__ = enter  # type: ignore[method-assign]
        nn.Module._apply = apply  # type: ignore[method-assign]


def _short(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _here() -> str:
    """Return the user's line that is being run, in brackets."""
    return place([(frame.filename, frame.lineno or 0) for frame in traceback.extract_stack()])
