"""Float32 copies of models in other precisions, also of those that cast to half precision themselves."""

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

from autocompress.errors import TaskError
from autocompress.task.batches import NARROWED, Inputs, map_inputs
from autocompress.task.copies import copied
from autocompress.task.loading import FloatBatches, float32
from autocompress.task.task import FORWARD_FAILS, Task, call_model
from autocompress.task.user_code import UserCodeError, place

HALF = (torch.float16, torch.bfloat16)
CASTS = {Tensor.half: torch.float16, Tensor.bfloat16: torch.bfloat16, Tensor.double: torch.float64}
APART = 0.1  # of the norm of the outputs: what rounding to 16 bits, which the copy does not do, may change


def float_task(task: Task) -> Task:
    """`task` itself, or, where its model has parameters of half or double precision, the same with float32 copies.

    What is stored in 16 bits, and what in fewer, is for the search to say; the original stays as it is.
    TaskError where a model mixes types so that its copy does not compute what it computes.
    """
    models = [model for model in (task.model, task.student) if model is not None]
    if not any(narrowed_types(model) for model in models):
        return task
    batches = {name: getattr(task, name) for name in ("validation", "train", "calibration", "test")}
    floats: dict[str, Any] = {
        name: None if found is None else FloatBatches(found) for name, found in batches.items()
    }
    student = None if task.student is None else _checked_copy(task, task.student, "student")
    floats["example_inputs"] = map_inputs(task.example_inputs, float32)
    floats["latency_inputs"] = {
        name: map_inputs(inputs, float32) for name, inputs in task.latency_inputs.items()
    }
    return replace(task, model=_checked_copy(task, task.model, "model"), student=student, **floats)


def narrowed_types(model: nn.Module) -> set[torch.dtype]:
    """The types of half and double precision that its parameters have."""
    return {parameter.dtype for parameter in model.parameters() if parameter.dtype in NARROWED}


def float_copy(model: nn.Module, inputs: Inputs) -> nn.Module:
    """A copy in float32; where that does not run on `inputs`, one in whose forward casts to the model's other types give float32."""
    return _tried_copy(model, inputs)[0]


def _tried_copy(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, UserCodeError | None]:
    """`float_copy`, and why it does not run on `inputs` where it does not."""
    plain, types = copied(model, None, torch.float32), narrowed_types(model)
    if not types or _problem(plain, inputs) is None:
        return plain, None
    wide = _widened(plain, {*HALF, *types})
    problem = _problem(wide, inputs)
    return (wide, None) if problem is None else (copied(model, None, torch.float32), problem)


def _checked_copy(task: Task, model: nn.Module, what: str) -> nn.Module:
    """`float_copy`; TaskError where the model runs, and the copy does not, or gives other outputs without its casts."""
    widened, problem = _tried_copy(model, task.example_inputs)
    if problem is None and type(widened) is type(model):
        return widened
    try:
        expected = _output(model, task.example_inputs)
    except UserCodeError:
        return widened  # what fails is told by what checks the task, or there is no kernel of these types here
    kinds = sorted(
        {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    )
    mixes = f"task {task.name}: the {what} casts to types of its own beside its weights in {' and '.join(kinds)}"
    nearest = f"nearest: {what}.float(), and no casts to other types in forward"
    if problem is not None:
        reason = str(problem).removeprefix(f"{FORWARD_FAILS}: ")
        raise TaskError(f"{mixes}, and its float32 copy fails: {reason}; {nearest}") from problem
    found = _output(widened, map_inputs(task.example_inputs, float32))
    apart = (
        float((found - expected).norm() / expected.norm().clamp_min(1e-12))
        if found.shape == expected.shape
        else float("inf")
    )
    if not apart <= APART and bool(expected.isfinite().all()):
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
    """`model`, in whose forward nothing is cast to `types`; its class is one of its own that calls the forward it had."""
    kind = type(model)

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _InFloat32(types):
            return kind.forward(self, *args, **kwargs)

    model.__class__ = type(
        kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__}
    )
    return model


class _InFloat32(TorchFunctionMode):
    """Casts to some types, and what is made in them, are float32."""

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
        return (
            result.float()
            if isinstance(result, Tensor) and result.dtype in self.narrowed
            else result
        )

    def _wide(self, value: Any) -> Any:
        return torch.float32 if isinstance(value, torch.dtype) and value in self.narrowed else value


@contextlib.contextmanager
def noticed_casts() -> Iterator[list[str]]:
    """Notice `torch.autocast` and casts of a module's own parameters in what the block calls.

    Returns:
        A list, which gets a phrase for the first of them: what is done, where in the user's files, and the nearest thing that works.
    """
    seen: list[str] = []
    autocast = torch.amp.autocast_mode.autocast
    enter: Any = autocast.__enter__
    apply: Any = nn.Module._apply

    def notice_autocast(*_: object) -> None:
        if not seen and torch.is_autocast_enabled("cpu"):
            kind = _short(torch.get_autocast_dtype("cpu"))
            seen.append(
                f"runs under torch.autocast in {kind}{_here()}; no file can follow it, nearest: enabled=False"
            )

    def entered(context: Any) -> Any:
        result = enter(context)
        notice_autocast()
        return result

    def applied(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = [parameter.dtype for parameter in module.parameters()]
        result = apply(module, *args, **kwargs)
        changed = [
            parameter.dtype
            for parameter, kind in zip(module.parameters(), before, strict=False)
            if parameter.dtype != kind
        ]
        if changed and not seen:
            seen.append(
                f"casts its own parameters to {_short(changed[0])}{_here()}; no file can follow it, "
                "nearest: cast the model before the task is made"
            )
        return result

    # The context itself, for functions under it that no module calls; the hook, for what switches it on otherwise.
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
    """The user's line that is being run, in brackets."""
    return place([(frame.filename, frame.lineno or 0) for frame in traceback.extract_stack()])
