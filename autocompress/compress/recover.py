"""Recovery of one candidate: pruned at once or in growing steps, each followed by a short training, the last one with everything else."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.distill import distil
from autocompress.compress.evidence import Evidence
from autocompress.compress.library import VariantLibrary
from autocompress.compress.statistics import CALIBRATION_SAMPLES, collect_statistics
from autocompress.compress.stitch import Stitcher, Trained
from autocompress.task import Task, take_samples


def schedule_shares(schedule: str, rounds: int) -> list[float]:
    """The share of the final pruning ratio after each of `rounds` steps; the last is 1.

    "linear" grows evenly, "cubic" as 1 - (1 - t)^3, fast while there is much to remove (Zhu and Gupta 2017, eq. 1); "one_shot" is one step.
    """
    if schedule == "one_shot":
        return [1.0]
    times = [(i + 1) / rounds for i in range(rounds)]
    return times if schedule == "linear" else [1 - (1 - t) ** 3 for t in times]


def recover(task: Task, stitcher: Stitcher, candidate: Candidate, device: torch.device) -> Trained:
    """Train `candidate` for its distillation's steps, which its schedule's rounds share; every round ranks units and zeros anew.

    Rounds before the last train float weights without factors; NotComputableError of `distil` passes through.
    """
    recovery = candidate.distillation
    shares = schedule_shares(recovery.schedule, recovery.rounds)
    if not any(config.pruning_ratio > 0 or config.sparsity > 0 for _, config in candidate.modules):
        shares = [1.0]
    ends = [round(recovery.steps * (i + 1) / len(shares)) for i in range(len(shares))]
    current = stitcher
    for share, start, end in zip(shares, [0, *ends], ends, strict=False):
        last = share == shares[-1]
        stage = candidate if last else _partly(candidate, share)
        current.apply(stage)
        current.start_training(stage)
        distil(task, current.model, stitcher.teacher, replace(recovery, steps=end - start), device)
        trained = current.trained_state()
        if not last:
            current = _continued(task, current, stage, trained, device)
    return trained


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


def _continued(task: Task, stitcher: Stitcher, stage: Candidate, trained: Trained, device: torch.device) -> Stitcher:
    """A stitcher over the trained model, in which what was removed is 0."""
    stitcher.apply(stage, trained)
    model: nn.Module = copy.deepcopy(stitcher.teacher)
    state = model.state_dict()
    state.update({name: value for name, value in stitcher.model.state_dict().items() if name in state})
    for name, simulated in stitcher.simulated.items():
        state[f"{name}.weight"] = simulated.weight.detach()
        if f"{name}.bias" in state and simulated.bias is not None:
            state[f"{name}.bias"] = simulated.bias.detach()
    model.load_state_dict(state)
    batches = [inputs for inputs, _ in take_samples(task.calibration_batches(), CALIBRATION_SAMPLES)]
    statistics = collect_statistics(model, stitcher.module_map, batches, device)
    losses = stitcher.library.evidence.losses
    library = VariantLibrary(Evidence(model, statistics, losses), None, stitcher.library.saturates)
    return Stitcher(model, stitcher.module_map, library, stitcher.plan)
