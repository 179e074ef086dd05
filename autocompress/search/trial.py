"""Judge one candidate, cheap before dear: size and latency, a few samples, the whole split, recovery."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from autocompress.candidate import Candidate
from autocompress.compress.recover import recover
from autocompress.compress.stitch import Trained
from autocompress.errors import RunFolderError
from autocompress.limits import Limits
from autocompress.measure.accuracy import evaluate_model, join_targets, model_outputs, scores_of
from autocompress.results import write_atomic
from autocompress.search.bench import Bench
from autocompress.search.racing import (
    RUNGS,
    Rival,
    Scores,
    decode_scores,
    encode_scores,
    sample_scores,
    surely_below,
    surely_dominated,
)
from autocompress.task import batch_size

RECOVERY_MIN_LOSS = 0.0005  # a candidate that lost less is not trained


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: values (size_bytes, latency_ms, accuracy) when complete, else the cause."""

    values: tuple[float, float, float] | None
    size_bytes: int
    latency_ms: float
    cause: str = ""
    violations: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


def candidate_key(candidate: Candidate, with_distillation: bool) -> str:
    """Hash of what is effectively done to the model."""
    data = candidate.to_json()
    if not with_distillation:
        data.pop("distillation")
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:24]


def trained_path(folder: Path, number: int) -> Path:
    """Where the weights of a recovered trial are."""
    return folder / "recovered" / f"{number:04d}.safetensors"


def read_trained(path: Path) -> Trained | None:
    """What the recovery of a trial left; None when there was none."""
    if not path.is_file():
        return None
    try:
        return Trained.from_tensors(load_file(path))
    except (SafetensorError, OSError, KeyError) as error:
        raise RunFolderError(f"{path}: damaged ({error}); remove it, the trial's untrained weights are used then") from error


@dataclass
class Judge:
    """Evaluates candidates of one study in one process."""

    bench: Bench
    limits: Limits
    folder: Path

    def judge(self, study: optuna.Study, number: int, candidate: Candidate) -> Outcome:
        """The outcome of `candidate`; raises what the model or the metric raises."""
        bench = self.bench
        size, latency = bench.size_bytes(candidate), bench.latency_ms(candidate)
        violations = self.limits.violations(size, latency, None)
        over = {name: share for name, share in violations.items() if share > 0}
        if over:
            what = ", ".join(f"{name} by {share:.1%}" for name, share in over.items())
            return Outcome(None, size, latency, f"over budget: {what}", violations)
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        earlier = self._answered(done, candidate)
        if earlier is not None:
            return self._repeated(earlier, size, latency)
        model = bench.stitcher.apply(candidate)
        rivals = self._rivals(done, size, latency)
        scores, outputs, cause = self._race(model, rivals)
        attributes: dict[str, Any] = {"samples": len(outputs)}
        if cause:
            return Outcome(None, size, latency, cause, violations, attributes)
        attributes["scores"] = encode_scores(scores)
        accuracy = scores_of(bench.task, outputs, join_targets(bench.targets)).accuracy
        attributes["accuracy_before_recovery"] = accuracy
        if self._worth_training(candidate, accuracy, done, size, latency):
            accuracy, improved = self._recover(number, candidate, accuracy)
            attributes["recovered"] = improved
            attributes["trained"] = True
        violations = self.limits.violations(size, latency, bench.baseline.accuracy - accuracy)
        return Outcome((float(size), latency, accuracy), size, latency, "", violations, attributes)

    def _answered(self, done: list[FrozenTrial], candidate: Candidate) -> FrozenTrial | None:
        plain, full = candidate_key(candidate, False), candidate_key(candidate, True)
        for trial in done:
            attributes = trial.user_attrs
            same = attributes.get("key_full") == full or (attributes.get("key") == plain and not attributes.get("trained"))
            if same and not attributes.get("repeats"):
                return trial
        return None

    @staticmethod
    def _repeated(earlier: FrozenTrial, size: int, latency: float) -> Outcome:
        attributes: dict[str, Any] = {"repeats": earlier.number + 1}  # + 1, so that a repeat of trial 0 is true as well
        cause = f"repeats trial {earlier.number}"
        if earlier.state == TrialState.PRUNED or earlier.values is None:
            return Outcome(None, size, latency, f"{cause}: {earlier.user_attrs.get('cause', '')}", earlier.constraints, attributes)
        attributes["accuracy_before_recovery"] = earlier.user_attrs.get("accuracy_before_recovery")
        values = (float(earlier.values[0]), float(earlier.values[1]), float(earlier.values[2]))
        return Outcome(values, size, latency, cause, earlier.constraints, attributes)

    @staticmethod
    def _rivals(done: list[FrozenTrial], size: int, latency: float) -> list[Rival]:
        return [
            Rival(t.number, decode_scores(t.user_attrs["scores"]))
            for t in done
            if t.state == TrialState.COMPLETE
            and "scores" in t.user_attrs
            and t.values[0] <= size
            and t.values[1] <= latency
            and all(v <= 0 for v in t.constraints.values())
        ]

    def _race(self, model: torch.nn.Module, rivals: list[Rival]) -> tuple[Scores, Tensor, str]:
        """(scores, outputs, cause to stop or "") on growing parts of the validation split."""
        bench = self.bench
        total = len(bench.teacher_outputs)
        rungs = [int(part * total) for part in RUNGS]
        outputs: list[Tensor] = []
        scores: list[Scores] = []
        seen = 0
        for (inputs, _), target in zip(bench.task.validation, bench.targets, strict=True):
            output = model_outputs(model, inputs, bench.device)
            outputs.append(output)
            reference = bench.teacher_outputs[seen : seen + len(output)]
            scores.append(sample_scores(bench.task, output, [target], reference, bench.by_metric))
            seen += batch_size(inputs)
            if rungs and rungs[0] <= seen < total:
                rungs = [rung for rung in rungs if rung > seen]
                cause = self._stop(np.concatenate(scores), rivals)
                if cause:
                    return np.concatenate(scores), torch.cat(outputs), cause
        return np.concatenate(scores), torch.cat(outputs), ""

    def _stop(self, scores: Scores, rivals: list[Rival]) -> str:
        winner = surely_dominated(scores, rivals)
        if winner is not None:
            return f"dominated by trial {winner} after {len(scores)} samples"
        drop = self.limits.max_accuracy_drop
        # Recovery may lift a candidate over the limit, so only the untrained are stopped for it.
        if self.bench.by_metric and drop is not None and self.bench.space.steps == 0:
            floor = self.bench.baseline.accuracy - drop
            if surely_below(scores, floor):
                return f"below accuracy {floor:.4f} after {len(scores)} samples"
        return ""

    def _worth_training(self, candidate: Candidate, accuracy: float, done: list[FrozenTrial], size: int, latency: float) -> bool:
        """Whether recovery could bring the candidate to the front: something was lost that no smaller and faster trial has kept."""
        goal = self.bench.baseline.accuracy
        if candidate.distillation.steps == 0 or goal - accuracy < RECOVERY_MIN_LOSS:
            return False
        return not any(
            t.values is not None and t.values[0] <= size and t.values[1] <= latency and t.values[2] >= goal - RECOVERY_MIN_LOSS
            for t in done
        )

    def _recover(self, number: int, candidate: Candidate, before: float) -> tuple[float, bool]:
        """(accuracy, whether training helped); better weights are on disk before the trial is told."""
        bench = self.bench
        stitcher = bench.stitcher
        trained = recover(bench.task, stitcher, candidate, bench.device)
        model = stitcher.apply(candidate, trained)
        after = evaluate_model(bench.task, model, bench.task.validation, bench.device)[0].accuracy
        if after <= before:
            return before, False
        write_atomic(trained_path(self.folder, number), save(trained.to_tensors()))
        return after, True
