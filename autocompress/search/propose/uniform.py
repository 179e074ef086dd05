"""Name the first candidates of a search: one width for all modules.

They need neither sensitivities nor a latency table. So their files are made before anything is
measured, and they are the first trials of the study whatever its sampler is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.prune.masks import global_ratios
from autocompress.search.problem.problem import Problem
from autocompress.space.search_space import BoundSpace

WIDTHS: tuple[tuple[int, int], ...] = ((8, 8), (4, 8))  # bits of weights, of activations
WEIGHTS_ONLY = ModuleConfig(4, 32, symmetric=False)
COARSE, WHOLE = 256, 0  # inputs per scale: of the largest groups, or one scale for all of them
GLOBAL_RATIO = 0.3  # of all units of the pruned candidate
# Enqueued where time is limited: 8 bits, 4 bits, and the next one: 4 bits of another kind (float
# inputs, or large groups without zero points), which no other proposal gives to all modules at
# once, or 8 bits pruned where the space has no such kind.
FEWEST = 3

Parameters = dict[str, int]


def uniform_parameters(problem: Problem) -> list[Parameters]:
    """Return the uniform candidates as parameters of the study.

    8 bits and 4 bits on integer kernels. Widths that the space does not offer become its nearest
    ones. Linear layers whose inputs hold a few very large values, as in large language models,
    read them as floats (Dettmers et al. 2022). Such models also get a candidate of 4 bits with all
    inputs as floats: rounded inputs cost them more than rounded weights. There is one scale per
    channel, or those of the smallest groups where all are groups, and 4 bits have zero points.
    Where the space has a choice there, 4 bits with the fewest scales and without zero points,
    which are the smallest and fastest, are a candidate too.
    Where channels can be pruned, the last one has 8 bits with all channel groups pruned by one
    threshold on their magnitudes.

    Args:
        problem: its space, and the magnitudes of its groups.

    Returns:
        Distinct points of the space: index of each knob by parameter.
    """
    space = problem.space
    wide = {
        name for name in problem.stitcher.library.evidence.wide if space.kinds.get(name) == "linear"
    }

    def config(name: str, bits: tuple[int, int], ratio: float = 0.0) -> ModuleConfig:
        inputs = 32 if name in wide else bits[1]
        return ModuleConfig(bits[0], inputs, symmetric=bits[0] > 4, pruning_ratio=ratio)

    def coarse(name: str) -> int:
        return WHOLE if WHOLE in space.numbers(name, "group_size") else COARSE

    uniform = [{name: config(name, bits) for name in space.kinds} for bits in WIDTHS]
    if wide:
        uniform.append(dict.fromkeys(space.kinds, WEIGHTS_ONLY))
    if any(knob.axis in ("group_size", "symmetric") for knob in space.knobs):
        last = uniform[-1].items()
        uniform.append({n: replace(one, group_size=coarse(n), symmetric=True) for n, one in last})
    ratios = _pruning_ratios(problem)
    if ratios:
        uniform.append({n: config(n, WIDTHS[0], ratios.get(n, 0.0)) for n in space.kinds})
    distinct: list[Parameters] = []
    for configs in uniform:
        parameters = nearest_parameters(space, configs)
        if parameters not in distinct:
            distinct.append(parameters)
    return distinct


def nearest_parameters(space: BoundSpace, configs: Mapping[str, ModuleConfig]) -> Parameters:
    """Return the point of a space that is nearest to some configs.

    Args:
        space: the search space.
        configs: by module; a value that a knob does not offer becomes its nearest choice.

    Returns:
        Index of each knob by parameter.
    """
    indices = {}
    for knob in space.knobs:
        indices[knob.parameter] = _nearest(knob.choices, getattr(configs[knob.module], knob.axis))
    return indices


def enqueue(study: optuna.Study, points: Sequence[Parameters]) -> bool:
    """Make points the first trials of a study, as far as it lacks them.

    Args:
        study: the study.
        points: in the order of the trials' numbers.

    Returns:
        False if a trial of the study has the number of a point, but is of another candidate.
        Nothing is enqueued then.
    """
    trials = study.get_trials(deepcopy=False)
    for trial, point in zip(trials, points, strict=False):
        values = _values(trial)
        if any(values.get(name) != value for name, value in point.items()):
            return False
    for point in points[len(trials) :]:
        study.enqueue_trial(point)
    return True


def enqueued(study: optuna.Study) -> int:
    """Return the number of trials that were enqueued before the sampler's first proposal.

    Args:
        study: the study.
    """
    count = 0
    for trial in study.get_trials(deepcopy=False):
        if "fixed_params" not in trial.system_attrs:
            break
        count += 1
    return count


def most_in_time(files: Collection[int] | None) -> int | None:
    """Return the number of uniform candidates that there is time for; None for all.

    Args:
        files: numbers of those that have a file; None where no timeout limits them.
    """
    return None if files is None else max(FEWEST, 1 + max(files, default=0))


def points_in_time(
    study: optuna.Study, points: Sequence[Parameters], files: Collection[int] | None
) -> Sequence[Parameters]:
    """Return the uniform candidates that are the first trials of a study.

    Args:
        study: if it has trials, it keeps those that it began with.
        points: all uniform candidates.
        files: as `most_in_time`.
    """
    if study.get_trials(deepcopy=False):
        return points[: max(1, enqueued(study))]
    return points[: most_in_time(files)]


def first_candidates(
    study: optuna.Study, space: BoundSpace, count: int
) -> dict[int, tuple[Candidate, ...]]:
    """Return the candidates of the first trials of a study.

    Args:
        study: the study; trials that wait count too.
        space: the search space.
        count: number of trials.

    Returns:
        By number of the trial the candidate as it is now, and as it was before it was known which
        ranks gain nothing. Empty where there is no such trial, or it is of another space.
    """
    candidates: dict[int, tuple[Candidate, ...]] = dict.fromkeys(range(count), ())
    before = replace(space, no_gain=frozenset())
    for trial in study.get_trials(deepcopy=False)[:count]:
        values = _values(trial)
        if all(knob.parameter in values for knob in space.knobs):
            candidates[trial.number] = (space.candidate(values), before.candidate(values))
    return candidates


def _values(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of a trial, those that it waits with included."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _pruning_ratios(problem: Problem) -> dict[str, float]:
    """Return the ratio of each group for one threshold on all units, {} if none can be pruned."""
    scores = {}
    for group in problem.module_map.groups:
        largest = max(problem.space.numbers(group.name, "pruning_ratio"))
        if group.reason is None and largest > 0:
            scores[group.name] = problem.layout.pruner.scores(group, "l2")
    return global_ratios(scores, GLOBAL_RATIO) if scores else {}


def _nearest(choices: Sequence[float | str], value: float | str) -> int:
    if isinstance(value, str) or isinstance(choices[0], str):
        return choices.index(value) if value in choices else 0
    return int(np.argmin([abs(float(choice) - value) for choice in choices]))
