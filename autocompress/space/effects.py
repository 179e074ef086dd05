"""Decide which axes of a space have an effect on which modules, and name those that have none.

`search_space.py` makes knobs only where an axis changes something, so that no trial is spent on
choices that give the same file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autocompress.candidate import UNTOUCHED
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.space.axes import AXES, GROUP_AXES, spread
from autocompress.space.rules import Rule
from autocompress.targets.target import Target


class Applicability:
    """Decide which axes have a meaning for which modules of a model.

    Args:
        module_map: the compressible modules and channel groups of the model.
        target: the runtime and machine.
    """

    def __init__(self, module_map: ModuleMap, target: Target) -> None:
        self.target = target
        self.roots = {group.name for group in module_map.groups if group.reason is None}
        self.smoothed = {group.readers[0] for group in module_map.norms}

    def __call__(self, axis: str, module: CompressibleModule) -> bool:
        """Return True if the axis can change the module.

        Args:
            axis: one of AXES. Axes of a channel group apply to its root, smoothing to the first
                reader of a normalisation.
            module: a module of the model.
        """
        plain = module.kind in self.target.plain_kinds
        if axis == "smoothing":
            return module.name in self.smoothed
        if axis in GROUP_AXES:
            return module.name in self.roots
        if axis in ("rank_ratio", "decomposition"):
            return module.factorisable and not plain
        if axis in ("group_size", "symmetric"):
            return self.target.groups and not (plain and axis == "group_size")
        if axis in ("algorithm", "reconstruction"):
            return module.kind in ("linear", "conv")
        if axis == "activation_bits":
            return module.kind in self.target.integer_kinds and not self.target.integers_only
        if axis == "weight_bits" and self.target.integers_only:
            return module.kind in self.target.integer_kinds
        if axis == "activation_mode":
            return module.kind in self.target.dynamic_kinds
        return True

    def reason(self, axis: str) -> str:
        """Return why an axis changes none of the modules of a rule.

        Args:
            axis: one of AXES that does not apply to all modules.
        """
        if axis == "smoothing":
            return "no module of the rule is the first reader of a normalisation"
        if axis in GROUP_AXES:
            return "no module of the rule is the root of a channel group that can be pruned"
        if axis in ("rank_ratio", "decomposition"):
            return "no weight of the rule's modules can be factorised"
        if axis in ("group_size", "symmetric"):
            return f"target {self.target.name} has one scale per channel for the rule's modules"
        if axis in ("algorithm", "reconstruction"):
            return "no module of the rule is linear or a convolution"
        if axis == "activation_bits" and self.target.integers_only:
            return f"target {self.target.name} rounds inputs to 8 bits where it rounds weights"
        if axis == "weight_bits":
            return f"target {self.target.name} rounds no weights of the rule's modules"
        if axis == "activation_mode" and self.target.dynamic_kinds != self.target.integer_kinds:
            return f"target {self.target.name} has no choice of ranges for the rule's modules"
        return f"target {self.target.name} has no integer kernel for the rule's modules"


def not_executable(
    where: str, rules: Sequence[Rule], used: Iterable[int], target: Target
) -> tuple[str, ...]:
    """Return the choices of the used rules that a target cannot execute.

    Args:
        where: file of the space.
        rules: rules in the order of the space.
        used: indices of the rules that modules take.
        target: the runtime and machine.

    Returns:
        Lines such as "space: rule 1: weight_bits 2, 3".
    """
    lines: list[str] = []
    for i in sorted(used):
        for axis, value in rules[i].items():
            if axis not in AXES:
                continue
            values = spread(f"{where}: {axis}", value)
            lost = [str(choice) for choice in values if not target.executes(axis, choice)]
            if lost:
                lines.append(f"{where}: rule {i + 1}: {axis} {', '.join(lost)}")
    return tuple(lines)


def without_effect(
    where: str,
    rules: Sequence[Rule],
    modules: Mapping[int, Sequence[CompressibleModule]],
    applies: Applicability,
) -> tuple[str, ...]:
    """Return the axes that a rule names although they change none of its modules.

    Args:
        where: file of the space.
        rules: rules in the order of the space.
        modules: the modules that take each rule, by its index.
        applies: of the model and the target.

    Returns:
        Lines such as "space: rule 1: smoothing has no effect: no module of the rule is ...".
    """
    lines: list[str] = []
    for i in sorted(modules):
        for axis, value in rules[i].items():
            if axis not in AXES or any(applies(axis, module) for module in modules[i]):
                continue
            if set(spread(f"{where}: {axis}", value)) != {getattr(UNTOUCHED, axis)}:
                reason = applies.reason(axis)
                lines.append(f"{where}: rule {i + 1}: {axis} has no effect: {reason}")
    return tuple(lines)
