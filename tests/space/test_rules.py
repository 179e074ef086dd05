from __future__ import annotations

import pytest

from autocompress import find_modules
from autocompress.errors import SpaceError
from autocompress.space.rules import check_used, parse_rules, rule_of


def test_all_matchers_of_a_rule_must_fit_and_the_first_rule_wins(cnn_task) -> None:
    modules = find_modules(cnn_task.model, cnn_task.example_inputs)
    rules = parse_rules(
        "space", [{"kind": "conv", "match": "stem.*"}, {"match": "stem.*"}, {"kind": "conv"}]
    )
    by_name = {module.name: rule_of(module, rules) for module in modules}
    assert by_name["stem.0"] == 0
    assert by_name["body.0.conv1"] == 2
    assert by_name["fc"] is None


def test_an_unused_rule_is_an_error_with_its_reason(cnn_task) -> None:
    modules = find_modules(cnn_task.model, cnn_task.example_inputs)
    rules = ({"kind": "conv"}, {"match": "stem.*"})
    with pytest.raises(SpaceError, match="matches only modules that an earlier rule takes"):
        check_used("space", rules, {0}, modules)
    with pytest.raises(SpaceError, match="matches no module; nearest kind: conv"):
        check_used("space", ({"kind": "convv"},), set(), modules)
    check_used("space", rules, {0, 1}, modules)
