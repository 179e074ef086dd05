"""Check the units of attention, recurrent layers and mixtures, channel by channel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.model.channel_group import ChannelGroup
from autocompress.model.known_structures import (
    SHARED_ATTRIBUTES,
    attention_groups,
    expert_groups,
    gate_members,
    head_count,
    head_counts,
    inner_groups,
    input_members,
    weight_shape,
)
from autocompress.model.plain.recurrent import SplitRecurrent


def holder(*modules: tuple[str, nn.Module], **attributes: Any) -> nn.Module:
    module = nn.Module()
    for name, child in modules:
        module.add_module(name, child)
    vars(module).update(attributes)
    return module


def linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def members(group: ChannelGroup) -> list[tuple[str, str, list[int], list[int]]]:
    return [(m.name, m.side, m.index.tolist(), m.root.tolist()) for m in group.members]


def test_heads_are_what_a_module_or_its_config_says() -> None:
    assert head_count(holder(n_head=4)) == 4
    assert head_count(holder(config=SimpleNamespace(num_attention_heads=6))) == 6
    assert head_count(holder(num_heads=2, config=SimpleNamespace(num_heads=6))) == 2
    assert head_count(holder()) is None
    for value in (0, -1, "4", None, 2.0):
        assert head_count(holder(num_heads=value)) is None
    shared = holder(num_heads=8, num_key_value_heads=2)
    assert head_count(shared, SHARED_ATTRIBUTES) == 2
    model = holder(("a", shared), ("b", holder(heads=3)), ("c", nn.Linear(2, 2)))
    assert head_counts(model) == {2, 3, 8}


def test_a_fused_projection_has_the_channels_of_a_head_three_times() -> None:
    attention = holder(("qkv", nn.Linear(5, 12)), ("proj", nn.Linear(4, 5)), num_heads=2)
    model = holder(("block", attention))
    (group,) = attention_groups(model, linears(model))
    assert (group.name, group.kind, group.units, group.reason) == ("block.qkv", "heads", 2, None)
    assert members(group) == [
        ("block.qkv", "out", list(range(12)), [0, 0, 1, 1] * 3),
        ("block.proj", "in", [0, 1, 2, 3], [0, 0, 1, 1]),
    ]


def test_a_shared_head_goes_with_all_queries_that_read_it() -> None:
    attention = holder(
        ("q", nn.Linear(5, 8)),
        ("k", nn.Linear(5, 4)),
        ("v", nn.Linear(5, 4)),
        ("o", nn.Linear(8, 5)),
        num_heads=4,
        num_key_value_heads=2,
    )
    (group,) = attention_groups(attention, linears(attention))
    of_queries = [0, 0, 0, 0, 1, 1, 1, 1]
    assert (group.name, group.units) == ("q", 2)
    assert members(group) == [
        ("q", "out", list(range(8)), of_queries),
        ("k", "out", [0, 1, 2, 3], [0, 0, 1, 1]),
        ("v", "out", [0, 1, 2, 3], [0, 0, 1, 1]),
        ("o", "in", list(range(8)), of_queries),
    ]


@pytest.mark.parametrize(
    ("widths", "heads", "shared"),
    [
        ([(5, 11), (4, 5)], 2, None),  # not three times what is read
        ([(5, 12), (4, 5)], 3, None),  # 4 channels are no 3 heads
        ([(5, 8), (5, 8), (5, 8), (8, 5)], 4, None),  # torch-pruning sees these
        ([(5, 8), (5, 4), (5, 2), (8, 5)], 4, 2),
        ([(5, 8), (5, 4), (5, 4), (8, 5)], 4, 3),
        ([(5, 12)], 2, None),
        ([(5, 12), (4, 5)], None, None),
    ],
)
def test_other_widths_are_no_known_attention(
    widths: list[tuple[int, int]], heads: int | None, shared: int | None
) -> None:
    modules = [(f"m{i}", nn.Linear(*width)) for i, width in enumerate(widths)]
    model = holder(*modules, num_heads=heads, num_kv_heads=shared)
    assert attention_groups(model, linears(model)) == []


@pytest.mark.parametrize(("kind", "gates"), [(nn.GRU, 3), (nn.LSTM, 4)])
def test_a_hidden_unit_has_a_row_of_every_gate_in_both_directions(
    kind: type[nn.RNNBase], gates: int
) -> None:
    layer = SplitRecurrent(kind(5, 2, bidirectional=True))
    found = [
        (m.name, m.side, m.index.tolist(), m.root.tolist())
        for m in gate_members("rnn", layer, 0, np.array([0, 1]))
    ]
    rows = (list(range(2 * gates)), [0, 1] * gates)
    assert found == [
        ("rnn.ih_l0", "out", *rows),
        ("rnn.ih_l0_reverse", "out", *rows),
        ("rnn.hh_l0", "out", *rows),
        ("rnn.hh_l0", "in", [0, 1], [0, 1]),
        ("rnn.hh_l0_reverse", "out", *rows),
        ("rnn.hh_l0_reverse", "in", [0, 1], [0, 1]),
    ]
    reads = input_members("rnn", layer, 0, np.array([3, 4]), np.array([0, 0]))
    assert [(m.name, m.side, m.index.tolist(), m.root.tolist()) for m in reads] == [
        ("rnn.ih_l0", "in", [3, 4], [0, 0]),
        ("rnn.ih_l0_reverse", "in", [3, 4], [0, 0]),
    ]


def test_the_next_depth_reads_the_units_of_both_directions() -> None:
    layer = SplitRecurrent(nn.GRU(5, 2, num_layers=3, bidirectional=True))
    first, second = inner_groups("rnn", layer)
    assert (first.name, first.kind, first.units) == ("rnn.ih_l0", "hidden units", 2)
    assert members(first)[-2:] == [
        ("rnn.ih_l1", "in", [0, 1, 2, 3], [0, 1, 0, 1]),
        ("rnn.ih_l1_reverse", "in", [0, 1, 2, 3], [0, 1, 0, 1]),
    ]
    assert second.name == "rnn.ih_l1"
    assert inner_groups("rnn", SplitRecurrent(nn.GRU(5, 2))) == []


def expert() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))


def mixture(*experts: nn.Module, routers: int = 1) -> nn.Module:
    gates = [(f"gate{i}", nn.Linear(4, len(experts))) for i in range(routers)]
    return holder(("moe", holder(*gates, ("experts", nn.ModuleList(experts)))))


def test_an_expert_goes_whole_with_its_row_of_the_router() -> None:
    model = mixture(expert(), expert(), expert())
    (group,) = expert_groups(model, linears(model))
    assert (group.name, group.kind, group.units, group.reason) == (
        "moe.gate0",
        "experts",
        3,
        None,
    )
    assert members(group) == [
        ("moe.gate0", "gate", [0, 1, 2], [0, 1, 2]),
        *((f"moe.experts.{i}.{j}", "whole", [0], [i]) for i in range(3) for j in (0, 2)),
    ]
    alone = mixture(nn.Linear(4, 4), nn.Linear(4, 4))
    (single,) = expert_groups(alone, linears(alone))
    assert [m.name for m in single.members] == ["moe.gate0", "moe.experts.0", "moe.experts.1"]


def test_experts_that_end_in_another_module_are_kept() -> None:
    model = mixture(*(nn.Sequential(nn.Linear(4, 6), nn.Conv1d(4, 4, 1)) for _ in range(2)))
    names = [*linears(model), "moe.experts.0.1", "moe.experts.1.1"]
    (group,) = expert_groups(model, sorted(names))
    assert group.reason == "an expert does not end in a linear module"


@pytest.mark.parametrize(
    "model",
    [
        mixture(expert(), expert(), routers=2),
        mixture(expert(), expert(), routers=0),
        mixture(expert(), nn.Linear(4, 4)),
        mixture(expert()),
        mixture(nn.ReLU(), nn.ReLU()),
    ],
    ids=["two routers", "no router", "unlike", "one", "without weights"],
)
def test_other_lists_of_modules_are_no_mixture(model: nn.Module) -> None:
    assert expert_groups(model, linears(model)) == []


def test_a_router_has_an_output_for_each_expert() -> None:
    model = mixture(expert(), expert())
    model.moe.gate0 = nn.Linear(4, 3)
    assert expert_groups(model, linears(model)) == []
    assert weight_shape(model.moe.gate0) == torch.Size([3, 4])
