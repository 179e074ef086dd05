"""Check the rules of a search space and match them to modules.

A rule is a mapping with matchers (`match`, `tower`, `role`, `kind`) and axes (`axes.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from autocompress.errors import SpaceError, nearest_name
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.space.axes import AXES, check_keys

MATCHERS = ("match", "tower", "role", "kind")
Rule = Mapping[str, Any]

EXAMPLE = "modules: [{match: '*', weight_bits: [4, 8]}]"


def parse_rules(where: str, rules: Any) -> tuple[Rule, ...]:
    """Return the rules if their form is valid; values are checked by `axes.choices_of`.

    Args:
        where: file of the space, for errors.
        rules: the value of the key `modules`.

    Raises:
        SpaceError: names the rule, the invalid key and the nearest valid one.
    """
    if not isinstance(rules, list) or not rules:
        raise SpaceError(
            f"{where}: 'modules' must be a list of rules, got {rules!r}; "
            f"nearest: {EXAMPLE}, or none for the default rules"
        )
    for i, rule in enumerate(rules):
        if not isinstance(rule, dict):
            raise SpaceError(f"{where}: rule {i + 1} must be a mapping, got {rule!r}")
        check_keys(f"{where}: rule {i + 1}", rule, (*MATCHERS, *AXES))
        if not any(key in rule for key in MATCHERS):
            raise SpaceError(
                f"{where}: rule {i + 1} matches on nothing; give one of {', '.join(MATCHERS)}"
            )
    return tuple(rules)


def rule_of(module: CompressibleModule, rules: Sequence[Rule]) -> int | None:
    """Return the index of the first rule that matches a module.

    Args:
        module: the module.
        rules: rules in the order of the space.

    Returns:
        None if no rule matches.
    """
    for i, rule in enumerate(rules):
        if _matches(rule, module):
            return i
    return None


def check_used(where: str, rules: Sequence[Rule], used: set[int], module_map: ModuleMap) -> None:
    """Check that every rule is the first match of a module.

    Args:
        where: file of the space, for errors.
        rules: rules in the order of the space.
        used: indices of the rules that are.
        module_map: the compressible modules of the model.

    Raises:
        SpaceError: for the first rule that no module uses; names the nearest name, tower, role or
            kind.
    """
    for i, rule in enumerate(rules):
        if i in used:
            continue
        matchers = {key: rule[key] for key in MATCHERS if key in rule}
        if any(_matches(rule, module) for module in module_map):
            reason = "matches only modules that an earlier rule takes"
        else:
            key, value = next(iter(matchers.items()))
            attribute = "name" if key == "match" else key
            names = {str(getattr(module, attribute)) for module in module_map}
            reason = f"matches no module; nearest {key}: {nearest_name(str(value), names)}"
        raise SpaceError(f"{where}: rule {i + 1} {matchers} {reason}")


def _matches(rule: Rule, module: CompressibleModule) -> bool:
    pairs = {"match": module.name, "tower": module.tower, "role": module.role, "kind": module.kind}
    return all(fnmatchcase(pairs[key], str(rule[key])) for key in MATCHERS if key in rule)
