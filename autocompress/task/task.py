"""What the user brings: a model, batches of data and a metric, checked once and called in one way."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.errors import NotComputableError, TaskError, nearest_name
from autocompress.task.batches import Batches, Inputs, cuttable, map_inputs, take_samples
from autocompress.task.copies import copied
from autocompress.task.loading import Unlabelled, checked
from autocompress.task.output_kinds import find_kinds
from autocompress.task.outputs import OutputKind, as_labels, default_loss, sample_divergence
from autocompress.task.user_code import user_code

FORWARD_FAILS = "task: model.forward fails"


@dataclass(frozen=True)
class OutputMetric:
    """An extra metric of one output of a model that returns several, which `Task.output_weights` names.

    Attributes:
        output: key, attribute or position ("1") of the output.
        metric: (outputs, targets) -> float, higher is better; where targets are mappings by output it gets those of its own.
    """

    output: str
    metric: Callable[[Any, Any], float]


@dataclass(frozen=True)
class Task:
    """A model with the data and the metric that judge it.

    Attributes:
        name: names the run; a run folder belongs to one task.
        model: any nn.Module; it is never changed.
        example_inputs: one batch of inputs in the shape that latency is measured for.
        validation: re-iterable of (inputs, target) batches that the search sees; target may be None without a metric's need.
        metric: (outputs, targets) -> float, higher is better, on all outputs of a split concatenated; where those of its batches differ
            in shape (sequences of several lengths), on lists with an entry per sample, or, where it takes none and is a mean over samples
            or positions, the mean over batches.
        loss: (outputs, target) -> scalar for training; default: cross-entropy for classes and class probabilities, binary cross-entropy
            for 0 and 1 per element, else squared error; targets of -100 do not count.
        divergence: (student, teacher) -> (n,) distance per sample; default: KL of classes or of each yes or no, the squared difference
            of single numbers, for embeddings 1 - cosine.
        train: batches for recovery; default: `calibration`, else the inputs of `validation` without their targets.
        calibration: batches for ranges and sensitivity; default: `train`, else `validation`.
        test: batches that only the final front sees.
        towers: name -> patterns of module names; guessed when absent.
        student: an architecture to compress instead of `model`, which then teaches it.
        extra_metrics: name -> metric, reported beside accuracy, and limits or objectives where the search is told so; an `OutputMetric`
            judges another output than the primary one.
        source: {"spec", "arguments"} with which `load_task` gives this task again; `load_task` sets it.
        output_weights: for models of several outputs that recovery trains: weight by key, attribute or position ("0"). Targets are then
            mappings by the same names (one that is missing is distilled without its label), and `loss` gets a mapping of outputs.
        matched_modules: module of the student -> module of the teacher, whose outputs feature distillation compares; default: by name.
        dynamic: argument name or position ("0") -> {dimension: name} that files leave free, beside the batch, the sequence of integer
            inputs and what differs among the batches, which are free anyway.
        batch_first: whether the first dimension of all inputs and outputs is the batch, so that batches may be cut and joined along it;
            None: found out by calling the model.
        rows_independent: whether the samples of a list of validation batches may be mixed across batches, so that any first part of them
            is a random sample (for data sorted by class, say); metrics get them in their own order.
        latency_inputs: name -> further inputs at which the latency of the front's files is measured and reported, beside `example_inputs`,
            which decides; what differs from it there is free in the files.
        data_memory: most that a validation, calibration or test split takes in memory, where it is kept so that each pass is the same.
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
    extra_metrics: Mapping[str, Callable[[Any, Any], float] | OutputMetric] = field(
        default_factory=dict
    )
    source: Mapping[str, Any] | None = None
    output_weights: Mapping[str, float] | None = None
    matched_modules: Mapping[str, str] | None = None
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    batch_first: bool | None = None
    rows_independent: bool = False
    data_memory: str | float = "2GB"
    latency_inputs: Mapping[str, Inputs] = field(default_factory=dict)

    @cached_property
    def first_batch(self) -> tuple[Inputs, Any]:
        """The first validation batch; TaskError when there is none."""
        return _first(self.validation, "validation")

    @cached_property
    def primary_name(self) -> str:
        """The primary output's name among `output_weights`; "" when there are none."""
        names = list(self.output_weights or ("",))
        return "logits" if "logits" in names else names[0]

    @cached_property
    def further_outputs(self) -> tuple[str, ...]:
        """The outputs behind the primary one in the order in which a file has them."""
        return tuple(name for name in self.output_weights or () if name != self.primary_name)

    @cached_property
    def has_output_metrics(self) -> bool:
        """Whether a metric needs more than the primary output."""
        return any(isinstance(metric, OutputMetric) for metric in self.extra_metrics.values())

    @cached_property
    def output_kinds(self) -> Mapping[str, OutputKind | str]:
        """What each output of `outputs_of` holds, or the reason why that is not known; read from the first batches that have targets."""
        model = copied(self.model)
        splits = [
            split for split in (self.validation, self.train, self.calibration) if split is not None
        ]

        def run(inputs: Inputs) -> dict[str, Tensor]:
            return self.outputs_of(
                model,
                map_inputs(inputs, lambda tensor: tensor.cpu()),
                f"task {self.name}: model.forward fails on validation",
            )

        return find_kinds(splits, run, target_of)

    def kind_of(self, name: str) -> OutputKind:
        """What an output holds; TaskError where its shape and targets do not say."""
        kind = self.output_kinds[name]
        if isinstance(kind, OutputKind):
            return kind
        needed = ["divergence"] if self.divergence is None else []
        needed += ["loss"] if self.loss is None and self.has_labels else []
        if name != self.primary_name:
            raise TaskError(
                f"task {self.name}: output {name!r}: {kind}; give it other targets, or leave it out of output_weights"
            )
        raise TaskError(f"task {self.name}: {kind}; give {' and '.join(needed)}")

    def is_logits(self, name: str) -> bool:
        """Whether an output gives probabilities."""
        return self.kind_of(name).is_logits

    @cached_property
    def has_labels(self) -> bool:
        """Whether training batches have targets that give a loss."""
        return self.teaches(_first(self.training_batches(), "train")[1])

    def teaches(self, target: Any) -> bool:
        """Whether a target gives a loss; strings give none without a `loss`, and are for the metric alone."""
        known = [
            part
            for name in self.output_weights or ("",)
            if (part := target_of(target, name)) is not None
        ]
        return target is not None and (
            self.loss is not None or not known or any(as_labels(part) is not None for part in known)
        )

    def training_batches(self) -> Batches:
        """What recovery trains on: where there is nothing but `validation`, its inputs alone, so that no answer is learned by heart."""
        for batches in (self.train, self.calibration):
            if batches is not None:
                return batches
        return Unlabelled(self.validation)

    def calibration_batches(self) -> Batches:
        """What ranges and sensitivity are measured on: never the test split."""
        for batches in (self.calibration, self.train):
            if batches is not None:
                return batches
        return self.validation

    def can_cut(self, inputs: Inputs, target: Any) -> bool:
        """Whether a part of the batch is a smaller batch."""
        return self.batch_first is not False and cuttable(inputs, target)

    def first_samples(self, batches: Batches, count: int) -> list[tuple[Inputs, Any]]:
        """The first batches with `count` samples, the last one cut where the first dimension is the batch."""
        return take_samples(batches, count, whole=self.batch_first is False)

    def outputs_of(
        self, model: nn.Module, inputs: Inputs, what: str = FORWARD_FAILS
    ) -> dict[str, Tensor]:
        """The outputs that recovery trains, by name; the primary one is "" when `output_weights` names none. `what` as `run_model`."""
        result = run_model(model, inputs, what)
        return (
            {"": primary_output(result)}
            if self.output_weights is None
            else named_outputs(result, tuple(self.output_weights))
        )

    def training_loss(self, outputs: Mapping[str, Tensor], target: Any) -> Tensor:
        """The scalar task loss of one batch: of each output that has a target, weighted."""
        if self.loss is not None:
            with user_code("task: loss fails"):
                return self.loss(outputs if self.output_weights else outputs[""], target)
        weights = self.output_weights or {"": 1.0}
        known = {
            name: found
            for name in outputs
            if (found := as_labels(target_of(target, name))) is not None
        }
        if not known:
            raise TaskError(
                f"task: the target has none of the outputs {sorted(outputs)}; nearest: None, to train without labels"
            )
        return torch.stack(
            [
                weights[name] * default_loss(self.kind_of(name), outputs[name], found)
                for name, found in known.items()
            ]
        ).sum()

    def output_divergence(
        self, student: Tensor, teacher: Tensor, name: str | None = None
    ) -> Tensor:
        """(n,) distance of each sample's outputs from the teacher's, 0 when equal; of the primary output unless another is named."""
        name = self.primary_name if name is None else name
        if self.divergence is not None and name == self.primary_name:
            with user_code("task: divergence fails"):
                return self.divergence(student, teacher)
        return sample_divergence(self.kind_of(name), student, teacher)


def target_of(target: Any, name: str) -> Any:
    """The target of one output; what is not a mapping by output belongs to all."""
    return target.get(name) if isinstance(target, Mapping) else target


def call_model(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's primary output (n, ...): what it returns, or its `.logits`, or its first tensor."""
    return primary_output(run_model(model, inputs))


def run_model(model: nn.Module, inputs: Inputs, what: str = FORWARD_FAILS) -> Any:
    """Everything that the model returns; it gets copies of `inputs`, since it may write to them. UserCodeError: `what`, and why."""
    given = map_inputs(inputs, torch.clone)
    # A traced program prints its source where it fails, beside the error.
    silent = (
        contextlib.redirect_stderr(io.StringIO())
        if isinstance(model, fx.GraphModule)
        else contextlib.nullcontext()
    )
    with user_code(what), silent:
        if isinstance(given, Tensor):
            return model(given)
        return model(**given) if isinstance(given, Mapping) else model(*given)


def named_outputs(result: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Entries, positions ("0") or attributes of what a model returns; TaskError for a name that is not there."""
    if isinstance(result, Mapping):
        known = dict(result)
    elif isinstance(result, (tuple, list)):
        known = {str(i): value for i, value in enumerate(result)}
    else:
        known = {} if isinstance(result, Tensor) else vars(result)
    for name in names:
        if not isinstance(known.get(name), Tensor):
            near = nearest_name(name, list(known)) or "none"
            raise TaskError(
                f"task: output_weights names {name!r}, which the model does not return as a tensor; nearest: {near}"
            )
    return {name: known[name] for name in names}


def primary_output(result: Any) -> Tensor:
    """`result` itself, its `.logits`, its "logits" entry, its first tensor, or the first inside of what it holds."""
    found = _first_tensor(result)
    if found is not None:
        return found
    raise TaskError(
        f"task: the model returns {type(result).__name__}; expected a tensor, .logits or a tuple of tensors"
    )


def _first_tensor(result: Any) -> Tensor | None:
    if isinstance(result, Tensor):
        return result
    logits = (
        result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    )
    values = (
        result.values()
        if isinstance(result, Mapping)
        else result
        if isinstance(result, (tuple, list))
        else ()
    )
    for value in (logits, *values):
        if isinstance(value, Tensor):
            return value
    return next((found for value in values if (found := _first_tensor(value)) is not None), None)


def score(
    metric: Callable[[Any, Any], float], outputs: Any, targets: Any, name: str = "metric"
) -> float:
    """The metric as a finite float; NotComputableError names it otherwise, UserCodeError says where it fails."""
    with user_code(f"task: {name} fails"):
        found: Any = metric(outputs, targets)
    try:
        value = float(found)
    except (TypeError, ValueError, RuntimeError):
        came = (
            f"a tensor of shape {tuple(found.shape)}"
            if isinstance(found, Tensor)
            else repr(found)[:60]
        )
        raise NotComputableError(
            f"task: {name} returned {came}; it must be a finite number"
        ) from None
    if not math.isfinite(value):
        raise NotComputableError(
            f"task: {name} returned {value} on {len(outputs)} outputs; it must be a finite number"
        )
    return value


def check_task(task: Task) -> None:
    """Raise a one-line TaskError for what cannot work: empty loaders, a forward that fails, mixed devices."""
    for split in ("validation", "train", "calibration", "test"):
        batches = getattr(task, split)
        if batches is not None:
            _first(batches, split)
    for model, what in ((task.model, "model"), (task.student, "student")):
        if model is None:
            continue
        _check_initialised(task, model, what)
        with torch.no_grad(), user_code(f"task {task.name}: the {what} cannot be copied"):
            own = copy.deepcopy(model).cpu().eval()
        inputs = map_inputs(task.example_inputs, lambda tensor: tensor.cpu())
        with torch.no_grad():
            result = run_model(
                own, inputs, f"task {task.name}: {what}.forward fails on example_inputs"
            )
        _check_outputs(task, result)
    _check_kinds(task)
    _check_matched(task)
    for name, metric in task.extra_metrics.items():
        known = tuple(task.output_weights or ())
        if isinstance(metric, OutputMetric) and metric.output not in known:
            near = (
                nearest_name(metric.output, list(known))
                or "none, since output_weights is not given"
            )
            raise TaskError(
                f"task {task.name}: metric {name} reads output {metric.output!r}, which output_weights lacks; nearest: {near}"
            )


def _check_initialised(task: Task, model: nn.Module, what: str) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(value):
            raise TaskError(
                f"task {task.name}: {what}'s {name} has no shape yet; call the {what} once before the task is made"
            )


def _check_outputs(task: Task, result: Any) -> None:
    primary = primary_output(result)
    names = tuple(task.output_weights or ())
    if names and named_outputs(result, names)[task.primary_name] is not primary:
        raise TaskError(
            f"task {task.name}: output_weights must name the model's first output (or logits) first, got {list(names)}"
        )


def _check_kinds(task: Task) -> None:
    """TaskError where the default divergence or loss needs to know what outputs hold, and the targets do not say."""
    learns = task.loss is None and task.has_labels
    for name in task.output_weights or ("",):
        if learns or task.divergence is None or name != task.primary_name:
            task.kind_of(name)
    if learns:
        inputs, target = _first(task.training_batches(), "train")
        with torch.no_grad():
            model, inputs = copied(task.model), map_inputs(inputs, lambda tensor: tensor.cpu())
            task.training_loss(task.outputs_of(model, inputs), target)


def _check_matched(task: Task) -> None:
    for learns, teaches in (task.matched_modules or {}).items():
        for model, name in ((task.student or task.model, learns), (task.model, teaches)):
            known = dict(model.named_modules())
            if name not in known:
                near = nearest_name(name, list(known))
                raise TaskError(
                    f"task {task.name}: matched_modules names {name!r}, which is no module; nearest: {near or 'none'}"
                )


def _first(batches: Batches, split: str) -> tuple[Inputs, Any]:
    for batch in batches:
        return checked(batch, split)
    raise TaskError(f"task: {split} is empty; expected at least one (inputs, target) batch")
