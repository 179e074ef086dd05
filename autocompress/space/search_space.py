"""Parse a search space and bind it to the modules of one model and to a target.

A space is ordered rules in YAML; the first rule that matches a module gives its choices.
`SearchSpace` holds the parsed rules, `BoundSpace` the knobs of one model, which the search turns
into candidates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from autocompress.candidate import UNTOUCHED, Candidate, ModuleConfig
from autocompress.errors import SpaceError
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.space.axes import (
    AXES,
    GROUP_AXES,
    MODULE_AXES,
    Choice,
    check_keys,
    choices_of,
)
from autocompress.space.effects import Applicability, not_executable, without_effect
from autocompress.space.keys import (
    ACTIVATION_RANGE,
    KEYS,
    check_towers,
    parse_constraints,
    parse_objectives,
    parse_range,
)
from autocompress.space.recovery import RecoverySpace, parse_recovery
from autocompress.space.rules import EXAMPLE, check_used, parse_rules, rule_of
from autocompress.space.source import default_rules, fits_any_model, read_space
from autocompress.targets.target import Target


@dataclass(frozen=True)
class Knob:
    """Describe one Optuna parameter: an axis of a module and its choices.

    Attributes:
        module: qualified name of the module.
        axis: one of AXES.
        choices: at least two, from least to most compressed if the axis has an order.
    """

    module: str
    axis: str
    choices: tuple[Choice, ...]

    @property
    def parameter(self) -> str:
        """Return the parameter's name in the study."""
        return f"{self.module}/{self.axis}"


@dataclass(frozen=True)
class BoundSpace:
    """Hold the space of one model: a fixed set of knobs that do not depend on each other.

    Attributes:
        knobs: every (module, axis) with at least two choices.
        fixed: the single choice of every other (module, axis) that a rule names.
        kinds: kind of each module by name.
        integer_kinds: kinds that the target runs on integer kernels.
        recovery: how candidates may be trained.
        constraints: limits that the space names.
        digest: hash of the choices; two runs with the same digest search the same space.
        no_gain: (module, rank_ratio, decomposition) whose factors are neither smaller nor faster;
            such a choice leaves the module whole.
        left_out: choices of the rules that the target cannot execute, in words.
        without_effect: axes of the user's rules that change none of their modules, in words;
            normalisations and groups are known once the model's graph is.
        objectives: extra metrics of the task that are maximised beside accuracy.
        activation_range: method by which the ranges of static activations are found.
        integers_only: True if rounded weights are computed with on 8-bit inputs of calibrated
            ranges alone.
    """

    knobs: tuple[Knob, ...]
    fixed: Mapping[tuple[str, str], Choice]
    kinds: Mapping[str, str]
    integer_kinds: tuple[str, ...]
    recovery: RecoverySpace
    constraints: Mapping[str, Any]
    digest: str = ""
    no_gain: frozenset[tuple[str, float, str]] = frozenset()
    left_out: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ()
    activation_range: str = ACTIVATION_RANGE
    integers_only: bool = False

    def candidate(self, parameters: Mapping[str, float]) -> Candidate:
        """Return the candidate that the study's parameters stand for.

        Args:
            parameters: index into each knob's choices by parameter name, and the recovery's
                parameters.

        Returns:
            The candidate with effective configs.
        """
        values: dict[str, dict[str, Choice]] = {}
        for (module, axis), value in self.fixed.items():
            values.setdefault(module, {})[axis] = value
        for knob in self.knobs:
            index = int(parameters[knob.parameter])
            values.setdefault(knob.module, {})[knob.axis] = knob.choices[index]
        configs = {module: self.config(module, axes) for module, axes in values.items()}
        return Candidate.of(configs, self.recovery.distillation(parameters))

    def config(self, module: str, axes: Mapping[str, Choice]) -> ModuleConfig:
        """Return the effective config of a module.

        Args:
            module: qualified name of the module.
            axes: value by axis; other axes leave the module as it is.

        Returns:
            The config without values that the module's kind cannot use.
        """
        values: dict[str, Any] = {}
        for axis, value in axes.items():
            values[axis] = type(getattr(UNTOUCHED, axis))(value)
        rank_ratio = values.get("rank_ratio", 1.0)
        if (module, rank_ratio, values.get("decomposition", "auto")) in self.no_gain:
            values["rank_ratio"] = 1.0
        kind = self.kinds[module]
        if self.integers_only:
            rounded = kind in self.integer_kinds and int(values.get("weight_bits", 32)) <= 8
            values["activation_bits"] = 8 if rounded else 32
            values["activation_mode"] = "static" if rounded and kind == "linear" else "auto"
        config = ModuleConfig(**values)
        if kind not in self.integer_kinds or (
            config.activation_bits == 8 and not config.integer(kind)
        ):
            config = replace(config, activation_bits=32)
        return config.effective()

    def choices(self, module: str, axis: str) -> tuple[Choice, ...]:
        """Return the choices of one axis of a module.

        Args:
            module: qualified name of the module.
            axis: one of AXES.

        Returns:
            At least one choice: that of an untouched module if the space does not name the axis.
        """
        for knob in self.knobs:
            if (knob.module, knob.axis) == (module, axis):
                return knob.choices
        return (self.fixed.get((module, axis), getattr(UNTOUCHED, axis)),)

    def numbers(self, module: str, axis: str) -> tuple[float, ...]:
        """Return the choices of an axis that holds numbers.

        Args:
            module: qualified name of the module.
            axis: one of AXES with numbers.

        Returns:
            As `choices`.
        """
        return tuple(float(choice) for choice in self.choices(module, axis))

    def configs(self, module: str) -> tuple[ModuleConfig, ...]:
        """Return the distinct effective configs of a module whose channel group is not pruned.

        Args:
            module: qualified name of the module.
        """
        return self._configs(module, MODULE_AXES)

    def group_configs(self, module: str) -> tuple[ModuleConfig, ...]:
        """Return the distinct configs of a channel group.

        Args:
            module: qualified name of the group's root.
        """
        return self._configs(module, GROUP_AXES)

    def _configs(self, module: str, axes: Sequence[str]) -> tuple[ModuleConfig, ...]:
        configs: dict[ModuleConfig, None] = {}
        for values in product(*(self.choices(module, axis) for axis in axes)):
            configs[self.config(module, dict(zip(axes, values, strict=True)))] = None
        return tuple(configs)


@dataclass(frozen=True)
class SearchSpace:
    """Hold the parsed rules of a space.

    Attributes:
        where: file or name of the space, for errors.
        rules: matchers and axes; the first rule that matches a module wins.
        distillation: how candidates may be trained (`recovery.parse_recovery`).
        constraints: limits that the space names.
        every_rule_must_match: False for shipped spaces, which are for many models.
        activation_range: method by which the ranges of static activations are found, for all
            modules, because modules that read one tensor share its range.
        objectives: extra metrics of the task that are maximised beside accuracy.
    """

    where: str
    rules: tuple[Mapping[str, Any], ...]
    distillation: Mapping[str, Any] = field(default_factory=dict)
    constraints: Mapping[str, Any] = field(default_factory=dict)
    every_rule_must_match: bool = True
    activation_range: str = ACTIVATION_RANGE
    objectives: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        source: str | Path | Mapping[str, Any] | None,
        pipeline: str | None = None,
        phase: str = "",
    ) -> SearchSpace:
        """Return the space of a YAML file, a shipped space, a mapping, or the default space.

        Args:
            source: path of a YAML file, name of a shipped space (if there is no such file),
                mapping, or None for the default space.
            pipeline: `Task.pipeline`, by which the default space is chosen.
            phase: `Target.phase`, by which it is chosen too.

        Raises:
            SpaceError: if the source cannot be read, or a key or value is invalid.
        """
        where, data = read_space(source, pipeline, phase)
        space = cls._checked(where, data, pipeline, phase)
        return replace(
            space, every_rule_must_match="modules" in data and not fits_any_model(source)
        )

    @classmethod
    def _checked(cls, where: str, data: Any, pipeline: str | None, phase: str) -> SearchSpace:
        if not isinstance(data, dict):
            came = "an empty file" if data is None else type(data).__name__
            raise SpaceError(f"{where}: expected a mapping such as {EXAMPLE}, got {came}")
        check_keys(where, data, KEYS)
        given = data["modules"] if "modules" in data else default_rules(pipeline, phase)
        rules = parse_rules(where, given)
        distillation = data.get("distillation") or {}
        parse_recovery(where, distillation)
        constraints = parse_constraints(where, data.get("constraints") or {})
        return cls(
            where,
            rules,
            distillation,
            constraints,
            activation_range=parse_range(where, data.get("calibration") or {}),
            objectives=parse_objectives(where, data.get("objectives") or []),
        )

    def bind(self, module_map: ModuleMap, target: Target) -> BoundSpace:
        """Return the knobs on the modules of a model.

        Args:
            module_map: the compressible modules and channel groups of the model.
            target: the runtime and machine; choices that it cannot execute are left out.

        Returns:
            The bound space.

        Raises:
            SpaceError: if a value is invalid, or a rule matches no module.
            TargetError: if the target can execute none of the choices of an axis.
        """
        used: dict[int, list[CompressibleModule]] = {}
        knobs: list[Knob] = []
        fixed: dict[tuple[str, str], Choice] = {}
        applies = Applicability(module_map, target)
        for module in module_map:
            position = rule_of(module, self.rules)
            if position is None:
                continue
            used.setdefault(position, []).append(module)
            rule = self.rules[position]
            for axis in AXES:
                if axis not in rule:
                    continue
                where = f"{self.where}: rule {position + 1}"
                choices = choices_of(where, axis, rule[axis], target)
                if not applies(axis, module):
                    continue
                if len(choices) == 1:
                    fixed[module.name, axis] = choices[0]
                else:
                    knobs.append(Knob(module.name, axis, choices))
        effects: tuple[str, ...] = ()
        if self.every_rule_must_match:
            check_used(self.where, self.rules, set(used), module_map)
            effects = without_effect(self.where, self.rules, used, applies)
        check_towers(self.where, self.constraints, {module.tower for module in module_map})
        recovery = parse_recovery(self.where, self.distillation)
        return BoundSpace(
            tuple(knobs),
            fixed,
            {module.name: module.kind for module in module_map},
            target.integer_kinds,
            recovery,
            dict(self.constraints),
            self._digest(knobs, recovery),
            left_out=not_executable(self.where, self.rules, used, target),
            without_effect=effects,
            objectives=tuple(self.objectives),
            activation_range=self.activation_range,
            integers_only=target.integers_only,
        )

    def _digest(self, knobs: Sequence[Knob], recovery: RecoverySpace) -> str:
        content: list[Any] = [[knob.parameter, knob.choices] for knob in knobs]
        content += [asdict(recovery), self.activation_range, *self.objectives]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
