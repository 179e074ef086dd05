"""Translate between the choices of an allocation and the indices of the space's knobs.

An allocation has one column per module and one per channel group. The search stores a candidate as
one ordered index per knob, so each column knows which knobs decide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from autocompress.candidate import ModuleConfig
from autocompress.space.axes import GROUP_AXES, MODULE_AXES, Choice
from autocompress.space.search_space import BoundSpace, Knob


@dataclass(frozen=True)
class Column:
    """Relate the choices of one column to the indices of its knobs.

    Attributes:
        parameters: Optuna parameters of its knobs.
        places: the places of its knobs among all knobs of the space.
        choices: the choice that each combination of indices means.
        indices: by choice, the index of each parameter.
    """

    parameters: tuple[str, ...]
    places: tuple[int, ...]
    choices: dict[tuple[int, ...], int]
    indices: tuple[dict[str, int], ...]


def module_column(space: BoundSpace, name: str, configs: Sequence[ModuleConfig]) -> Column:
    """Return the column of a module.

    Args:
        space: the knobs, and the values that are fixed.
        name: the module.
        configs: what its choices mean; several combinations of indices may mean the same config.
    """
    places = _places(space, name, MODULE_AXES)
    knobs = [space.knobs[place] for place in places]
    parameters = tuple(knob.parameter for knob in knobs)
    choices: dict[tuple[int, ...], int] = {}
    first: dict[int, tuple[int, ...]] = {}
    for index in product(*(range(len(knob.choices)) for knob in knobs)):
        config = _config(space, name, MODULE_AXES, knobs, index)
        choices[index] = configs.index(config)
        first.setdefault(choices[index], index)
    indices = [dict(zip(parameters, first[i], strict=True)) for i in range(len(first))]
    return Column(parameters, places, choices, tuple(indices))


def group_column(space: BoundSpace, name: str, configs: Sequence[ModuleConfig]) -> Column:
    """Return the column of a channel group.

    Args:
        space: the knobs, and the values that are fixed.
        name: root of the group.
        configs: one config per pruning ratio. A ratio under another criterion means the same
            choice.
    """
    places = _places(space, name, GROUP_AXES)
    knobs = [space.knobs[place] for place in places]
    ratios = [config.pruning_ratio for config in configs]
    choices: dict[tuple[int, ...], int] = {}
    for index in product(*(range(len(knob.choices)) for knob in knobs)):
        config = _config(space, name, GROUP_AXES, knobs, index)
        choices[index] = ratios.index(config.pruning_ratio)
    indices = [{knob.parameter: _index(knob, config) for knob in knobs} for config in configs]
    return Column(tuple(knob.parameter for knob in knobs), places, choices, tuple(indices))


def _places(space: BoundSpace, name: str, axes: tuple[str, ...]) -> tuple[int, ...]:
    places = []
    for i, knob in enumerate(space.knobs):
        if knob.module == name and knob.axis in axes:
            places.append(i)
    return tuple(places)


def _config(
    space: BoundSpace, name: str, axes: tuple[str, ...], knobs: list[Knob], index: tuple[int, ...]
) -> ModuleConfig:
    """Return the config of one combination of indices, with the values that are fixed."""
    values: dict[str, Choice] = {}
    for (module, axis), value in space.fixed.items():
        if module == name and axis in axes:
            values[axis] = value
    for knob, i in zip(knobs, index, strict=True):
        values[knob.axis] = knob.choices[i]
    return space.config(name, values)


def _index(knob: Knob, config: ModuleConfig) -> int:
    value = getattr(config, knob.axis)
    return knob.choices.index(value) if value in knob.choices else 0
