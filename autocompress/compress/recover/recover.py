"""Recovery of one candidate: pruned at once or in growing steps, each followed by a short training, the last one with everything else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from torch import nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.library import VariantLibrary
from autocompress.compress.assemble.stitch import Stitcher, Trained
from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.calibrate.statistics import CALIBRATION_SAMPLES, collect_statistics
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.cycle import Cycle
from autocompress.compress.recover.features import matched_by_name, prepared_matcher
from autocompress.errors import DamagedFileError
from autocompress.results.tensor_files import read_tensors, write_tensors


def schedule_shares(schedule: str, rounds: int) -> list[float]:
    """The share of the final pruning ratio after each of `rounds` steps; the last is 1.

    "linear" grows evenly, "cubic" as 1 - (1 - t)^3, fast while there is much to remove (Zhu and Gupta 2017, eq. 1); "one_shot" is one step.
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
    """(what training left, the steps after which it ended) of `candidate`, trained for its distillation's steps.

    The schedule's rounds share the steps; every round ranks units and zeros anew, those before the last train float weights without
    factors. At each restart `go_on(model, steps)` says whether to go on, at each step `stop()` whether time is up. State is kept in
    `folder` (None: not kept), from which an interrupted training goes on as if nothing had been. NotComputableError of `Cycle` passes
    through.
    """
    recovery = candidate.distillation
    shares = schedule_shares(recovery.schedule, recovery.rounds)
    if not any(config.pruning_ratio > 0 or config.sparsity > 0 for _, config in candidate.modules):
        shares = [1.0]
    ends = [round(recovery.steps * (i + 1) / len(shares)) for i in range(len(shares))]
    current = stitcher
    for i, (share, start, end) in enumerate(zip(shares[:-1], [0, *ends], ends, strict=False)):
        stage = _partly(candidate, share)
        kept = None if folder is None else folder / f"round{i}.safetensors"
        known = None if kept is None else _round_of(kept)
        if known is not None:
            trained = known
        else:
            trained = _train(
                trainer, current, stage, [start, end], folder, lambda model, steps: True, stop
            )[0]
            if (
                kept is not None and not stop()
            ):  # a round that was cut short goes on from its checkpoint
                write_tensors(kept, trained.to_tensors())
        current = _continued(trainer, current, stage, trained)
    start = ends[-2] if len(shares) > 1 else 0
    borders = [
        start,
        *(at for at in recovery.restarts if start < at < recovery.steps),
        recovery.steps,
    ]
    return _train(trainer, current, candidate, borders, folder, go_on, stop)


def _round_of(path: Path) -> Trained | None:
    """A round that was finished before; None where it was not, or its file is damaged."""
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
    """Train `stage` in one cycle between each two neighbours of `borders`, as long as `go_on` wants it."""
    model = stitcher.apply(stage)
    stitcher.start_training(stage)
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
            Cycle(trainer, model, stage.distillation, end - start, start, matcher, path, stop).run()
            reached = end
            if stop() or (end < borders[-1] and not go_on(model, end)):
                break
    finally:
        if matcher is not None:
            matcher.remove()
    return stitcher.trained_state(), reached


def _partly(candidate: Candidate, share: float) -> Candidate:
    """Only what is removed, and only that share of it."""
    configs = {
        name: ModuleConfig(
            pruning_ratio=share * config.pruning_ratio,
            importance=config.importance,
            reconstruction=config.reconstruction,
            # N of M has no parts: it comes with the last round.
            sparsity=share * config.sparsity if config.sparsity_pattern == "unstructured" else 0.0,
            sparsity_criterion=config.sparsity_criterion,
        )
        for name, config in candidate.modules
    }
    return Candidate.of(configs, candidate.distillation)


def _continued(
    trainer: Trainer, stitcher: Stitcher, stage: Candidate, trained: Trained
) -> Stitcher:
    """A stitcher over the trained model, in which what was removed is 0."""
    stitcher.apply(stage, trained)
    model: nn.Module = copy.deepcopy(stitcher.teacher)
    state = model.state_dict()
    state.update(
        {name: value for name, value in stitcher.model.state_dict().items() if name in state}
    )
    for name, simulated in stitcher.simulated.items():
        state[f"{name}.weight"] = simulated.weight.detach()
        if f"{name}.bias" in state and simulated.bias is not None:
            state[f"{name}.bias"] = simulated.bias.detach()
    model.load_state_dict(state)
    batches = [
        inputs
        for inputs, _ in trainer.task.first_samples(
            trainer.task.calibration_batches(), CALIBRATION_SAMPLES
        )
    ]
    statistics = collect_statistics(model, stitcher.module_map, batches, trainer.device)
    losses = stitcher.library.evidence.losses
    library = VariantLibrary(
        Evidence(model, statistics, losses), None, stitcher.library.integer_form
    )
    return Stitcher(model, stitcher.module_map, library, stitcher.plan)
