"""Describe a task: a model, batches of data and a metric, as the user brings them.

`measure.prepare` checks a task and completes it; everything behind it reads the task's fields and
asks it for outputs, losses and divergences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.task.batch_checks import first_batch
from autocompress.task.batches import (
    Batches,
    Inputs,
    cut,
    cuttable,
    map_inputs,
    seeded,
    take_samples,
)
from autocompress.task.calls import (
    FORWARD_FAILS,
    Metric,
    copies_for,
    named_outputs,
    primary_output,
    run_model,
    target_of,
)
from autocompress.task.copies import copied, with_gradients
from autocompress.task.loading import Unlabelled
from autocompress.task.output_kinds import find_kinds
from autocompress.task.outputs import OutputKind, as_labels, default_loss, sample_divergence
from autocompress.task.user_code import UserCodeError, out_of_memory, user_code


@dataclass(frozen=True)
class OutputMetric:
    """Describe an extra metric of one output of a model that returns several.

    Attributes:
        output: key, attribute or position ("1") of the output, one of `Task.output_weights`.
        metric: as `Task.metric`; of targets that are mappings by output it gets the entry of its
            own output.
    """

    output: str
    metric: Metric


# Metrics of model folders of which smaller values are better.
ERRORS = ("perplexity", "wer", "cer", "squared_error")
BACKWARD_TRIED = 50_000_000  # parameters; the backward pass of larger models is not tried
MOST_TRIED = 2  # samples that it is tried with


@dataclass(frozen=True)
class Pretrained:
    """Describe where the model of a task comes from.

    Attributes:
        folder: path of the model folder, with config, tokenizer and processors.
        task: name of the task, such as "text-classification".
        metric: name of the task's metric.
        special_tokens: numbers of the tokens that are no part of the text.
        files: hash of each file that is copied beside a model.onnx, by its name in the folder; no
            weights are among them, and code only if it was trusted.
    """

    folder: str
    task: str
    metric: str
    special_tokens: tuple[int, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric_sign(self) -> float:
        """Return -1 if accuracy is the negative of the metric, which counts errors, else 1."""
        return -1.0 if self.metric in ERRORS else 1.0


@dataclass(frozen=True)
class Task:
    """Hold a model with the data and the metric that judge it.

    Attributes:
        name: names the run; a run folder belongs to one task.
        model: any nn.Module; it is never changed.
        example_inputs: one batch of inputs in the shape that latency is measured for.
        validation: re-iterable of (inputs, target) batches that the search sees; the target may be
            None if the metric needs none.
        metric: (outputs, targets) -> float, higher is better, on all outputs of a split
            concatenated. Where batches differ in shape (sequences of several lengths), it gets
            lists with an entry per sample; a metric that takes no lists must be a mean over samples
            or positions, and is averaged over batches. Or an accumulator, such as a metric of
            torchmetrics, its class, or a function without arguments that makes one: it gets
            `update(outputs, target)` for each batch and then `compute()`, so that the outputs of a
            split are never held at once. Each evaluation begins with a new one.
        loss: (outputs, target) -> scalar for training. Default: cross-entropy for classes and class
            probabilities, binary cross-entropy for 0 and 1 per element, else squared error; targets
            of -100 do not count.
        divergence: (student, teacher) -> (n,) distance per sample. Default: KL of classes or of
            each yes or no, the squared difference of single numbers, 1 - cosine of embeddings.
        train: batches for recovery; default: `calibration`, else the inputs of `validation` without
            their targets.
        calibration: batches for ranges and sensitivity; default: `train`, else `validation`.
        test: batches that only the final front sees.
        towers: name -> patterns of module names; guessed when absent.
        student: an architecture to compress instead of `model`, which then teaches it.
        extra_metrics: name -> metric, reported beside accuracy, and a limit or an objective if the
            search is told so; an `OutputMetric` judges another output than the primary one.
        source: {"spec", "arguments"} with which `load_task` gives this task again; `load_task` sets
            it.
        output_weights: for models of several outputs that recovery trains: weight by key, attribute
            or position ("0"). Targets are then mappings by the same names, and `loss` gets a
            mapping of outputs; an output without a target is distilled without a label.
        matched_modules: module of the student -> module of the teacher whose output feature
            distillation compares; default: by name.
        dynamic: argument name or position ("0") -> {dimension: name} left free in files. Free
            anyway are the batch, the sequence of integer inputs and dimensions in which the batches
            differ.
        batch_first: True if the first dimension of all inputs and outputs is the batch, so that
            batches may be cut and joined along it; None: found out by calling the model.
        rows_independent: True if the samples of a list of validation batches may be mixed across
            batches, so that any first part of them is a random sample (for data sorted by class,
            say); metrics get them in their own order.
        latency_inputs: name -> further inputs at which the latency of the front's files is measured
            and reported, beside `example_inputs`, which decides. A dimension in which they differ
            from it is free in the files.
        data_memory: most memory that a validation, calibration or test split takes, bytes or a text
            such as "2GB"; a split is kept so that each pass is the same.
        augment: inputs of a training batch -> a random view of them of the same shapes and types,
            such as flipped and cropped images, for which the targets still hold. Recovery gives
            student and teacher the same view. It draws from the generators of torch, NumPy or
            `random`.
        notes: lines that are printed before the task is used, such as how its data were cut.
        sample_dims: output -> its dimension that counts samples, where it is not the first; the
            primary output is "" if `output_weights` is not given. `measure.prepare` sets it, and
            moves that dimension to the front: of outputs by `rows`, and of targets in the splits.
        typos: (tokens (n, length), generator) -> tokens of the same shape, of the same texts with
            typing errors; the files of the front are also judged on them. `from_pretrained` sets
            it.
        pretrained: the model folder that the task was made of; `from_pretrained` sets it.
    """

    name: str
    model: nn.Module
    example_inputs: Inputs
    validation: Batches
    metric: Metric
    loss: Callable[[Any, Any], Tensor] | None = None
    divergence: Callable[[Any, Any], Tensor] | None = None
    train: Batches | None = None
    calibration: Batches | None = None
    test: Batches | None = None
    towers: Mapping[str, list[str]] | None = None
    student: nn.Module | None = None
    extra_metrics: Mapping[str, Metric | OutputMetric] = field(default_factory=dict)
    source: Mapping[str, Any] | None = None
    output_weights: Mapping[str, float] | None = None
    matched_modules: Mapping[str, str] | None = None
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    batch_first: bool | None = None
    rows_independent: bool = False
    data_memory: str | float = "2GB"
    latency_inputs: Mapping[str, Inputs] = field(default_factory=dict)
    augment: Callable[[Inputs], Inputs] | None = None
    notes: tuple[str, ...] = ()
    sample_dims: Mapping[str, int] | None = None
    typos: Callable[[Tensor, torch.Generator], Tensor] | None = None
    pretrained: Pretrained | None = None

    @cached_property
    def first_batch(self) -> tuple[Inputs, Any]:
        """Return the first validation batch; a TaskError says that there is none."""
        return first_batch(self.validation, "validation")

    @property
    def pipeline(self) -> str | None:
        """Return the Hugging Face name of the task, None for a task of another origin."""
        return None if self.pretrained is None else self.pretrained.task

    @cached_property
    def primary_name(self) -> str:
        """Return the primary output's name among `output_weights`; "" if they are not given."""
        names = list(self.output_weights or ("",))
        return "logits" if "logits" in names else names[0]

    @cached_property
    def further_outputs(self) -> tuple[str, ...]:
        """Return the other outputs of `output_weights`, in the order in which a file has them."""
        return tuple(name for name in self.output_weights or () if name != self.primary_name)

    @cached_property
    def has_output_metrics(self) -> bool:
        """Return True if a metric needs more than the primary output."""
        return any(isinstance(metric, OutputMetric) for metric in self.extra_metrics.values())

    @cached_property
    def output_kinds(self) -> Mapping[str, OutputKind | str]:
        """Return the kind of each output of `outputs_of`, or the reason why it is not known.

        It is read from the first batches that have targets.
        """
        model = copied(self.model)
        what = f"task {self.name}: model.forward fails on validation"
        possible = (self.validation, self.train, self.calibration)
        splits = [split for split in possible if split is not None]

        def run(inputs: Inputs) -> dict[str, Tensor]:
            return self.outputs_of(model, map_inputs(inputs, lambda tensor: tensor.cpu()), what)

        return find_kinds(splits, run, target_of)

    def kind_of(self, name: str) -> OutputKind:
        """Return what an output holds.

        Args:
            name: of the output; "" for the primary one if `output_weights` is not given.

        Returns:
            The kind of the output.

        Raises:
            TaskError: its shape and targets do not tell.
        """
        kind = self.output_kinds[name]
        if isinstance(kind, OutputKind):
            return kind
        needed = ["divergence"] if self.divergence is None else []
        needed += ["loss"] if self.loss is None and self.has_labels else []
        if name != self.primary_name:
            raise TaskError(
                f"task {self.name}: output {name!r}: {kind}; "
                "give it other targets, or leave it out of output_weights"
            )
        raise TaskError(f"task {self.name}: {kind}; give {' and '.join(needed)}")

    def is_logits(self, name: str) -> bool:
        """Return True if an output gives probabilities.

        Args:
            name: of the output, as `kind_of`.

        Returns:
            True for classes and for one logit per yes or no.

        Raises:
            TaskError: its shape and targets do not tell.
        """
        return self.kind_of(name).is_logits

    @cached_property
    def has_labels(self) -> bool:
        """Return True if training batches have targets that give a loss."""
        return self.teaches(first_batch(self.training_batches(), "train")[1])

    @cached_property
    def no_gradient(self) -> str:
        """Return why no training can reach the weights; "" if it can, or if memory is short.

        It is read from the first training batch, with all weights learning. Trainings that lack
        memory make their batches smaller, so a lack here tells nothing.
        """
        try:
            return self._gradient_problem()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return ""

    def _gradient_problem(self) -> str:
        inputs, target = first_batch(self.training_batches(), "train")
        model = copied(self.student or self.model, shares_weights=True)
        inputs = map_inputs(inputs, lambda tensor: tensor.cpu())
        if next(model.parameters(), None) is None:
            return ""  # it is refused later: there is nothing to compress
        with with_gradients(model):
            try:
                outputs = self.outputs_of(model, inputs)
            except UserCodeError as error:
                return f"with gradients, {str(error).removeprefix('task: ')}"
            if not any(output.requires_grad for output in outputs.values()):
                return "the outputs of the model have no gradient"
            primary = outputs[self.primary_name]
            own_divergence = self.divergence is not None and primary.requires_grad
            if own_divergence and not self.output_divergence(primary, primary).requires_grad:
                return "the divergence of the task has no gradient"
            own_loss = self.loss is not None and self.teaches(target)
            if own_loss and not self.training_loss(outputs, target).requires_grad:
                return "the loss of the task has no gradient"
        return self._backward_problem(model)

    def _backward_problem(self, model: nn.Module) -> str:
        """Return why the backward pass of the example fails; "" if it does not.

        A model fails there that writes in place to what its gradient needs, as some heads of
        detectors do, or that has an autograd function with a wrong backward.

        Args:
            model: a copy with parameters of its own, all learning, which get gradients. Large ones
                are not tried: their gradients take memory, and they are trained block by block.
        """
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if learning >= BACKWARD_TRIED:
            return ""
        inputs = map_inputs(self.example_inputs, lambda tensor: tensor.detach().cpu())
        if self.can_cut(inputs, None):  # the activations of a sample tell it
            inputs, _ = cut(inputs, None, slice(MOST_TRIED))
        with torch.enable_grad(), suppress(UserCodeError):  # forward has run on a training batch
            primary = self.outputs_of(model, inputs)[self.primary_name]
            if not primary.requires_grad:
                return ""  # another output has the gradient
            try:
                # As trainings do: checkpoints that run forward again take no list of inputs.
                torch.autograd.backward(primary.sum())
            except Exception as error:
                if out_of_memory(error):
                    raise
                problem = str(error).partition(" Hint:")[0].strip().splitlines()
                reason = problem[0] if problem else type(error).__name__
                return f"the backward pass of the model fails ({reason.rstrip('.')})"
        return ""

    def teaches(self, target: Any) -> bool:
        """Return True if a target gives a loss.

        Args:
            target: of one batch, or None.

        Returns:
            False for None, and for strings without a `loss`, since only a metric reads strings.
        """
        if target is None:
            return False
        parts = [target_of(target, name) for name in self.output_weights or ("",)]
        parts = [part for part in parts if part is not None]
        if self.loss is not None or not parts:
            return True
        return any(as_labels(part) is not None for part in parts)

    def training_batches(self) -> Batches:
        """Return the batches that recovery trains on.

        Without `train` and `calibration` these are the inputs of `validation` without their
        targets, so that no answer is learned by heart.
        """
        for batches in (self.train, self.calibration):
            if batches is not None:
                return batches
        return Unlabelled(self.validation)

    def calibration_batches(self) -> Batches:
        """Return the batches that ranges and sensitivity are measured on, never those of `test`."""
        for batches in (self.calibration, self.train):
            if batches is not None:
                return batches
        return self.validation

    def view(self, inputs: Inputs, seed: int) -> Inputs:
        """Return the view of a training batch that student and teacher see.

        Source: Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and
        consistent".

        Args:
            inputs: one batch of inputs; it is not changed.
            seed: the same number gives the same view.

        Returns:
            What `augment` makes of the inputs; the inputs themselves without it.

        Raises:
            UserCodeError: `augment` fails.
        """
        if self.augment is None:
            return inputs
        own = map_inputs(inputs, torch.clone)
        with seeded(seed), torch.no_grad(), user_code("task: augment fails"):
            return self.augment(own)

    def can_cut(self, inputs: Inputs, target: Any) -> bool:
        """Return True if a part of a batch is a smaller batch.

        Args:
            inputs: one batch of inputs.
            target: its target, or None.

        Returns:
            False if the first dimension is not the batch.
        """
        return self.batch_first is not False and cuttable(inputs, target)

    def first_samples(self, batches: Batches, count: int) -> list[tuple[Inputs, Any]]:
        """Return the first batches with a number of samples.

        Args:
            batches: a split.
            count: number of samples.

        Returns:
            The batches; the last one is cut if the first dimension is the batch.
        """
        return take_samples(batches, count, whole=self.batch_first is False)

    def outputs_of(
        self, model: nn.Module, inputs: Inputs, what: str = FORWARD_FAILS
    ) -> dict[str, Tensor]:
        """Return the outputs that recovery trains.

        Args:
            model: the model, the student, or a compressed copy of one of them.
            inputs: one batch of inputs on the model's device.
            what: how the error begins if forward fails.

        Returns:
            Name -> (n, ...); the primary output is "" if `output_weights` is not given.

        Raises:
            UserCodeError: forward fails.
            TaskError: the model does not return an output of `output_weights`.
        """
        result = run_model(model, inputs, what)
        if self.output_weights is None:
            return {"": self.rows(primary_output(result))}
        outputs = named_outputs(result, tuple(self.output_weights))
        return {name: self.rows(output, name) for name, output in outputs.items()}

    def rows(self, output: Tensor, name: str | None = None) -> Tensor:
        """Return an output with the dimension that counts samples in front.

        Args:
            output: as the model or a file gives it.
            name: of the output; default: the primary one.

        Returns:
            (n, ...), a view.
        """
        dims = self.sample_dims or {}
        return output.movedim(dims.get(self.primary_name if name is None else name, 0), 0)

    def training_loss(self, outputs: Mapping[str, Tensor], target: Any) -> Tensor:
        """Return the task loss of one batch.

        Args:
            outputs: as `outputs_of` returns them.
            target: of the batch.

        Returns:
            Scalar: the weighted sum over the outputs that have a target.

        Raises:
            UserCodeError: the task's own loss fails.
            TaskError: the target fits no output.
        """
        if self.loss is not None:
            with user_code("task: loss fails"):
                given = outputs if self.output_weights else outputs[""]
                return self.loss(*copies_for(self.loss, given, target))
        weights = self.output_weights or {"": 1.0}
        losses = []
        for name, output in outputs.items():
            labels = as_labels(target_of(target, name))
            if labels is not None:
                losses.append(weights[name] * default_loss(self.kind_of(name), output, labels))
        if not losses:
            raise TaskError(
                f"task: the target has none of the outputs {sorted(outputs)}; "
                "nearest: None, to train without labels"
            )
        return torch.stack(losses).sum()

    def output_divergence(
        self, student: Tensor, teacher: Tensor, name: str | None = None
    ) -> Tensor:
        """Return the distance of each sample's output from the teacher's.

        Args:
            student: (n, ...) output of the student.
            teacher: the same output of the teacher.
            name: of the output; default: the primary one.

        Returns:
            (n,), 0 where they are equal.

        Raises:
            UserCodeError: the task's own divergence fails.
        """
        name = self.primary_name if name is None else name
        if self.divergence is not None and name == self.primary_name:
            with user_code("task: divergence fails"):
                return self.divergence(*copies_for(self.divergence, student, teacher))
        return sample_divergence(self.kind_of(name), student, teacher)
