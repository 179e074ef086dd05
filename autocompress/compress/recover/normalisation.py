"""Decide if batch normalisations train with the statistics of each batch or with frozen ones.

Batches say more about changed weights the larger they are. `recover.py` asks before each training.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from autocompress.candidate import Candidate, Distillation
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.calibrate.batch_norm import NORMS
from autocompress.compress.recover.context import LEAST_BATCH, Trainer
from autocompress.compress.recover.cycle import LEAST_GAP
from autocompress.compress.recover.rehearsal import rehearse
from autocompress.results.files import write_atomic
from autocompress.task.batches import batch_size
from autocompress.task.task import Task

SHARE = 0.1  # of the steps of a training, for each of two short ones that decide


def trains_statistics(
    trainer: Trainer,
    stitcher: Stitcher,
    stage: Candidate,
    start: int,
    steps: int,
    folder: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Return True if normalisations take the statistics of each batch.

    With "auto" a short training of each kind decides by its divergence from the teacher, unless
    batches are too small.

    Args:
        trainer: data, teacher, floating-point type and seed.
        stitcher: holds `stage`, ready for training; its model is as it was afterwards.
        stage: gives the distillation.
        start: steps before this training.
        steps: steps of this training.
        folder: keeps the decision for a training that resumes; None keeps nothing.
        stop: called after each step; True ends the short trainings, which then decide nothing.

    Raises:
        NotComputableError: as `rehearse`.
    """
    wanted = stage.distillation.batch_norm
    if wanted == "frozen" or not stitcher.norms.names:
        return False
    if wanted == "train":
        return True
    if steps <= 0 or batch_size(next(iter(trainer.task.training_batches()))[0]) < LEAST_BATCH:
        return False
    path = None if folder is None else _path(folder, start)
    if path is not None and path.is_file():
        return bool(json.loads(path.read_text())["trains"])
    short = min(steps, max(LEAST_GAP, round(SHARE * steps)))
    tried = (trainer, stitcher, stage, short, start, stop)
    frozen = rehearse(*tried, renews=False).divergence
    trains = rehearse(*tried, renews=True).divergence < frozen
    if stop():
        return False
    if path is not None:
        write_atomic(path, json.dumps({"trains": trains}))
    return trains


def can_train_statistics(task: Task) -> bool:
    """Return True if a model has batch normalisations, and its batches are large enough for them.

    Args:
        task: its model and its training batches.
    """
    norms = (module for module in task.model.modules() if isinstance(module, NORMS))
    if all(norm.running_mean is None for norm in norms):
        return False
    return batch_size(next(iter(task.training_batches()))[0]) >= LEAST_BATCH


def decided(distillation: Distillation, folder: Path) -> Distillation:
    """Return a recovery with what its short trainings decided about normalisations.

    Their length follows from the steps, so that they may decide otherwise for a training that ended
    early. Each round of a growing schedule decides for itself; such a recovery stays as it is.

    Args:
        distillation: of the training.
        folder: keeps the decision.
    """
    path = _path(folder, 0)
    if distillation.batch_norm != "auto" or distillation.schedule != "one_shot":
        return distillation
    if not path.is_file():  # nothing was tried
        return distillation
    trains = bool(json.loads(path.read_text())["trains"])
    return replace(distillation, batch_norm="train" if trains else "frozen")


def _path(folder: Path, start: int) -> Path:
    """Return the file of a decision."""
    return folder / f"batch_norm{start}.json"
