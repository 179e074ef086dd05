"""Progressive quantization: one module after another, the least sensitive first, goes one width down while accuracy holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from autocompress.candidate import ModuleConfig
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.sampler import distributions
from autocompress.space.recovery import ALPHA
from autocompress.space.search_space import BoundSpace

DEFAULT_DROP = 0.01


class ProgressiveSampler(BaseSampler):
    """Walks down the widths of the space, one module and one width per trial.

    The walk starts at the widest weights, on integer kernels where the space offers them and with every other knob at its most
    careful choice. It passes over the modules in the order of falling harmlessness (`losses`, the divergence of each module alone
    at its narrowest); a step that ends below the accuracy `floor`, or violates a limit, is taken back and the module stays where it
    is. Where the walk stands follows from the told trials alone, so that it resumes anywhere, and a guided search in
    the same study goes on from its points.
    """

    def __init__(
        self,
        space: BoundSpace,
        losses: Mapping[tuple[str, ModuleConfig], float],
        floor: float,
        seed: int,
    ) -> None:
        self._space = space
        self._floor = floor
        self._distributions = distributions(space)
        self._random = RandomSampler(seed=seed)
        self._widths = {k.module: len(k.choices) for k in space.knobs if k.axis == "weight_bits"}
        self._order = sorted(self._widths, key=lambda name: self._harm(name, losses))

    def _harm(self, name: str, losses: Mapping[tuple[str, ModuleConfig], float]) -> float:
        narrowest = min(self._space.numbers(name, "weight_bits"))
        found = [
            loss
            for (module, config), loss in losses.items()
            if module == name and config.weight_bits == narrowest
        ]
        return min(found, default=0.0)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Always the whole space."""
        return self._distributions

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Never needed for the fixed space; random for parameters that a user adds."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next step; the last accepted point again when the walk is over."""
        proposal, accepted = self._walk(study)
        extra: dict[str, Any] = dict.fromkeys(self._space.recovery.searched, 0)
        if ALPHA in self._distributions:
            extra[ALPHA] = sum(self._space.recovery.alphas) / 2
        return {**self._parameters(accepted if proposal is None else proposal), **extra}

    def finished(self, study: optuna.Study) -> bool:
        """Whether no step is left."""
        return self._walk(study)[0] is None

    def _walk(self, study: optuna.Study) -> tuple[dict[str, int] | None, dict[str, int]]:
        """(the first step without an outcome, the last accepted widths), as indices by module."""
        told = study.get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        )
        names = [knob.parameter for knob in self._space.knobs]
        outcomes = {
            tuple(t.params[name] for name in names): t
            for t in told
            if all(name in t.params for name in names)
        }

        def outcome(widths: dict[str, int]) -> FrozenTrial | None:
            return outcomes.get(tuple(self._parameters(widths)[name] for name in names))

        accepted = dict.fromkeys(self._order, 0)
        if outcome(accepted) is None:
            return accepted, accepted
        frozen: set[str] = set()
        while True:
            movable = [
                name
                for name in self._order
                if name not in frozen and accepted[name] + 1 < self._widths[name]
            ]
            if not movable:
                return None, accepted
            for name in movable:
                step = {**accepted, name: accepted[name] + 1}
                trial = outcome(step)
                if trial is None:
                    return step, accepted
                if self._holds(trial):
                    accepted = step
                else:
                    frozen.add(name)

    def _holds(self, trial: FrozenTrial) -> bool:
        record = TrialRecord.from_trial(trial)
        return record.is_complete and record.accuracy >= self._floor and record.feasible

    def _parameters(self, widths: Mapping[str, int]) -> dict[str, int]:
        """The index of every knob."""
        found = {}
        for knob in self._space.knobs:
            if knob.axis == "weight_bits":
                found[knob.parameter] = widths[knob.module]
            else:
                found[knob.parameter] = (
                    knob.choices.index(8)
                    if knob.axis == "activation_bits" and 8 in knob.choices
                    else 0
                )
        return found
