"""Judge one candidate, cheap before dear: size and latency, a few samples, the whole split, recovery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from autocompress.candidate import Candidate
from autocompress.measure.accuracy import metric_outputs, scores_of
from autocompress.results.limits import Limits
from autocompress.search.evaluate.racing import (
    LEAST_BATCHES,
    NEAR,
    PARTS,
    Rival,
    Scores,
    sample_scores,
    surely_below,
    surely_dominated,
)
from autocompress.search.evaluate.recovery import (
    RUNGS,
    beaten,
    least_loss,
    recover_candidate,
    worth_training,
)
from autocompress.search.problem.bench import Bench
from autocompress.search.problem.goal import Goal
from autocompress.search.propose.trial_model import worth_finishing


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: values (size_bytes, latency_ms, accuracy, extra metrics that are objectives) when complete, else the cause."""

    values: tuple[float, ...] | None
    size_bytes: int
    latency_ms: float
    cause: str = ""
    violations: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Judge:
    """Evaluates candidates of one study in one process; with `parts` () none is stopped before the whole split was seen."""

    bench: Bench
    limits: Limits
    folder: Path
    parts: tuple[float, ...] = PARTS
    _decoded: dict[int, Rival] = field(default_factory=dict)

    @property
    def goal(self) -> Goal:
        """What candidates are judged by."""
        return Goal(self.bench.baseline, self.limits, self.bench.space.objectives)

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
        rivals = self._comparable(done)
        model = bench.stitcher.apply(candidate)
        scores, outputs, cause = self._race(model, done, size, latency)
        total = len(bench.race.teacher)
        count = len(scores)
        seen = {"seen": count / total, "divergence": float(scores.divergence.mean())}
        attributes: dict[str, Any] = {"samples": count, **seen}
        if cause:
            return Outcome(None, size, latency, cause, violations, attributes)
        attributes |= {"scores": scores.encoded(total), "race": bench.race.digest}
        found = scores_of(bench.task, bench.race.joined(outputs), bench.race.answers)
        attributes["accuracy_before_recovery"] = found.accuracy
        if worth_training(self.goal, candidate, found, rivals, size, latency):
            stops = partial(beaten, rivals, size, latency)
            lesson = recover_candidate(
                bench,
                self.folder,
                number,
                candidate,
                found,
                self.goal,
                least_loss(self.limits),
                stops,
            )
            attributes |= {
                "recovered": lesson.improved,
                "trained": True,
                RUNGS: {"0": found.accuracy, **lesson.rungs},
            }
            found, cause = lesson.scores, lesson.cause
        attributes["metrics"] = dict(found.metrics)
        violations = self.limits.violations(
            size, latency, bench.baseline.accuracy - found.accuracy, found.metrics
        )
        values = (
            float(size),
            latency,
            found.accuracy,
            *(found.metrics[name] for name in self.goal.objectives),
        )
        return Outcome(values, size, latency, cause, violations, attributes)

    def _answered(self, done: list[FrozenTrial], candidate: Candidate) -> FrozenTrial | None:
        plain, full = Candidate(candidate.modules).digest, candidate.digest
        for trial in done:
            attributes = trial.user_attrs
            same = attributes.get("key_full") == full or (
                attributes.get("key") == plain and not attributes.get("trained")
            )
            if same and not attributes.get("repeats"):
                return trial
        return None

    @staticmethod
    def _repeated(earlier: FrozenTrial, size: int, latency: float) -> Outcome:
        attributes: dict[str, Any] = {
            "repeats": earlier.number + 1
        }  # + 1, so that a repeat of trial 0 is true as well
        cause = f"repeats trial {earlier.number}"
        if earlier.state == TrialState.PRUNED or earlier.values is None:
            return Outcome(
                None,
                size,
                latency,
                f"{cause}: {earlier.user_attrs.get('cause', '')}",
                earlier.constraints,
                attributes,
            )
        attributes |= {
            name: earlier.user_attrs.get(name) for name in ("accuracy_before_recovery", "metrics")
        }
        return Outcome(
            tuple(map(float, earlier.values)), size, latency, cause, earlier.constraints, attributes
        )

    def _comparable(self, done: list[FrozenTrial]) -> list[FrozenTrial]:
        """Those whose accuracy alone shows whether they beat a candidate: none where other qualities are objectives too."""
        return [] if self.bench.space.objectives else done

    def _rivals(self, done: list[FrozenTrial], size: int, latency: float) -> list[Rival]:
        return [
            self._rival(t)
            for t in done
            if t.state == TrialState.COMPLETE
            and isinstance(t.user_attrs.get("scores"), Mapping)
            and t.user_attrs.get("race") == self.bench.race.digest
            and t.values[0] <= size * NEAR
            and t.values[1] <= latency * NEAR
            and all(v <= 0 for v in t.constraints.values())
        ]

    def _rival(self, trial: FrozenTrial) -> Rival:
        if trial.number not in self._decoded:
            self._decoded[trial.number] = Rival(
                trial.number, Scores.decoded(trial.user_attrs["scores"])
            )
        return self._decoded[trial.number]

    def _race(
        self, model: torch.nn.Module, done: list[FrozenTrial], size: int, latency: float
    ) -> tuple[Scores, list[dict[str, Tensor]], str]:
        """(scores, outputs, cause to stop or "") on growing parts of the validation split."""
        bench, rivals = self.bench, self._rivals(self._comparable(done), size, latency)
        race = bench.race
        steps = bench.space.recovery.steps
        total = len(bench.race.teacher)
        rungs = [int(part * total) for part in self.parts]
        outputs: list[dict[str, Tensor]] = []
        scores: list[Scores] = []
        seen = 0
        for (inputs, _), target in zip(race.batches, race.targets, strict=True):
            outputs.append(metric_outputs(bench.task, model, inputs, bench.device))
            output = outputs[-1][""]
            scores.append(
                sample_scores(
                    bench.task, output, target, race.expected(seen, len(output)), race.scored
                )
            )
            seen += len(output)
            if rungs and rungs[0] <= seen < total and (race.mixed or len(outputs) >= LEAST_BATCHES):
                rungs = [rung for rung in rungs if rung > seen]
                joined = Scores.joined(scores)
                cause = self._stop(
                    joined, rivals, [] if race.mixed else [len(found[""]) for found in outputs]
                )
                if not cause and not worth_finishing(
                    done, self.goal, steps, size, latency, joined.divergence
                ):
                    cause = f"expected to add nothing to the front after {len(joined)} samples"
                if cause:
                    return joined, outputs, cause
        return Scores.joined(scores), outputs, ""

    def _stop(self, scores: Scores, rivals: list[Rival], sizes: list[int]) -> str:
        winner = surely_dominated(scores, rivals, sizes)
        if winner is not None:
            return f"dominated by trial {winner} after {len(scores)} samples"
        drop = self.limits.max_accuracy_drop
        # Recovery may lift a candidate over the limit, so only the untrained are stopped for it.
        if scores.metric is not None and drop is not None and self.bench.space.recovery.steps == 0:
            floor = self.bench.baseline.accuracy - drop
            if surely_below(scores.metric, floor, sizes):
                return f"below accuracy {floor:.4f} after {len(scores)} samples"
        return ""
