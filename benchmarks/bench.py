"""Give benchmarks a task whose candidates are simulated, trained, written and judged.

`bench_latency.py` times models, `bench_search.py` runs parts of a search. Only these three files of
the folder import inner modules (tests/test_house.py); the others use public names, `Compressor` and
the command line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress import Candidate, Distillation, ModuleConfig, Task, find_modules
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.recover import recover
from autocompress.compress.recover.teacher import Teacher
from autocompress.export.compressor import Compressor
from autocompress.export.subject import builder_for
from autocompress.integer_form import IntegerForm
from autocompress.measure.accuracy import evaluate_model, evaluate_session, model_outputs
from autocompress.targets.device.litert.flat_file import sharing_builder
from autocompress.targets.device.result import versions
from autocompress.targets.device.sessions import LITERT, SessionSettings, open_session
from autocompress.targets.target import find_target
from autocompress.task.batches import feed_of

# Given on as they are.
__all__ = ["LITERT", "feed_of", "open_session", "sharing_builder", "versions"]

CPU = torch.device("cpu")
DEFAULT = SessionSettings()  # one thread
INTEGER = ("linear", "conv")  # kinds of modules on integer kernels
ONNXRUNTIME = "onnxruntime-cpu"
Batches = Sequence[tuple[Any, Any]]
Model = bytes | str  # content or path of a file


@dataclass
class Bench:
    """Hold a task whose candidates are simulated, trained and written.

    Attributes:
        compressor: makes the candidates.
        task: gives metric and data.
        test: batches that accuracy is measured on.
    """

    compressor: Compressor
    task: Task
    test: Batches = field(default_factory=list)

    @property
    def modules(self) -> Any:
        """Return the compressible modules of the exported graph."""
        return self.compressor.builder.module_map

    @property
    def baseline(self) -> bytes:
        """Return the content of the float file."""
        return self.compressor.builder.baseline

    def uniform(self, bits: int, activation_bits: int = 8, **axes: Any) -> Candidate:
        """Return a candidate with all modules alike; embeddings keep float inputs.

        Args:
            bits: of the weights.
            activation_bits: of linear and convolutional modules.
            axes: further fields of `ModuleConfig`.
        """
        configs = {}
        for module in self.modules:
            inputs = activation_bits if module.kind in INTEGER else 32
            configs[module.name] = ModuleConfig(bits, inputs, **axes)
        return Candidate.of(configs)

    def simulated(self, candidate: Candidate, batches: Batches, trained: Any = None) -> float:
        """Return the accuracy of a simulated candidate.

        Args:
            candidate: configs of modules.
            batches: what accuracy is measured on.
            trained: from `trained`; None takes the compressed weights.
        """
        return accuracy_of(self.task, self.compressor.stitcher.apply(candidate, trained), batches)

    def file(self, candidate: Candidate, trained: Any = None) -> bytes:
        """Return the content of a candidate's file.

        Args:
            candidate: configs of modules.
            trained: from `trained`; None takes the compressed weights.
        """
        return self.compressor.graph(candidate, trained).SerializeToString()

    def from_file(self, candidate: Candidate, trained: Any = None) -> tuple[float, int]:
        """Return test accuracy and bytes of a candidate's file.

        Args:
            candidate: configs of modules.
            trained: from `trained`; None takes the compressed weights.
        """
        data = self.file(candidate, trained)
        return file_accuracy(self.task, data, self.test), len(data)

    def trained(self, candidate: Candidate) -> Any:
        """Return weights and ranges of a candidate after its recovery.

        Args:
            candidate: its distillation tells the steps.
        """
        return recovered(self.compressor, self.task, candidate)


def compressor_of(
    task: Task, form: str | None = None, activation_range: str = "squared_error"
) -> Compressor:
    """Return the compressor of a task on ONNX Runtime, set up as `autocompress.compress` does.

    Args:
        task: the model and its data.
        form: "signed", "reduced" or "unsigned" integer weights in all modules; None takes the
            fastest portable form of each.
        activation_range: how static activation ranges are chosen.
    """
    modules = find_modules(task.model, task.example_inputs, task.towers)
    builder = builder_for(
        task, modules, find_target(ONNXRUNTIME), activation_range=activation_range
    )
    if form is not None:
        builder = replace(builder, forms={module.name: IntegerForm(form) for module in modules})
    return Compressor.of(builder)


def distilled(candidate: Candidate, steps: int, schedule: str = "one_shot") -> Candidate:
    """Return a candidate with recovery.

    Args:
        candidate: configs of modules.
        steps: of training.
        schedule: how pruning grows, as in `Distillation`.
    """
    return replace(candidate, distillation=Distillation(0.3, 2.0, steps, schedule))


def teacher_of(
    task: Task, compressor: Compressor, temperature: float, answers: Path | None = None
) -> Teacher:
    """Return the float model as the teacher of recovery.

    Args:
        task: the model and its data.
        compressor: of the task.
        temperature: of the distillations that it serves.
        answers: folder that caches its answers; None caches nothing.
    """
    return Teacher(task, compressor.builder.teacher, CPU, answers, (temperature,))


def recovered(
    compressor: Compressor,
    task: Task,
    candidate: Candidate,
    teacher: Teacher | None = None,
    seed: int = 0,
) -> Any:
    """Train a candidate in float32; return weights and ranges for `Compressor.graph`.

    Args:
        compressor: of the task.
        task: gives the training data.
        candidate: its distillation tells the steps.
        teacher: from `teacher_of`; None makes one without a cache.
        seed: of the training.
    """
    temperature = candidate.distillation.temperature
    teacher = teacher or teacher_of(task, compressor, temperature)
    return recover(Trainer(task, teacher, seed=seed), compressor.stitcher, candidate)[0]


def output_errors(
    compressor: Compressor, candidates: Sequence[Candidate], batches: Batches
) -> list[dict[str, float]]:
    """Return the squared output errors that compressed weights cause, by module.

    Every module gets the float model's inputs.

    Args:
        compressor: of the task.
        candidates: configs of modules; bias and activations are not looked at.
        batches: inputs that the errors are summed over.

    Returns:
        For each candidate, the error by name of the linear and convolutional modules.
    """
    teacher, stitcher = compressor.builder.teacher, compressor.stitcher
    names = [module.name for module in compressor.builder.module_map if module.kind in INTEGER]
    differences: list[dict[str, Tensor]] = []
    for candidate in candidates:
        stitcher.apply(candidate)
        lost = {}
        for name in names:
            weight = teacher.get_submodule(name).weight
            lost[name] = (weight - stitcher.simulated[name].weight).detach()
        differences.append(lost)
    errors = [dict.fromkeys(names, 0.0) for _ in candidates]

    def add(name: str, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        for total, lost in zip(errors, differences, strict=True):
            if isinstance(layer, nn.Linear):
                output = nn.functional.linear(inputs[0], lost[name])
            else:
                output = layer._conv_forward(inputs[0], lost[name], None)
            total[name] += float(output.double().square().sum())

    hooks = [
        teacher.get_submodule(name).register_forward_pre_hook(partial(add, name)) for name in names
    ]
    for inputs, _ in batches:
        model_output(teacher, inputs)
    for hook in hooks:
        hook.remove()
    return errors


def model_output(model: nn.Module, inputs: Any) -> Tensor:
    """Return the output of a model that a metric judges.

    Args:
        model: any module.
        inputs: one batch: a tensor, positional or keyword arguments.

    Returns:
        (n, ...) on the CPU.
    """
    return model_outputs(model, inputs, CPU)


def accuracy_of(task: Task, model: nn.Module, batches: Batches) -> float:
    """Return the accuracy of a model.

    Args:
        task: gives the metric.
        model: any module.
        batches: what accuracy is measured on.
    """
    return evaluate_model(task, model, batches, CPU)[0].accuracy


def file_accuracy(task: Task, model: Model, batches: Batches, in_litert: bool = False) -> float:
    """Return the accuracy of a file, run on all threads.

    Args:
        task: gives the metric.
        model: content or path.
        batches: what accuracy is measured on.
        in_litert: run a .tflite file.
    """
    settings = LITERT if in_litert else DEFAULT
    session = open_session(model, replace(settings, threads=os.cpu_count() or 1))
    names = tuple(value.name for value in session.get_inputs())
    return evaluate_session(task, session, names, batches)[0].accuracy
