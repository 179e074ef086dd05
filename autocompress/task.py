"""What the user brings: a model, batches of data and a metric, checked once and called in one way."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import NotComputableError, TaskError, nearest_name

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
Batches = Iterable[tuple[Inputs, Any]]
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Task:
    """A model with the data and the metric that judge it.

    Attributes:
        name: names the run; a run folder belongs to one task.
        model: any nn.Module; it is never changed.
        example_inputs: one batch of inputs in the shape that latency is measured for.
        validation: re-iterable of (inputs, target) batches that the search sees; target may be None without a metric's need.
        metric: (outputs, targets) -> float, higher is better, on all outputs of a split concatenated.
        loss: (outputs, target) -> scalar for training; default: cross-entropy for integer targets, else squared error.
        divergence: (student, teacher) -> (n,) distance per sample; default: KL of the softmax, for embeddings 1 - cosine.
        train: batches for recovery; default: `calibration`.
        calibration: batches for ranges and sensitivity; default: `train`, else `validation`.
        test: batches that only the final front sees.
        towers: name -> patterns of module names; guessed when absent.
        student: an architecture to compress instead of `model`, which then teaches it.
        extra_metrics: name -> metric, reported beside accuracy.
        source: {"spec", "arguments"} with which `load_task` gives this task again; `load_task` sets it.
    """

    name: str
    model: nn.Module
    example_inputs: Inputs
    validation: Batches
    metric: Callable[[Any, Any], float]
    loss: Callable[[Any, Any], Tensor] | None = None
    divergence: Callable[[Any, Any], Tensor] | None = None
    train: Batches | None = None
    calibration: Batches | None = None
    test: Batches | None = None
    towers: Mapping[str, list[str]] | None = None
    student: nn.Module | None = None
    extra_metrics: Mapping[str, Callable[[Any, Any], float]] = field(default_factory=dict)
    source: Mapping[str, Any] | None = None

    @cached_property
    def first_batch(self) -> tuple[Inputs, Any]:
        """The first validation batch; TaskError when there is none."""
        return _first(self.validation, "validation")

    @cached_property
    def classifies(self) -> bool:
        """Whether targets are integers, so that outputs are logits."""
        target = self.first_batch[1]
        return isinstance(target, Tensor) and not target.is_floating_point() and target.dtype != torch.bool

    def training_batches(self) -> Batches:
        """What recovery trains on."""
        return self.train if self.train is not None else self.calibration_batches()

    def calibration_batches(self) -> Batches:
        """What ranges and sensitivity are measured on: never the test split."""
        for batches in (self.calibration, self.train):
            if batches is not None:
                return batches
        return self.validation

    def training_loss(self, outputs: Tensor, target: Any) -> Tensor:
        """The scalar task loss of one batch."""
        if self.loss is not None:
            return self.loss(outputs, target)
        if self.classifies:
            return F.cross_entropy(outputs.flatten(0, -2), target.flatten())
        return F.mse_loss(outputs, target.to(outputs.dtype))

    def output_divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(n,) distance of each sample's outputs from the teacher's, 0 when equal."""
        if self.divergence is not None:
            return self.divergence(student, teacher)
        if self.classifies:
            difference = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
            return difference.sum(-1).reshape(len(student), -1).mean(1).clamp_min(0)
        flat_student, flat_teacher = student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)
        if flat_teacher.shape[1] == 1:
            return (flat_student - flat_teacher).square().mean(1)
        return 1 - F.cosine_similarity(flat_student, flat_teacher, dim=1)


def call_model(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's primary output (n, ...): what it returns, or its `.logits`, or its first tensor."""
    if isinstance(inputs, Tensor):
        result = model(inputs)
    elif isinstance(inputs, Mapping):
        result = model(**inputs)
    else:
        result = model(*inputs)
    return primary_output(result)


def primary_output(result: Any) -> Tensor:
    """`result` itself, its `.logits`, its "logits" entry, or its first tensor."""
    if isinstance(result, Tensor):
        return result
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    values = list(result.values()) if isinstance(result, Mapping) else result
    for value in (logits, *(values if isinstance(values, (tuple, list)) else ())):
        if isinstance(value, Tensor):
            return value
    raise TaskError(f"task: the model returns {type(result).__name__}; expected a tensor, .logits or a tuple of tensors")


def map_inputs(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """`function` applied to each tensor of `inputs`."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def input_tensors(inputs: Inputs) -> list[Tensor]:
    """The tensors of `inputs` in calling order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, Mapping) else inputs)


def feed_of(inputs: Inputs, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """numpy inputs by the input names of an ONNX graph: by name where `inputs` has names, else in calling order."""
    if isinstance(inputs, Mapping) and set(names) == set(inputs):
        return {name: inputs[name].detach().cpu().numpy() for name in names}
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, input_tensors(inputs), strict=True)}


def batch_size(inputs: Inputs) -> int:
    """Length of the first dimension of the first tensor."""
    return len(input_tensors(inputs)[0])


def take_samples(batches: Batches, count: int) -> list[tuple[Inputs, Any]]:
    """The first `count` samples of `batches`, in their batches; the last one is cut."""
    taken: list[tuple[Inputs, Any]] = []
    for inputs, target in batches:
        size = batch_size(inputs)
        if size > count:
            inputs = map_inputs(inputs, partial(_first_rows, count))
            target = None if target is None else target[:count]
        taken.append((inputs, target))
        count -= size
        if count <= 0:
            break
    return taken


def _first_rows(count: int, tensor: Tensor) -> Tensor:
    return tensor[:count]


def score(metric: Callable[[Any, Any], float], outputs: Any, targets: Any, name: str = "metric") -> float:
    """The metric as a finite float; NotComputableError names it otherwise."""
    value = float(metric(outputs, targets))
    if not math.isfinite(value):
        raise NotComputableError(f"task: {name} returned {value} on {len(outputs)} outputs; it must be a finite number")
    return value


def check_task(task: Task) -> None:
    """Raise a one-line TaskError for what cannot work: empty loaders, a forward that fails, mixed devices."""
    for split in ("validation", "train", "calibration", "test"):
        batches = getattr(task, split)
        if batches is not None:
            _first(batches, split)
    if task.student is not None:
        raise TaskError("task: student is not supported yet; leave it out and compress the model itself")
    try:
        with torch.inference_mode():
            call_model(copy.deepcopy(task.model).cpu().eval(), map_inputs(task.example_inputs, lambda tensor: tensor.cpu()))
    except TaskError:
        raise
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        raise TaskError(f"task {task.name}: model.forward fails on example_inputs: {type(error).__name__}: {first_line}") from error


def _first(batches: Batches, split: str) -> tuple[Inputs, Any]:
    for batch in batches:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise TaskError(f"task: {split} yields {type(batch).__name__}; expected (inputs, target), target may be None")
        return batch[0], batch[1]
    raise TaskError(f"task: {split} is empty; expected at least one (inputs, target) batch")


class _Floats:
    """Batches whose half-precision tensors are float32; re-iterable as the batches are."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        for inputs, target in self.batches:
            yield map_inputs(inputs, _float32), _float32(target) if isinstance(target, Tensor) else target


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALVES else tensor


def float_task(task: Task) -> Task:
    """`task` itself, or, where its model has half-precision parameters, the same with a float32 copy of the model and its data.

    What is stored in 16 bits, and what in fewer, is for the search to say; the original stays as it is.
    """
    if not any(parameter.dtype in HALVES for parameter in task.model.parameters()):
        return task
    batches = {name: getattr(task, name) for name in ("validation", "train", "calibration", "test")}
    floats: dict[str, Any] = {name: None if found is None else _Floats(found) for name, found in batches.items()}
    return replace(task, model=copy.deepcopy(task.model).float(), example_inputs=map_inputs(task.example_inputs, _float32), **floats)


def load_task(spec: str, **arguments: Any) -> Task:
    """The Task that a function returns: "package.module:function" or "path/to/file.py:function", called with `arguments`."""
    place, _, function_name = spec.rpartition(":")
    if not place:
        raise TaskError(f"task {spec!r}: expected package.module:function or path/to/file.py:function")
    module = _load_file(Path(place), spec) if place.endswith(".py") else _load_module(place, spec)
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise TaskError(f"task {spec!r}: {place} has no function {function_name!r}; nearest: {nearest_name(function_name, functions)}")
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise TaskError(f"task {spec!r}: {error}; it takes {inspect.signature(function)}") from None
    task = function(**arguments)
    if not isinstance(task, Task):
        raise TaskError(f"task {spec!r}: {function_name} returned {type(task).__name__}; it must return autocompress.Task")
    where = str(Path(place).resolve()) if place.endswith(".py") else place
    return replace(task, source={"spec": f"{where}:{function_name}", "arguments": arguments})


def _load_module(name: str, spec: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise TaskError(
            f"task {spec!r}: no module {error.name!r}; expected an importable module or a path that ends in .py, "
            "for example autocompress.tasks:easy_vqa"
        ) from None


def _load_file(path: Path, spec: str) -> Any:
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise TaskError(f"task {spec!r}: no file {path}; nearest: {nearest_name(path.name, siblings) or 'none'}")
    name = f"autocompress_task_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise TaskError(f"task {spec!r}: {path} fails to load: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module
