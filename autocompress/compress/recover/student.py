"""Train a student of another architecture before the search compresses it in the model's place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from autocompress.candidate import Distillation
from autocompress.compress.prune.masks import Masks
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.cycle import Cycle
from autocompress.compress.recover.features import prepared_matcher
from autocompress.compress.recover.precision import training_dtype
from autocompress.compress.recover.teacher import Teacher
from autocompress.errors import DamagedFileError, RunFolderError
from autocompress.results.tensor_files import read_tensors, write_tensors
from autocompress.task.copies import copied, named_state, set_state
from autocompress.task.task import Task

DTYPE = "training_dtype"  # in the header of the file of trained weights


def on_student(task: Task) -> Task:
    """Return the task with its student in the model's place.

    Args:
        task: not changed; returned as it is if it has no student.

    Returns:
        A task whose model is a copy of the student, on the CPU in eval mode.
    """
    if task.student is None:
        return task
    return replace(task, model=copied(task.student), student=None)


def taught(
    task: Task,
    lesson: Distillation,
    seed: int,
    device: torch.device,
    path: Path | None,
    caches: Path | None,
    dtype: torch.dtype | None = None,
) -> Task:
    """Return `on_student(task)` with a student that was distilled from the task's model.

    Args:
        task: gives model, student and data.
        lesson: the distillation; 0 steps take the student as it is.
        seed: seed of the training.
        device: device of the training.
        path: file of the trained weights, read if it exists; an interrupted training resumes from a
            checkpoint beside it. None for none.
        caches: folder of all caches, which hold the teacher's answers and the measurement of the
            training type; None for none.
        dtype: of the training; None measures which one is fast.

    Returns:
        A task whose model is the trained student, on the CPU.

    Raises:
        RunFolderError: if the file holds no weights of this student.
    """
    learner = on_student(task)
    if task.student is None or lesson.steps == 0:
        return learner
    if path is not None and path.is_file():
        try:
            weights = read_tensors(path)[0]
            if set(named_state(learner.model)) != set(weights):
                raise ValueError("its tensors have other names")
            set_state(learner.model, weights)
        except (DamagedFileError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise RunFolderError(
                f"{path}: is not the trained student of this task ({reason}); "
                "remove it to train again"
            ) from error
        return learner
    original = copied(task.model, device, shares_weights=True)
    student = learner.model.to(device)
    answers, timings = (None if caches is None else caches / n for n in ("teacher", "precision"))
    teacher = Teacher(task, original, device, answers, (lesson.temperature,))
    if dtype is None:
        dtype = training_dtype(learner, student, device, timings)
    trainer = Trainer(task, teacher, dtype, seed)
    matcher = None
    if lesson.features > 0 and task.matched_modules:
        matcher = prepared_matcher(trainer, student, task.matched_modules, Masks({}))
    checkpoint = None if path is None else path.with_suffix(".checkpoint")
    try:
        Cycle(trainer, student, lesson, lesson.steps, 0, matcher, checkpoint).run()
    finally:
        if matcher is not None:
            matcher.remove()
    student.cpu()
    if path is not None:
        write_tensors(path, named_state(student), {DTYPE: str(dtype).removeprefix("torch.")})
        path.with_suffix(".checkpoint").unlink(missing_ok=True)
    return learner


def taught_dtype(path: Path) -> str | None:
    """Return the floating-point type that a student was trained in, such as "bfloat16".

    Args:
        path: file of the trained weights, from `taught`.

    Returns:
        None without a file, or for one of an earlier version, which does not say it.
    """
    return read_tensors(path)[1].get(DTYPE) if path.is_file() else None
