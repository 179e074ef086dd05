"""The search space: ordered rules in YAML, bound to the modules of one model and to what the target can execute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from autocompress.candidate import UNTOUCHED, WEIGHT_RANGES, Candidate, ModuleConfig
from autocompress.errors import SpaceError, nearest_name
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.space.axes import (
    AXES,
    GROUP_AXES,
    MODULE_AXES,
    Choice,
    check_keys,
    choices_of,
    spread,
)
from autocompress.space.recovery import RecoverySpace, parse_recovery
from autocompress.targets.target import Target

ACTIVATION_RANGE = "squared_error"
EXAMPLE = "modules: [{match: '*', weight_bits: [4, 8]}]"
MATCHERS = ("match", "tower", "role", "kind")
DEFAULT_SPACE = """
modules:
  - role: head
    weight_bits: [8, 16]
    activation_bits: [8, 32]
  - kind: conv
    weight_bits: [3, 4, 8]
    activation_bits: [8, 32]
    pruning_ratio: {low: 0.0, high: 0.5, step: 0.125}
  - match: "*"
    weight_bits: [3, 4, 8]
    activation_bits: [8, 32]
    rank_ratio: [0.25, 1.0]
    pruning_ratio: {low: 0.0, high: 0.75, step: 0.125}
distillation: {alpha: {low: 0.0, high: 1.0}, temperature: [1, 2, 4], steps: [0, 30, 100]}
"""


@dataclass(frozen=True)
class Knob:
    """One Optuna parameter: an axis of a module with its choices, ordered from careful to small where they have an order."""

    module: str
    axis: str
    choices: tuple[Choice, ...]

    @property
    def parameter(self) -> str:
        """Name in the study."""
        return f"{self.module}/{self.axis}"


@dataclass(frozen=True)
class BoundSpace:
    """The space of one model: a fixed set of knobs, none of which depends on another.

    Attributes:
        knobs: every (module, axis) with at least two choices; `fixed` the ones with a single choice.
        recovery: how candidates may be trained.
        no_gain: (module, rank_ratio, decomposition) whose factors are neither smaller nor faster; such a choice leaves the module whole.
        left_out: what the rules offer and the target cannot execute, in words.
        objectives: extra metrics of the task that are maximised beside accuracy.
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
    objectives: tuple[str, ...] = ()

    def candidate(self, parameters: Mapping[str, float]) -> Candidate:
        """The candidate of the study's parameters: ordered indices by name, and alpha."""
        values: dict[str, dict[str, Choice]] = {}
        for (module, axis), value in self.fixed.items():
            values.setdefault(module, {})[axis] = value
        for knob in self.knobs:
            values.setdefault(knob.module, {})[knob.axis] = knob.choices[
                int(parameters[knob.parameter])
            ]
        configs = {module: self.config(module, axes) for module, axes in values.items()}
        return Candidate.of(configs, self.recovery.distillation(parameters))

    def config(self, module: str, axes: Mapping[str, Choice]) -> ModuleConfig:
        """The effective config of axis values: what the module's kind cannot do is left out."""
        values: dict[str, Any] = {
            axis: type(getattr(UNTOUCHED, axis))(value) for axis, value in axes.items()
        }
        if (
            module,
            values.get("rank_ratio", 1.0),
            values.get("decomposition", "auto"),
        ) in self.no_gain:
            values["rank_ratio"] = 1.0
        config = ModuleConfig(**values)
        kind = self.kinds[module]
        if kind not in self.integer_kinds or (
            config.activation_bits == 8 and not config.integer(kind)
        ):
            config = replace(config, activation_bits=32)
        return config.effective()

    def choices(self, module: str, axis: str) -> tuple[Choice, ...]:
        """The choices of one axis of a module (its default where the space does not name it)."""
        for knob in self.knobs:
            if (knob.module, knob.axis) == (module, axis):
                return knob.choices
        return (self.fixed.get((module, axis), getattr(UNTOUCHED, axis)),)

    def numbers(self, module: str, axis: str) -> tuple[float, ...]:
        """The choices of an axis that holds numbers."""
        return tuple(float(choice) for choice in self.choices(module, axis))

    def configs(self, module: str) -> tuple[ModuleConfig, ...]:
        """The distinct effective configs of a module, its group left whole."""
        axes = [self.choices(module, axis) for axis in MODULE_AXES]
        found = [
            self.config(module, dict(zip(MODULE_AXES, values, strict=True)))
            for values in product(*axes)
        ]
        return tuple(dict.fromkeys(found))

    def group_configs(self, module: str) -> tuple[ModuleConfig, ...]:
        """The distinct choices of the channel group whose root is `module`."""
        axes = [self.choices(module, axis) for axis in GROUP_AXES]
        found = [
            self.config(module, dict(zip(GROUP_AXES, values, strict=True)))
            for values in product(*axes)
        ]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class SearchSpace:
    """The parsed rules; `where` names the file in errors. A user's rule must match something, the default rules need not.

    `activation_range` is how the ranges of static activations are calibrated, for all modules: those that read one tensor share it.
    """

    where: str
    rules: tuple[Mapping[str, Any], ...]
    distillation: Mapping[str, Any] = field(default_factory=dict)
    constraints: Mapping[str, Any] = field(default_factory=dict)
    every_rule_must_match: bool = True
    activation_range: str = ACTIVATION_RANGE
    objectives: tuple[str, ...] = ()

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | None) -> SearchSpace:
        """From a YAML file, a mapping, or (None) the default space, whose rules also hold where `modules` is left out."""
        where = (
            "default space"
            if source is None
            else "space"
            if isinstance(source, Mapping)
            else str(source)
        )
        if source is None:
            data: Any = yaml.safe_load(DEFAULT_SPACE)
        elif isinstance(source, Mapping):
            data = dict(source)
        else:
            path = Path(source)
            if not path.is_file():
                near = (
                    nearest_name(path.name, [p.name for p in path.parent.glob("*.yaml")])
                    if path.parent.is_dir()
                    else ""
                )
                raise SpaceError(f"{where}: no such file; nearest: {near or 'none'}")
            try:
                data = yaml.safe_load(path.read_text())
            except yaml.YAMLError as error:
                raise SpaceError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
        return replace(
            cls._checked(where, data),
            every_rule_must_match=source is not None and "modules" in data,
        )

    @classmethod
    def _checked(cls, where: str, data: Any) -> SearchSpace:
        if not isinstance(data, dict):
            raise SpaceError(
                f"{where}: expected a mapping such as {EXAMPLE}, got {'an empty file' if data is None else type(data).__name__}"
            )
        check_keys(
            where, data, ("modules", "distillation", "constraints", "objectives", "calibration")
        )
        rules = data.get("modules", yaml.safe_load(DEFAULT_SPACE)["modules"])
        if not isinstance(rules, list) or not rules:
            raise SpaceError(
                f"{where}: 'modules' must be a list of rules, got {rules!r}; nearest: {EXAMPLE}, or none for the default rules"
            )
        for i, rule in enumerate(rules):
            if not isinstance(rule, dict):
                raise SpaceError(f"{where}: rule {i + 1} must be a mapping, got {rule!r}")
            check_keys(f"{where}: rule {i + 1}", rule, (*MATCHERS, *AXES))
            if not any(key in rule for key in MATCHERS):
                raise SpaceError(
                    f"{where}: rule {i + 1} matches on nothing; give one of {', '.join(MATCHERS)}"
                )
        distillation = data.get("distillation") or {}
        parse_recovery(where, distillation)
        constraints = data.get("constraints") or {}
        check_keys(
            f"{where}: constraints",
            constraints,
            ("max_size", "max_latency", "max_accuracy_drop", "min_metric"),
        )
        calibration = data.get("calibration") or {}
        check_keys(f"{where}: calibration", calibration, ("range",))
        method = calibration.get("range", ACTIVATION_RANGE)
        if method not in WEIGHT_RANGES:
            raise SpaceError(
                f"{where}: calibration: range {method!r} is unknown; nearest: {nearest_name(str(method), WEIGHT_RANGES)}"
            )
        objectives = data.get("objectives") or []
        if not isinstance(objectives, list) or not all(
            isinstance(name, str) for name in objectives
        ):
            raise SpaceError(
                f"{where}: objectives must be a list of names of extra metrics, got {objectives!r}"
            )
        return cls(
            where,
            tuple(rules),
            distillation,
            constraints,
            activation_range=method,
            objectives=tuple(dict.fromkeys(objectives)),
        )

    def bind(self, module_map: ModuleMap, target: Target) -> BoundSpace:
        """The knobs on the modules of a model; SpaceError for a rule that matches nothing, TargetError for a width it lacks."""
        roots = {group.name for group in module_map.groups if group.reason is None}
        used: set[int] = set()
        knobs: list[Knob] = []
        fixed: dict[tuple[str, str], Choice] = {}
        smoothed = {group.readers[0] for group in module_map.norms}
        factorisable = {
            module.name
            for module in module_map
            if module.factorisable and module.kind not in target.plain_kinds
        }
        for module in module_map:
            position = next(
                (i for i, rule in enumerate(self.rules) if _matches(rule, module)), None
            )
            if position is None:
                continue
            used.add(position)
            for axis in AXES:
                if axis not in self.rules[position]:
                    continue
                choices = choices_of(
                    f"{self.where}: rule {position + 1}", axis, self.rules[position][axis], target
                )
                if not _applies(
                    axis, module, smoothed if axis == "smoothing" else roots, factorisable, target
                ):
                    continue
                if len(choices) == 1:
                    fixed[module.name, axis] = choices[0]
                else:
                    knobs.append(Knob(module.name, axis, choices))
        if self.every_rule_must_match:
            self._check_used(used, module_map)
        recovery = parse_recovery(self.where, self.distillation)
        kinds = {module.name: module.kind for module in module_map}
        content = [[k.parameter, k.choices] for k in knobs] + [
            asdict(recovery),
            self.activation_range,
            *self.objectives,
        ]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        left_out = tuple(
            f"{self.where}: rule {i + 1}: {axis} {', '.join(map(str, lost))}"
            for i in sorted(used)
            for axis, value in self.rules[i].items()
            if axis in AXES
            and (
                lost := [
                    c
                    for c in spread(f"{self.where}: {axis}", value)
                    if not target.executes(axis, c)
                ]
            )
        )
        constraints = dict(self.constraints)
        integer = target.integer_kinds
        return BoundSpace(
            tuple(knobs),
            fixed,
            kinds,
            integer,
            recovery,
            constraints,
            digest,
            left_out=left_out,
            objectives=tuple(self.objectives),
        )

    def _check_used(self, used: set[int], module_map: ModuleMap) -> None:
        for i, rule in enumerate(self.rules):
            if i in used:
                continue
            shown = {key: rule[key] for key in MATCHERS if key in rule}
            earlier = any(_matches(rule, module) for module in module_map)
            if earlier:
                reason = "matches only modules that an earlier rule takes"
            else:
                key, value = next(iter(shown.items()))
                field_of = {"match": "name"}.get(key, key)
                reason = f"matches no module; nearest {key}: {nearest_name(str(value), {str(getattr(m, field_of)) for m in module_map})}"
            raise SpaceError(f"{self.where}: rule {i + 1} {shown} {reason}")


def _matches(rule: Mapping[str, Any], module: CompressibleModule) -> bool:
    pairs = {"match": module.name, "tower": module.tower, "role": module.role, "kind": module.kind}
    return all(fnmatchcase(pairs[key], str(rule[key])) for key in MATCHERS if key in rule)


def _applies(
    axis: str, module: CompressibleModule, roots: set[str], factorisable: set[str], target: Target
) -> bool:
    """Whether the axis means anything for the module: knobs of a group live on its root, rounding on what has inputs."""
    if axis in ("smoothing", *GROUP_AXES):
        return module.name in roots
    if axis in ("rank_ratio", "decomposition"):
        return module.name in factorisable
    if axis == "group_size":
        return module.kind not in target.plain_kinds
    if axis in ("algorithm", "reconstruction"):
        return module.kind in ("linear", "conv")
    return axis not in ("activation_bits", "activation_mode") or module.kind in target.integer_kinds
