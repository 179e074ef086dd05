"""Translate choices to indices of knobs and back."""

from __future__ import annotations

from autocompress.candidate import ModuleConfig
from autocompress.search.propose.tables.column import group_column, module_column
from autocompress.space.recovery import RecoverySpace
from autocompress.space.search_space import BoundSpace, Knob

SPACE = BoundSpace(
    (
        Knob("b", "weight_bits", (32, 4)),
        Knob("a", "weight_bits", (32, 8)),
        Knob("a", "importance", ("l1", "l2")),
        Knob("a", "rank_ratio", (1.0, 0.5)),
        Knob("a", "pruning_ratio", (0.0, 0.5)),
    ),
    {("a", "activation_bits"): 8},
    {"a": "linear", "b": "linear"},
    ("linear",),
    RecoverySpace(),
    {},
    no_gain=frozenset({("a", 0.5, "auto")}),
)


def test_indices_that_mean_the_same_config_share_a_choice() -> None:
    configs = SPACE.configs("a")
    column = module_column(SPACE, "a", configs)
    assert [config.weight_bits for config in configs] == [32, 8]
    assert [config.activation_bits for config in configs] == [32, 8]
    assert column.parameters == ("a/weight_bits", "a/rank_ratio")
    assert column.places == (1, 3)
    assert column.choices == {(0, 0): 0, (0, 1): 0, (1, 0): 1, (1, 1): 1}
    assert column.indices == (
        {"a/weight_bits": 0, "a/rank_ratio": 0},
        {"a/weight_bits": 1, "a/rank_ratio": 0},
    )


def test_a_ratio_is_one_choice_under_every_criterion() -> None:
    configs = (ModuleConfig(), ModuleConfig(pruning_ratio=0.5, importance="l2"))
    column = group_column(SPACE, "a", configs)
    assert column.parameters == ("a/importance", "a/pruning_ratio")
    assert column.places == (2, 4)
    assert column.choices == {(0, 0): 0, (0, 1): 1, (1, 0): 0, (1, 1): 1}
    assert column.indices[1] == {"a/importance": 1, "a/pruning_ratio": 1}
