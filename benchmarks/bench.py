"""Give benchmarks the inner parts that they measure or time.

Everything else they do with the public names, `Compressor` and the command line. No other file of
this folder imports an inner module (tests/test_house.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from torch import Tensor, nn

from autocompress import Candidate, Distillation, ModuleConfig, Task, find_modules
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.recover import recover
from autocompress.compress.recover.teacher import Teacher
from autocompress.export.compressor import Compressor
from autocompress.export.subject import builder_for, layout_of, subject_of
from autocompress.integer_form import IntegerForm
from autocompress.measure.accuracy import evaluate_model, evaluate_session, model_outputs
from autocompress.results.limits import Limits
from autocompress.search.evaluate.judge import Judge
from autocompress.search.problem.options import Settings
from autocompress.search.problem.problem import Problem, open_problem, ready_for_trials
from autocompress.search.propose.factory import make_allocator, price_sampler, sensitivity
from autocompress.search.workers.plan import RUN, WorkerPlan
from autocompress.search.workers.storage import open_study
from autocompress.search.workers.worker import ask, judged
from autocompress.space.search_space import SearchSpace
from autocompress.targets.device.result import versions
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.device.timing import Timing, interleaved_timing
from autocompress.targets.kernel_arithmetic import products_saturate
from autocompress.targets.latency import compare
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import Subject, random_candidate
from autocompress.targets.latency_model.profile import measure_table
from autocompress.targets.target import Target, find_target
from autocompress.targets.workload import workload
from autocompress.task.batches import feed_of

# Given on as they are.
__all__ = ["Problem", "ask", "feed_of", "open_session", "open_study", "versions"]

CPU = torch.device("cpu")
DEFAULT = SessionSettings()  # one thread
INTEGER = ("linear", "conv")  # kinds of modules on integer kernels
ONNXRUNTIME = "onnxruntime-cpu"
Batches = Sequence[tuple[Any, Any]]
Model = bytes | str  # content or path of a file


# Candidates


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


# Accuracy and time of models and files


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


def file_accuracy(task: Task, model: Model, batches: Batches) -> float:
    """Return the accuracy of a file, run on all threads.

    Args:
        task: gives the metric.
        model: content or path.
        batches: what accuracy is measured on.
    """
    session = open_session(model, replace(DEFAULT, threads=os.cpu_count() or 1))
    names = tuple(value.name for value in session.get_inputs())
    return evaluate_session(task, session, names, batches)[0].accuracy


def timed(baseline: Model, models: Sequence[Model], feed: Mapping[str, Any], rounds: int) -> Timing:
    """Time each model in turn with a baseline, on one thread of ONNX Runtime.

    Args:
        baseline: content or path of a file.
        models: the other files.
        feed: inputs by name.
        rounds: of each model.

    Returns:
        Milliseconds of the baseline, and the ratio of each model to it.
    """
    return compare(baseline, models, feed, find_target(ONNXRUNTIME), DEFAULT, rounds)


def time_of_settings(
    model: Model, settings: tuple[SessionSettings, SessionSettings], feed: Any, rounds: int
) -> float:
    """Return the time of a model under the second settings, relative to the first.

    Args:
        model: content or path of a file.
        settings: of the two sessions.
        feed: inputs by name.
        rounds: of each session.
    """
    openers = [partial(open_session, model, each) for each in settings]
    return interleaved_timing(openers[0], openers[1:], feed, rounds).ratios[0]


def time_on_target(
    target: str, run: Path, baseline: Model, models: Sequence[Model], feed: Any, rounds: int
) -> tuple[float, ...]:
    """Return the time of each model relative to a baseline, on a target.

    Args:
        target: name of the target.
        run: folder of a search for it; its session settings are taken.
        baseline: path of a file.
        models: paths of the other files.
        feed: inputs by name.
        rounds: of each model.
    """
    settings = LatencyTable.load(run / "latency_table.json").settings
    return compare(baseline, models, feed, find_target(target), settings, rounds).ratios


def integers_saturate() -> bool:
    """Return True if this processor sums two 8-bit products in 16 bits."""
    return products_saturate(DEFAULT)


# Latency model


@dataclass(frozen=True)
class Profiled:
    """Hold the latency table of a task, measured now.

    Attributes:
        builder: of the files of the task.
        target: the runtime.
        space: the search space on the modules of the task.
        subject: what was measured.
        table: the latency table.
        seconds: of the measurement.
    """

    builder: Any
    target: Target
    space: Any
    subject: Subject
    table: LatencyTable
    seconds: float

    def random_candidate(self, generator: np.random.Generator) -> Candidate:
        """Return a random mixture of forms and widths.

        Args:
            generator: source of all draws.
        """
        return random_candidate(self.subject, generator)

    def file(self, candidate: Candidate) -> bytes:
        """Return the file of a candidate, with random weights.

        Args:
            candidate: configs of modules.
        """
        return self.subject.noise_file(candidate)[0]

    def kernels(self, candidate: Candidate) -> Mapping[str, Any]:
        """Return the kernel of each module.

        Args:
            candidate: configs of modules.
        """
        return workload(self.subject.layout, candidate).kernels

    def predict_ms(self, candidate: Candidate) -> float:
        """Return the predicted latency in milliseconds.

        Args:
            candidate: configs of modules.
        """
        return self.table.predict_ms(self.subject.layout, candidate)

    def compare(self, models: Sequence[Model], rounds: int) -> Timing:
        """Time models in turn with the float file, as the table was measured.

        Args:
            models: contents or paths.
            rounds: of each model.
        """
        subject = self.subject
        settings = self.table.settings
        return compare(subject.baseline(), models, subject.feed, self.target, settings, rounds)


def profiled(
    task: Task, space: Any = None, threads: tuple[int, ...] | None = None, target: str = ONNXRUNTIME
) -> Profiled:
    """Measure the latency table of a task, without a cache.

    Args:
        task: the model and its example inputs.
        space: as in `autocompress.search`.
        threads: numbers to tune over; None takes the target's.
        target: name of the target.
    """
    runtime = find_target(target)
    runtime = runtime if threads is None else replace(runtime, threads=threads)
    modules = find_modules(task.model, task.example_inputs, task.towers)
    builder = builder_for(task, modules, runtime)
    bound = SearchSpace.load(space).bind(builder.module_map, runtime)
    subject = subject_of(task, builder, layout_of(builder), bound)
    started = time.monotonic()
    table = measure_table(subject, runtime)
    seconds = time.monotonic() - started
    return Profiled(builder, runtime, bound, subject, table, seconds)


# Searches


@dataclass
class TimedJudge(Judge):
    """Judge candidates and remember how long it took.

    Attributes:
        seconds: of the last judgement.
    """

    seconds: float = 0.0

    def judge(self, study: optuna.Study, number: int, candidate: Candidate) -> Any:
        """Judge a candidate.

        Args:
            study: the study with the earlier trials.
            number: of the trial.
            candidate: what is judged.
        """
        started = time.perf_counter()
        try:
            return super().judge(study, number, candidate)
        finally:
            self.seconds = time.perf_counter() - started


def problem_of(task: Task, space: Any, table: Path) -> Problem:
    """Prepare the search of a task on the CPU.

    Args:
        task: the model and its data.
        space: as in `autocompress.search`.
        table: file of its latency table; it is measured if it is not there.
    """
    modules = find_modules(task.model, task.example_inputs, task.towers)
    target, bound = find_target(ONNXRUNTIME), SearchSpace.load(space)
    problem = open_problem(task, task, bound, target, CPU, modules, Settings(), table)
    return ready_for_trials(problem, table)


def sensitivities(problem: Problem, folder: Path) -> dict[tuple[str, ModuleConfig], float]:
    """Return the divergence that each single change causes.

    Args:
        problem: from `problem_of`.
        folder: keeps what is measured.
    """
    return dict(sensitivity(problem, folder, lambda what, share: None)[0])


def guided_sampler(
    problem: Problem, limits: Limits, losses: Mapping[Any, float], seed: int
) -> optuna.samplers.BaseSampler:
    """Return the sampler of a search.

    Args:
        problem: from `problem_of`.
        limits: of the search.
        losses: from `sensitivities`.
        seed: of its proposals.
    """
    return price_sampler(problem, limits, losses, seed)


@dataclass(frozen=True)
class Allocation:
    """Hold a candidate that is optimal at some prices of size and latency.

    Attributes:
        parameters: of the trial.
        size: share of the float file's bytes.
        latency: share of the float file's latency.
        divergence: expected from the sensitivities.
    """

    parameters: Mapping[str, int]
    size: float
    latency: float
    divergence: float


def random_allocations(
    problem: Problem,
    losses: Mapping[Any, float],
    count: int,
    generator: np.random.Generator,
    spread: float = 0.0,
) -> list[Allocation]:
    """Return the optimal candidates at random prices.

    Args:
        problem: from `problem_of`.
        losses: from `sensitivities`.
        count: of allocations.
        generator: source of all draws.
        spread: standard deviation of the log factors by which losses are changed.
    """
    allocator = make_allocator(problem, losses)
    low, high = np.log(allocator.price_ranges).T
    prices = np.exp(low + generator.random((count, 2)) * (high - low))
    factors = generator.lognormal(0, spread, (count, len(allocator.features)))
    rows = allocator.allocate(prices, factors)
    costs, divergences = allocator.costs(rows), allocator.losses(rows).sum(1)
    allocations = []
    for row, (size, latency), divergence in zip(rows, costs, divergences, strict=True):
        parameters = allocator.parameters(row)
        allocations.append(Allocation(parameters, size, latency, float(divergence)))
    return allocations


def run_trials(
    problem: Problem,
    limits: Limits,
    study: optuna.Study,
    folder: Path,
    count: int,
    races: bool = True,
) -> Iterator[tuple[Any, float]]:
    """Ask for trials, judge and tell them as a worker of a search does.

    Args:
        problem: from `problem_of`.
        limits: of the search.
        study: holds the sampler.
        folder: the run folder.
        count: of trials.
        races: False judges each candidate on the whole validation split.

    Yields:
        The record of a trial, and the seconds of judging it.
    """
    judge = TimedJudge(problem, limits, folder)
    if not races:
        judge.parts = ()
    for _ in range(count):
        judge.seconds = 0.0
        trial = ask(study, problem.space)
        record = judged(study, trial, judge, "benchmark", time.monotonic())
        yield record, judge.seconds


def plan_again(known: optuna.Study, study: optuna.Study, workers: int, n_trials: int) -> None:
    """Give a study the plan of another one, so that workers join it; without a deadline.

    Args:
        known: study of a search.
        study: gets its plan.
        workers: that share the threads of the machine.
        n_trials: that the study shall hold.
    """
    plan = WorkerPlan.from_json(known.user_attrs[RUN])
    settings = replace(plan.settings, workers=workers, n_trials=n_trials)
    study.set_user_attr(RUN, replace(plan, settings=settings, deadline=None).to_json())
