"""Propose progressive quantization: narrow one module at a time while accuracy holds.

The strategy "progressive" of a search; an alternative to the guided sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from autocompress.candidate import ModuleConfig
from autocompress.results.limits import Limits, are_kept
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.sampler import distributions
from autocompress.space.recovery import ALPHA
from autocompress.space.search_space import BoundSpace

DEFAULT_DROP = 0.01


class ProgressiveSampler(BaseSampler):
    """Walk down the widths of the space, one module and one width per trial.

    The walk starts at the widest weights. Activations are at 8 bits where the space offers them,
    every other knob is at its first choice. Modules are narrowed in rounds, from least to most
    sensitive. A step is taken back if it ends below the accuracy floor or violates a limit; the
    module then stays as it is. The state of the walk follows from the stored trials alone: a
    stopped search resumes anywhere, and a guided search in the same study uses its trials.
    """

    def __init__(
        self,
        space: BoundSpace,
        losses: Mapping[tuple[str, ModuleConfig], float],
        floor: float,
        limits: Limits,
        seed: int,
    ) -> None:
        self._space = space
        self._floor, self._limits = floor, limits
        self._distributions = distributions(space)
        self._random = RandomSampler(seed=seed)
        self._widths = {k.module: len(k.choices) for k in space.knobs if k.axis == "weight_bits"}
        self._order = sorted(self._widths, key=lambda name: self._harm(name, losses))

    def _harm(self, name: str, losses: Mapping[tuple[str, ModuleConfig], float]) -> float:
        narrowest = min(self._space.numbers(name, "weight_bits"))
        harms = []
        for (module, config), loss in losses.items():
            if module == name and config.weight_bits == narrowest:
                harms.append(loss)
        return min(harms, default=0.0)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the whole space.

        Args:
            study, trial: not used.
        """
        return self._distributions

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a random value for a parameter that a user adds to the space.

        Args:
            study: the study.
            trial: the trial that asks.
            param_name: name of the parameter.
            param_distribution: its values.
        """
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the next step, or the last accepted point if the walk is over.

        Args:
            study: holds the trials that say where the walk stands.
            trial, search_space: not used.

        Returns:
            The value of each parameter of the space.
        """
        proposal, accepted = self._walk(study)
        extra: dict[str, Any] = dict.fromkeys(self._space.recovery.searched, 0)
        if ALPHA in self._distributions:
            extra[ALPHA] = sum(self._space.recovery.alphas) / 2
        return {**self._parameters(accepted if proposal is None else proposal), **extra}

    def finished(self, study: optuna.Study) -> bool:
        """Return True if no step is left.

        Args:
            study: holds the trials that say where the walk stands.
        """
        return self._walk(study)[0] is None

    def _walk(self, study: optuna.Study) -> tuple[dict[str, int] | None, dict[str, int]]:
        """Return (first step without an outcome or None, accepted widths), as indices by module."""
        ended = study.get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        )
        names = [knob.parameter for knob in self._space.knobs]
        outcomes = {}
        for trial in ended:
            record = TrialRecord.from_trial(trial)
            if record.stands(self._limits) and all(name in record.params for name in names):
                outcomes[tuple(record.params[name] for name in names)] = record

        def outcome(widths: dict[str, int]) -> TrialRecord | None:
            return outcomes.get(tuple(self._parameters(widths)[name] for name in names))

        accepted = dict.fromkeys(self._order, 0)
        if outcome(accepted) is None:
            return accepted, accepted
        frozen: set[str] = set()
        while True:
            movable = []
            for name in self._order:
                if name not in frozen and accepted[name] + 1 < self._widths[name]:
                    movable.append(name)
            if not movable:
                return None, accepted
            for name in movable:
                step = {**accepted, name: accepted[name] + 1}
                ended_step = outcome(step)
                if ended_step is None:
                    return step, accepted
                if self._holds(ended_step):
                    accepted = step
                else:
                    frozen.add(name)

    def _holds(self, record: TrialRecord) -> bool:
        if not record.is_complete or record.accuracy < self._floor:
            return False
        return are_kept(record.missed(self._limits, self._limits.accuracy, None))

    def _parameters(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Return the index of every knob, by Optuna parameter."""
        parameters = {}
        for knob in self._space.knobs:
            if knob.axis == "weight_bits":
                parameters[knob.parameter] = widths[knob.module]
            elif knob.axis == "activation_bits" and 8 in knob.choices:
                parameters[knob.parameter] = knob.choices.index(8)
            else:
                parameters[knob.parameter] = 0
        return parameters
