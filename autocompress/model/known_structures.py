"""Channel groups that a graph of layers does not show: heads of fused and grouped-query attention, hidden units, experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.model.channel_group import ChannelGroup, Member, all_of
from autocompress.model.plain.recurrent import SplitRecurrent

HEAD_ATTRIBUTES = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
SHARED_ATTRIBUTES = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_kv_heads",
    "n_kv_head",
    "num_query_groups",
)
GATES = {"LSTM": 4, "GRU": 3}


def head_count(module: nn.Module, attributes: Sequence[str] = HEAD_ATTRIBUTES) -> int | None:
    """Return how many heads a module has: what it says itself, else what its config says."""
    said = (module, getattr(module, "config", None))
    values = (getattr(owner, attribute, None) for owner in said for attribute in attributes)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def head_counts(model: nn.Module) -> set[int]:
    """Every number of heads that a module of `model` states."""
    return {
        count
        for module in model.modules()
        for names in (HEAD_ATTRIBUTES, SHARED_ATTRIBUTES)
        if (count := head_count(module, names))
    }


def attention_groups(model: nn.Module, names: Iterable[str]) -> list[ChannelGroup]:
    """One group of heads per attention module with a fused projection (Q over K over V) or fewer heads of keys and values than of queries.

    Recognised by widths: with H heads of D channels the output projection reads H * D, a fused one makes 3 * H * D, and with S shared
    heads queries have H * D, keys and values S * D (Ainslie et al. 2023). A unit is a shared head with all queries that read it.
    """
    linears = {
        name: model.get_submodule(name)
        for name in names
        if isinstance(model.get_submodule(name), nn.Linear)
    }
    groups = []
    for place, module in model.named_modules():
        heads = head_count(module)
        inside = [name for name in linears if name.rpartition(".")[0] == place]
        if heads is None or len(inside) < 2:
            continue
        shared = head_count(module, SHARED_ATTRIBUTES) or heads
        *makers, last = inside
        reads = weight_shape(linears[last])[1]
        if reads % heads or heads % shared:
            continue
        size = reads // heads
        made = [weight_shape(linears[name])[0] for name in makers]
        of_queries, of_shared = _owners(heads, size, heads // shared), _owners(shared, size, 1)
        if len(makers) == 1 and made[0] == 3 * reads and shared == heads:
            owners = [np.concatenate([of_queries] * 3)]
        elif len(makers) == 3 and shared < heads and made == [reads, shared * size, shared * size]:
            owners = [of_queries, of_shared, of_shared]
        else:
            continue
        members = [
            Member(name, "out", all_of(len(owner)), owner)
            for name, owner in zip(makers, owners, strict=True)
        ]
        members.append(Member(last, "in", all_of(reads), of_queries))
        groups.append(ChannelGroup(makers[0], "heads", shared, 1, tuple(members)))
    return groups


def weight_shape(module: nn.Module) -> torch.Size:
    """Of a module that has a weight."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape


def _owners(heads: int, size: int, per_unit: int) -> NDArray[np.int64]:
    """The unit of every channel of `heads` heads of that size."""
    return np.repeat(all_of(heads) // per_unit, size)


def gate_members(
    name: str, layer: SplitRecurrent, depth: int, owners: NDArray[np.int64]
) -> list[Member]:
    """Rows of all gates, and the columns that read the state, of one depth of a recurrent layer; `owners` (hidden,) of each unit."""
    size, gates = layer.hidden_size, GATES[layer.mode]
    members = []
    for kind, end in product(("ih", "hh"), ("", "_reverse") if layer.bidirectional else ("",)):
        gate = f"{name}.{kind}_l{depth}{end}"
        members.append(Member(gate, "out", all_of(gates * size), np.tile(owners, gates)))
        if kind == "hh":
            members.append(Member(gate, "in", all_of(size), owners))
    return members


def input_members(
    name: str,
    layer: SplitRecurrent,
    depth: int,
    index: NDArray[np.int64],
    owners: NDArray[np.int64],
) -> list[Member]:
    """The columns of one depth that read its input."""
    ends = ("", "_reverse") if layer.bidirectional else ("",)
    return [Member(f"{name}.ih_l{depth}{end}", "in", index, owners) for end in ends]


def inner_groups(name: str, layer: SplitRecurrent) -> list[ChannelGroup]:
    """The hidden units of every depth but the last, which only the next depth reads."""
    size = layer.hidden_size
    directions = 2 if layer.bidirectional else 1
    units = all_of(size)
    groups = []
    for depth in range(layer.num_layers - 1):
        members = gate_members(name, layer, depth, units)
        members += input_members(
            name, layer, depth + 1, all_of(directions * size), np.tile(units, directions)
        )
        groups.append(ChannelGroup(f"{name}.ih_l{depth}", "hidden units", size, 1, tuple(members)))
    return groups


def expert_groups(model: nn.Module, names: Iterable[str]) -> list[ChannelGroup]:
    """One group per mixture: a list of alike modules and, beside it, a linear router with one output for each.

    An expert goes with all its modules; its row of the router stays, at a logit that no softmax gives any weight.
    """
    known = list(names)
    groups = []
    for place, module in model.named_modules():
        count = len(list(module.children()))
        if count < 2 or [name for name, _ in module.named_children()] != [
            str(i) for i in range(count)
        ]:
            continue
        holder = place.rpartition(".")[0]
        routers = [
            n
            for n in known
            if n.rpartition(".")[0] == holder
            and getattr(model.get_submodule(n), "out_features", 0) == count
        ]
        inside = [
            [n for n in known if n.startswith(f"{place}.{i}.") or n == f"{place}.{i}"]
            for i in range(count)
        ]
        alike = (
            len(
                {
                    tuple(n.removeprefix(f"{place}.{i}") for n in found)
                    for i, found in enumerate(inside)
                }
            )
            == 1
        )
        if len(routers) != 1 or not alike or not inside[0]:
            continue
        router = routers[0]
        last = [model.get_submodule(found[-1]) for found in inside]
        reason = (
            None
            if all(isinstance(m, nn.Linear) for m in last)
            else "an expert does not end in a linear module"
        )
        units = all_of(count)
        members = [Member(router, "gate", units, units)]
        members += [
            Member(n, "whole", all_of(1), np.array([i]))
            for i, found in enumerate(inside)
            for n in found
        ]
        groups.append(ChannelGroup(router, "experts", count, 1, tuple(members), reason))
    return groups
