"""Find channel groups that a graph of layers does not show.

These are heads of fused and grouped-query attention, hidden units of recurrent layers and experts
of a mixture. `dependency_graph` adds them to the groups that are traced.
"""

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
# Names of the number of heads of keys and values, if queries have more.
SHARED_ATTRIBUTES = (
    *("num_key_value_heads", "num_kv_heads", "n_kv_heads"),
    *("n_kv_head", "num_query_groups"),
)
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def head_count(module: nn.Module, attributes: Sequence[str] = HEAD_ATTRIBUTES) -> int | None:
    """Return the number of heads that a module states.

    Args:
        module: any module; its own attribute comes before that of its config.
        attributes: names under which models keep the number.

    Returns:
        The number; None if it is not stated.
    """
    owners = (module, getattr(module, "config", None))
    values = (getattr(owner, attribute, None) for owner in owners for attribute in attributes)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def head_counts(model: nn.Module) -> set[int]:
    """Return every number of heads that a module of a model states.

    Args:
        model: any module.

    Returns:
        The numbers, also those of keys and values.
    """
    counts = set()
    for module in model.modules():
        for names in (HEAD_ATTRIBUTES, SHARED_ATTRIBUTES):
            count = head_count(module, names)
            if count:
                counts.add(count)
    return counts


def attention_groups(model: nn.Module, names: Iterable[str]) -> list[ChannelGroup]:
    """Return one group of heads per attention module with fused or grouped projections.

    They are recognised by widths. With H heads of D channels the output projection reads H * D, and
    a fused projection (Q over K over V) makes 3 * H * D. With S shared heads, queries have H * D
    channels, keys and values S * D (Ainslie et al. 2023). A unit is a shared head with all queries
    that read it.

    Args:
        model: a plain model.
        names: the compressible modules.

    Returns:
        The groups, named after the fused projection or that of the queries.
    """
    linears = {}
    for name in names:
        if isinstance(model.get_submodule(name), nn.Linear):
            linears[name] = model.get_submodule(name)
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
        widths = [weight_shape(linears[name])[0] for name in makers]
        of_queries, of_shared = _owners(heads, size, heads // shared), _owners(shared, size, 1)
        grouped = [reads, shared * size, shared * size]
        if len(makers) == 1 and widths[0] == 3 * reads and shared == heads:
            owners = [np.concatenate([of_queries] * 3)]
        elif len(makers) == 3 and shared < heads and widths == grouped:
            owners = [of_queries, of_shared, of_shared]
        else:
            continue
        pairs = zip(makers, owners, strict=True)
        members = [Member(name, "out", all_of(len(owner)), owner) for name, owner in pairs]
        members.append(Member(last, "in", all_of(reads), of_queries))
        groups.append(ChannelGroup(makers[0], "heads", shared, 1, tuple(members)))
    return groups


def weight_shape(module: nn.Module) -> torch.Size:
    """Return the shape of a module's weight.

    Args:
        module: with a weight.

    Returns:
        The shape.
    """
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape


def _owners(heads: int, size: int, per_unit: int) -> NDArray[np.int64]:
    """Return the unit of every channel of `heads` heads with `size` channels."""
    return np.repeat(all_of(heads) // per_unit, size)


def gate_members(
    name: str, layer: SplitRecurrent, depth: int, owners: NDArray[np.int64]
) -> list[Member]:
    """Return the channels of one depth of a recurrent layer: gate rows and state columns.

    Args:
        name: of the layer.
        layer: the layer.
        depth: from 0.
        owners: (hidden,) root channel of each hidden unit.

    Returns:
        Members of both directions.
    """
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
    """Return the columns with which one depth of a recurrent layer reads its input.

    Args:
        name: of the layer.
        layer: the layer.
        depth: from 0.
        index: (k,) columns.
        owners: (k,) root channel of each.

    Returns:
        Members of both directions.
    """
    ends = ("", "_reverse") if layer.bidirectional else ("",)
    return [Member(f"{name}.ih_l{depth}{end}", "in", index, owners) for end in ends]


def inner_groups(name: str, layer: SplitRecurrent) -> list[ChannelGroup]:
    """Return the hidden units of every depth but the last, which only the next depth reads.

    Args:
        name: of the layer.
        layer: the layer.

    Returns:
        One group per depth.
    """
    size = layer.hidden_size
    directions = 2 if layer.bidirectional else 1
    units = all_of(size)
    groups = []
    for depth in range(layer.num_layers - 1):
        index, owners = all_of(directions * size), np.tile(units, directions)
        members = gate_members(name, layer, depth, units)
        members += input_members(name, layer, depth + 1, index, owners)
        groups.append(ChannelGroup(f"{name}.ih_l{depth}", "hidden units", size, 1, tuple(members)))
    return groups


def expert_groups(model: nn.Module, names: Iterable[str]) -> list[ChannelGroup]:
    """Return one group per mixture of experts.

    A mixture is a list of alike modules and, beside it, a linear router with one output for each.
    An expert is removed with all its modules. Its row of the router stays, with a logit so low that
    softmax gives the expert no weight.

    Args:
        model: a plain model.
        names: the compressible modules.

    Returns:
        The groups, named after their routers.
    """
    linked = list(names)
    groups = []
    for place, module in model.named_modules():
        children = [name for name, _ in module.named_children()]
        count = len(children)
        if count < 2 or children != [str(i) for i in range(count)]:
            continue
        holder = place.rpartition(".")[0]
        routers = []
        for name in linked:
            if name.rpartition(".")[0] != holder:
                continue
            if getattr(model.get_submodule(name), "out_features", 0) == count:
                routers.append(name)
        experts = [_inside(linked, f"{place}.{i}") for i in range(count)]
        endings = set()
        for i, expert in enumerate(experts):
            endings.add(tuple(name.removeprefix(f"{place}.{i}") for name in expert))
        if len(routers) == 1 and len(endings) == 1 and experts[0]:
            groups.append(_mixture(model, routers[0], experts))
    return groups


def _inside(names: Sequence[str], place: str) -> list[str]:
    """Return the names of a module and of the modules inside it."""
    return [name for name in names if name == place or name.startswith(f"{place}.")]


def _mixture(model: nn.Module, router: str, experts: Sequence[Sequence[str]]) -> ChannelGroup:
    linear = all(isinstance(model.get_submodule(expert[-1]), nn.Linear) for expert in experts)
    reason = None if linear else "an expert does not end in a linear module"
    units = all_of(len(experts))
    members = [Member(router, "gate", units, units)]
    for i, expert in enumerate(experts):
        members += [Member(name, "whole", all_of(1), np.array([i])) for name in expert]
    return ChannelGroup(router, "experts", len(experts), 1, tuple(members), reason)
