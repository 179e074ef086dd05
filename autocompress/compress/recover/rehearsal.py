"""Train a candidate for a few steps and undo it: how long a step takes, and which rate is best.

A search plans its trainings with it; `normalisation.py` decides with it how statistics train.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autocompress.cache import Cache, key_of
from autocompress.candidate import Candidate
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.recover.context import Trainer, stream
from autocompress.compress.recover.cycle import LEAST_GAP, Cycle
from autocompress.compress.recover.teacher import model_hash
from autocompress.errors import NotComputableError
from autocompress.model_digest import value_bytes
from autocompress.task.batches import leaves, seeded, target_to_device, to_device
from autocompress.task.copies import named_state, set_state

FORMAT = "2"  # part of every key; raised when the test changes
TIMED = 3  # steps that are timed, after one to warm up
TESTED = 60  # steps with each rate of a range test
KEYED = 4  # training batches on which a cached rate depends
FACTOR = 3.0  # between two rates of a range test
LOWEST, HIGHEST = 1e-5, 1e-2  # rates that it tries at most
MOST_TESTS = 4  # rates that it tries at most from the default rate on
# Operations in place end a backward pass with a RuntimeError.
FAILED = (NotComputableError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Rehearsal:
    """Hold what a short training showed.

    Attributes:
        divergence: the lowest divergence from the teacher.
        step_s: median seconds of a step after the first; NaN for a single step.
    """

    divergence: float
    step_s: float


def rehearse(
    trainer: Trainer,
    stitcher: Stitcher,
    stage: Candidate,
    steps: int,
    start: int = 0,
    stop: Callable[[], bool] = lambda: False,
    renews: bool = False,
) -> Rehearsal:
    """Train a candidate for some steps, and undo it.

    Args:
        trainer: data, teacher, floating-point type and seed.
        stitcher: holds `stage`, ready for training; its model is as it was afterwards.
        stage: gives the distillation.
        steps: of this training.
        start: steps before it.
        stop: called after each step; True ends it.
        renews: True if normalisations take the statistics of each batch.

    Returns:
        What it showed.

    Raises:
        NotComputableError: as `Cycle.run`.
    """
    model, ticks = stitcher.model, [time.perf_counter()]
    before = {name: value.clone() for name, value in named_state(model).items()}

    def stopped() -> bool:
        ticks.append(time.perf_counter())
        return stop()

    renew = stitcher.renew_statistics if renews else None
    cycle = Cycle(trainer, model, stage.distillation, steps, start, stop=stopped, renew=renew)
    try:
        cycle.run()
    finally:
        set_state(model, before)
    seconds = np.diff(ticks)[1:]
    step_s = float(np.median(seconds)) if len(seconds) else float("nan")
    return Rehearsal(cycle.best_divergence, step_s)


def timed_step(
    trainer: Trainer,
    stitcher: Stitcher,
    stage: Candidate,
    limit_s: float,
    stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Return the seconds of one training step of a candidate on this machine.

    Args:
        trainer: data and teacher.
        stitcher: builds the candidate.
        stage: the candidate, with its distillation.
        limit_s: seconds after which no further step is timed.
        stop: called after each step; True ends the training.

    Returns:
        Median of up to TIMED steps after the first; None if `stop` ended it.

    Raises:
        NotComputableError: as `rehearse`.
    """
    _ready(trainer, stitcher, stage)
    ends: list[float] = []

    def is_over() -> bool:
        ends.append(time.perf_counter())
        return stop() or (len(ends) > 1 and ends[-1] - ends[0] > limit_s)

    step_s = rehearse(trainer, stitcher, stage, 1 + TIMED, stop=is_over).step_s
    return None if stop() else step_s


def best_rate(
    trainer: Trainer,
    stitcher: Stitcher,
    stage: Candidate,
    folder: Path | None,
    stop: Callable[[], bool] = lambda: False,
    steps: int | None = None,
) -> float | None:
    """Return a learning rate for trainings of some steps, by a range test.

    The candidate is trained with the rate that it has and with FACTOR times it. From the better one
    on, the test goes on in the same direction until a training ends farther from the teacher (cf.
    Smith 2017; a rate that grows within one training was too noisy for so few steps). The order of
    batches is that of seed 0, so that all searches of a model find the same. Normalisations take
    the statistics of each batch if those of `stage` do.

    Args:
        trainer: data, teacher and floating-point type.
        stitcher: builds the candidate.
        stage: the candidate, with its distillation.
        folder: cache of rates; None for none.
        stop: called after each step; True ends the test.
        steps: of each training; None for TESTED.

    Returns:
        The rate whose training ended nearest to the teacher; that of `stage` where none helped.
        None if it was stopped.

    Raises:
        NotComputableError: as `rehearse`.
    """
    cache, steps = Cache(folder), TESTED if steps is None else steps
    known = cache.read(
        _entry(trainer, stage, steps), lambda path: float(json.loads(path.read_text())["rate"])
    )
    if known is not None:
        return known
    trainer = replace(trainer, seed=0)
    _ready(trainer, stitcher, stage)
    renews = stage.distillation.batch_norm == "train" and bool(stitcher.norms.names)
    trained = False

    def divergence(rate: float) -> float:
        nonlocal trained
        if stop():
            return math.inf
        at = replace(stage, distillation=replace(stage.distillation, learning_rate=rate))
        try:
            reached = rehearse(trainer, stitcher, at, steps, 0, stop, renews).divergence
        except FAILED:  # a rate may be too high
            return math.inf
        trained = True
        return reached

    best = climbed(divergence, stage.distillation.learning_rate)
    if stop():
        return None
    if trained:  # there may be more memory next time
        # The type of numbers may have been chosen by now.
        cache.write(_entry(trainer, stage, steps), json.dumps({"rate": best}))
    return best


def tested_steps(seconds: float, step_s: float) -> int:
    """Return the steps of each training of a range test that there is time for.

    Args:
        seconds: for the whole test.
        step_s: seconds of a step.

    Returns:
        At most TESTED; 0 if fewer than LEAST_GAP would tell too little.
    """
    steps = min(TESTED, int(seconds / (MOST_TESTS * max(step_s, 1e-9))))
    return steps if steps >= LEAST_GAP else 0


def climbed(divergence: Callable[[float], float], rate: float) -> float:
    """Return the rate of the lowest divergence among those that a climb tries.

    Args:
        divergence: after a training with a rate.
        rate: the first one.

    Returns:
        `rate` times a power of FACTOR.
    """
    best, factor = divergence(rate), FACTOR
    other = divergence(factor * rate)
    if other >= best:
        factor = 1 / FACTOR
        other = divergence(factor * rate)
    while other < best:
        best, rate = other, float(f"{factor * rate:.3g}")
        if not LOWEST <= factor * rate <= HIGHEST:
            break
        other = divergence(factor * rate)
    return rate


def known_rate(
    trainer: Trainer, stage: Candidate, folder: Path | None, steps: int | None = None
) -> bool:
    """Return True if `best_rate` needs no training.

    Args:
        trainer: as for `best_rate`.
        stage: as for `best_rate`.
        folder: as for `best_rate`.
        steps: as for `best_rate`.
    """
    steps = TESTED if steps is None else steps
    return folder is not None and (folder / _entry(trainer, stage, steps)).is_file()


def _ready(trainer: Trainer, stitcher: Stitcher, stage: Candidate) -> None:
    """Build a candidate and get it ready for training."""
    model = stitcher.apply(stage)
    stitcher.start_training(stage)
    trainer.settle(model)


def _entry(trainer: Trainer, stage: Candidate, steps: int) -> str:
    """Name the cached rate by models, candidate, first batches, loss, device and type of numbers.

    The task's loss is told by its value for the teacher's answers to the first batch.
    """
    task, teacher = trainer.task, trainer.teacher.model
    test = f"{FORMAT} {steps} {FACTOR} {LOWEST} {HIGHEST} {torch.__version__}"
    parts: list[str | bytes] = [
        f"{model_hash(teacher)} {model_hash(task.model)} {json.dumps(stage.to_json())} {test}",
        f"{trainer.device} {trainer.arithmetic}",
    ]
    with seeded(0), torch.no_grad():
        batches = list(islice(stream(task, 0, 0), KEYED))
        for i, (inputs, target) in enumerate(batches):
            for part in (task.view(inputs, i), target):
                for name, value in leaves(part).items():
                    if isinstance(value, Tensor):
                        content = value_bytes(value)
                        parts += [f"{name} {value.dtype} {tuple(value.shape)}", content]
                    else:
                        parts.append(f"{name} {value}")
        inputs, target = batches[0]
        if stage.distillation.alpha > 0 and task.teaches(target):
            answers = task.outputs_of(teacher, to_device(inputs, trainer.device))
            answers = {name: answer.float() for name, answer in answers.items()}
            loss = task.training_loss(answers, target_to_device(target, trainer.device))
            parts.append(f"loss {float(loss):.3g}")
    return f"{key_of(*parts)[:32]}.json"
