"""Recover one candidate: train the compressed model from the teacher's answers.

Pruning and zeros may grow in rounds, each followed by a training of float weights. The last round
applies the whole candidate. `search/evaluate/recovery.py` calls `recover` for trials and finalists.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from torch import nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.library import VariantLibrary
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.calibrate.batch_norm import norm_samples
from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.calibrate.statistics import calibration_samples, collect_statistics
from autocompress.compress.reconstruct.reconstruct import reconstruct
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.cycle import Cycle
from autocompress.compress.recover.features import matched_by_name, prepared_matcher
from autocompress.compress.recover.normalisation import trains_statistics
from autocompress.errors import DamagedFileError
from autocompress.results.tensor_files import read_tensors, write_tensors
from autocompress.task.batches import batch_size
from autocompress.task.copies import named_state, set_state


def schedule_shares(schedule: str, rounds: int) -> list[float]:
    """Return the share of the final pruning ratio after each round.

    With t = round / rounds it is t for "linear" and 1 - (1 - t)^3 for "cubic" (Zhu and Gupta 2017,
    eq. 1).

    Args:
        schedule: "one_shot", "linear" or "cubic".
        rounds: number of rounds; not read for "one_shot".

    Returns:
        Ascending shares, the last one 1.
    """
    if schedule == "one_shot":
        return [1.0]
    times = [(i + 1) / rounds for i in range(rounds)]
    return times if schedule == "linear" else [1 - (1 - t) ** 3 for t in times]


def recover(
    trainer: Trainer,
    stitcher: Stitcher,
    candidate: Candidate,
    folder: Path | None = None,
    go_on: Callable[[nn.Module, int], bool] = lambda model, steps: True,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Trained, int]:
    """Train a candidate for its distillation's steps, whole or block by block.

    With `planned_steps`, a training that ended before its schedule is repeated.

    The rounds of the schedule share the steps, and every round ranks units and zeros anew. Rounds
    before the last train float weights without factors.

    Args:
        trainer: data, teacher, floating-point type and seed.
        stitcher: builds the compressed model.
        candidate: gives configs and distillation.
        folder: state is written there, and an interrupted training resumes from it with the same
            result; None for none.
        go_on: called at each restart with the model and the steps so far; False ends the training.
        stop: called after each step; True ends the training.

    Returns:
        The trained state, and the steps after which training ended.

    Raises:
        NotComputableError: if a loss or a gradient is not finite, or memory is too short.
    """
    recovery = candidate.distillation
    if recovery.blocks:
        return reconstruct(trainer, stitcher, candidate, folder, stop)
    shares = schedule_shares(recovery.schedule, recovery.rounds)
    if not any(config.pruning_ratio > 0 or config.sparsity > 0 for _, config in candidate.modules):
        shares = [1.0]
    total = recovery.planned_steps or recovery.steps
    ends = [round(total * (i + 1) / len(shares)) for i in range(len(shares))]
    current = stitcher
    for i, (share, start, end) in enumerate(zip(shares[:-1], [0, *ends], ends, strict=False)):
        stage = _partly(candidate, share)
        path = None if folder is None else folder / f"round{i}.safetensors"
        trained = None if path is None else _finished_round(path)
        if trained is None:
            trained = _train(
                trainer, current, stage, [start, end], folder, lambda model, steps: True, stop
            )[0]
            # A round that was stopped resumes from its checkpoint.
            if path is not None and not stop():
                write_tensors(path, trained.to_tensors())
        current = _continued(trainer, current, stage, trained)
    start = ends[-2] if len(shares) > 1 else 0
    restarts = [step for step in recovery.restarts if start < step < total]
    borders = [start, *restarts, total]
    return _train(trainer, current, candidate, borders, folder, go_on, stop)


def _finished_round(path: Path) -> Trained | None:
    """Return the state of a finished round, or None if there is no intact file."""
    try:
        return Trained.from_tensors(read_tensors(path)[0])
    except DamagedFileError:
        return None


def _train(
    trainer: Trainer,
    stitcher: Stitcher,
    stage: Candidate,
    borders: list[int],
    folder: Path | None,
    go_on: Callable[[nn.Module, int], bool],
    stop: Callable[[], bool],
) -> tuple[Trained, int]:
    """Train `stage` in one cycle between each two neighbours of `borders` while `go_on` agrees."""
    model = stitcher.apply(stage)
    stitcher.start_training(stage)
    trainer.settle(model)
    steps = borders[-1] - borders[0]
    renews = trains_statistics(trainer, stitcher, stage, borders[0], steps, folder, stop)
    renew = stitcher.renew_statistics if renews else None
    matcher = None
    if stage.distillation.features > 0:
        pairs = trainer.task.matched_modules or matched_by_name(
            stitcher.module_map, trainer.teacher.model
        )
        matcher = prepared_matcher(trainer, model, pairs, stitcher.masks)
    reached = borders[0]
    try:
        for start, end in pairwise(borders):
            path = None if folder is None else folder / f"cycle{start}.checkpoint"
            parts = (trainer, model, stage.distillation, end - start, start, matcher, path, stop)
            last = stage.distillation.steps - start
            reached = start + Cycle(*parts, renew, last if 0 < last < end - start else 0).run()
            if stop() or (end < borders[-1] and not go_on(model, end)):
                break
    finally:
        if matcher is not None:
            matcher.remove()
    return stitcher.trained_state(), reached


def _partly(candidate: Candidate, share: float) -> Candidate:
    """Return the candidate with a share of its pruning and zeros, and nothing else."""
    configs: dict[str, ModuleConfig] = {}
    for name, config in candidate.modules:
        # An N:M pattern cannot grow, so that it comes with the last round.
        grows = config.sparsity_pattern == "unstructured"
        configs[name] = ModuleConfig(
            pruning_ratio=share * config.pruning_ratio,
            importance=config.importance,
            reconstruction=config.reconstruction,
            sparsity=share * config.sparsity if grows else 0.0,
            sparsity_criterion=config.sparsity_criterion,
        )
    return Candidate.of(configs, candidate.distillation)


def _continued(
    trainer: Trainer, stitcher: Stitcher, stage: Candidate, trained: Trained
) -> Stitcher:
    """Return a stitcher over the trained model, whose removed units and elements are 0."""
    stitcher.apply(stage, trained)
    model: nn.Module = copy.deepcopy(stitcher.teacher)
    state = named_state(model)
    for name, value in named_state(stitcher.model).items():
        if name in state:
            state[name] = value
    for name, simulated in stitcher.simulated.items():
        state[f"{name}.weight"] = simulated.weight.detach()
        if f"{name}.bias" in state and simulated.bias is not None:
            state[f"{name}.bias"] = simulated.bias.detach()
    set_state(model, state)
    task = trainer.task
    count = calibration_samples(stitcher.module_map, batch_size(task.example_inputs))
    samples = task.first_samples(task.calibration_batches(), count)
    batches = [inputs for inputs, _ in samples]
    statistics = collect_statistics(model, stitcher.module_map, batches, trainer.device)
    losses = stitcher.library.evidence.losses
    evidence = Evidence(model, statistics, losses, batches=norm_samples(model, batches))
    library = VariantLibrary(evidence, None, stitcher.library.integer_form)
    return Stitcher(model, stitcher.module_map, library, stitcher.plan)
