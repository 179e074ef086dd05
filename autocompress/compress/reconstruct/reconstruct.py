"""Recover one candidate block by block, without a pass of the whole model in training.

Each block learns to give the float block's output, from the inputs that the compressed blocks
before it give. Sources: Li et al. 2021, "BRECQ"; Wei et al. 2022, "QDrop". `recover/recover.py`
calls it for candidates whose distillation asks for blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.candidate import Candidate
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.reconstruct.blocks import Block, find_blocks
from autocompress.compress.reconstruct.recorder import Recorder
from autocompress.compress.reconstruct.training import train_block
from autocompress.compress.recover.context import Trainer
from autocompress.errors import DamagedFileError, NotComputableError
from autocompress.model.weights import weight_of
from autocompress.results.tensor_files import read_state, write_state
from autocompress.task.batches import Inputs, batch_size, cut, seeded, to_device
from autocompress.task.calls import run_model
from autocompress.task.copies import copied, set_state
from autocompress.task.user_code import out_of_memory

SAMPLES = 512  # of the training data
BATCH = 32  # samples per step
CHECKPOINT = "blocks.checkpoint"
LEAST_BATCHES = 16  # that are recorded, if there are as many
MEASURED = 8  # measurements of the divergence, at most; each is a pass over the watched samples


def reconstruct(
    trainer: Trainer,
    stitcher: Stitcher,
    candidate: Candidate,
    folder: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Trained, int]:
    """Train the blocks of a candidate one after another, in the order of execution.

    The divergence on validation inputs is measured after each block, or MEASURED times; the state
    with the lowest one is returned, which may be the untrained one. Labels are never read.

    Args:
        trainer: data, watched validation inputs and seed.
        stitcher: builds the compressed model.
        candidate: gives configs; its distillation gives learning rate and steps of each block.
        folder: the state is written there after each block, and an interrupted reconstruction
            goes on from it with the same result; None for none.
        stop: called after each step; True ends the training within its block.

    Returns:
        The state, and the steps of each block.

    Raises:
        NotComputableError: if an error or gradient is not finite, or memory is too short.
    """
    parts = _Parts(trainer, stitcher, candidate, smoothed_original(stitcher, candidate))
    path = None if folder is None else folder / CHECKPOINT
    progress = (path and _Progress.read(path, parts)) or _Progress.start(parts)
    # A step sees one batch: more of them would be recorded for nothing.
    batches = _pieces(trainer)[: max(LEAST_BATCHES, candidate.distillation.steps)]
    model = stitcher.apply(candidate)
    blocks = find_blocks(model, list(stitcher.simulated), lambda: run_model(model, batches[0]))
    every = -(-len(blocks) // MEASURED)
    calls = next(iter(stitcher.simulated.values())).calls
    recorder = Recorder(parts.original, blocks, batches, calls)
    for i in range(progress.done, len(blocks)):
        if stop():
            break
        with seeded(trainer.seed + i):
            state = _trained(parts, progress.state, blocks[i], recorder, stop)
        measures = (i + 1) % every == 0 or i + 1 == len(blocks) or stop()
        progress = progress.after(state, parts, measures)
        if path is not None and not stop():  # a block that was stopped begins again
            progress.write(path, parts)
    return progress.best, candidate.distillation.steps


@dataclass(frozen=True)
class _Parts:
    """Hold what is the same for all blocks of a candidate."""

    trainer: Trainer
    stitcher: Stitcher
    candidate: Candidate
    original: nn.Module

    @property
    def settings(self) -> list[Any]:
        """Return the settings with which a checkpoint must agree."""
        return [self.trainer.seed, self.candidate.distillation.to_json()]

    def divergence(self, state: Trained) -> float:
        """Return the divergence of the candidate from the teacher on watched samples."""
        return self.trainer.divergence(self.stitcher.apply(self.candidate, state))


@dataclass(frozen=True)
class _Progress:
    """Hold the state after some blocks, and the best one so far."""

    done: int
    state: Trained
    best: Trained
    divergence: float

    @classmethod
    def start(cls, parts: _Parts) -> _Progress:
        """Return the untrained candidate."""
        parts.stitcher.apply(parts.candidate)
        state = parts.stitcher.trained_state()
        return cls(0, state, state, parts.divergence(state))

    def after(self, state: Trained, parts: _Parts, measures: bool) -> _Progress:
        """Return the progress after one more block; without a measurement the best one stays."""
        if not measures:
            return replace(self, done=self.done + 1, state=state)
        divergence = parts.divergence(state)
        if divergence < self.divergence:
            return _Progress(self.done + 1, state, state, divergence)
        return _Progress(self.done + 1, state, self.best, self.divergence)

    def write(self, path: Path, parts: _Parts) -> None:
        """Write both states."""
        best = {name: tensor.clone() for name, tensor in self.best.to_tensors().items()}
        write_state(
            path,
            {
                "settings": parts.settings,
                "progress": [self.done, self.divergence],
                "state": self.state.to_tensors(),
                "best": best,
            },
        )

    @classmethod
    def read(cls, path: Path, parts: _Parts) -> _Progress | None:
        """Return what `write` wrote, or None if there is no intact file with the same settings."""
        try:
            kept = read_state(path, torch.device("cpu"))
        except DamagedFileError:
            return None
        if kept["settings"] != parts.settings:
            return None
        done, divergence = kept["progress"]
        state, best = (Trained.from_tensors(kept[name]) for name in ("state", "best"))
        return cls(done, state, best, divergence)


def smoothed_original(stitcher: Stitcher, candidate: Candidate) -> nn.Module:
    """Return the float model whose hidden outputs are learned.

    Args:
        stitcher: gives the float model, which is not changed.
        candidate: its smoothing changes hidden outputs, and not what the model computes.

    Returns:
        The float model itself, or a copy if the candidate smooths.
    """
    changed = stitcher.smoother.parameters(candidate)
    if not changed:
        return stitcher.teacher
    model = copied(stitcher.teacher, None)
    set_state(model, changed)
    with torch.no_grad():
        for module in stitcher.module_map:
            factors = stitcher.smoother.of(module.name, candidate)
            if factors is not None:
                weight = weight_of(model.get_submodule(module.name))
                weight.mul_(factors.to(weight.device))
    return model


def _pieces(trainer: Trainer) -> list[Inputs]:
    """Return the first training inputs in batches of at most BATCH samples, on the device."""
    task, pieces = trainer.task, []
    for inputs, target in task.first_samples(task.training_batches(), SAMPLES):
        size = batch_size(inputs)
        if not task.can_cut(inputs, target) or size <= BATCH:
            pieces.append(inputs)
            continue
        for first in range(0, size, BATCH):
            pieces.append(cut(inputs, None, slice(first, first + BATCH))[0])
    return [to_device(inputs, trainer.device) for inputs in pieces]


def _trained(
    parts: _Parts,
    state: Trained,
    block: Block,
    recorder: Recorder,
    stop: Callable[[], bool],
) -> Trained:
    """Return the state with one more block trained, or the same if that made its error larger."""
    stitcher, lesson = parts.stitcher, parts.candidate.distillation
    model = stitcher.apply(parts.candidate, state)
    try:
        recorded = recorder.record(model, block)
        if not recorded:
            return state
        stitcher.start_training(parts.candidate, block.modules)
        part = model.get_submodule(block.name)
        how = lesson.steps, lesson.learning_rate, stop, model
        improved = train_block(part, recorded, recorder.calls, *how)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise NotComputableError(
            f"recovery: out of memory in block {block.name}; nearest: a smaller batch"
        ) from error
    if not improved:
        return state
    after = stitcher.trained_state()
    return replace(after, ranges={**state.ranges, **after.ranges})
