"""Read one channel group out of torch-pruning's dependency graph.

`dependency_graph` calls `traced_group` for each module. A group that torch-pruning gets wrong, or
that cannot be pruned, keeps its channels and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch_pruning
from torch import nn

from autocompress.model.channel_group import ChannelGroup, Member, all_of
from autocompress.model.known_structures import HEAD_ATTRIBUTES, head_count, weight_shape

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
COVERED = (
    nn.Linear,
    *CONVOLUTIONS,
    nn.modules.batchnorm._BatchNorm,
)
ATTENTION_NODES = ("Attention", "Softmax", "Bmm")  # in the names of torch-pruning's nodes
# For each (module, side): the module, and its channel -> the root channel that owns it.
Channels = dict[tuple[str, str], tuple[nn.Module, dict[int, int]]]


class Unfollowed(Exception):
    """Say why the channels of a group cannot be followed."""


def traced_group(
    graph: torch_pruning.DependencyGraph,
    name: str,
    name_of: Mapping[nn.Module, str],
    model: nn.Module,
) -> ChannelGroup:
    """Return the group that is rooted at one module.

    Args:
        graph: of the model.
        name: of the module.
        name_of: name of each module of the model.
        model: the model that was traced.

    Returns:
        The group; with a reason if it cannot be pruned.

    Raises:
        Unfollowed: torch-pruning counts channels that a module does not have.
    """
    group = _group(graph, name, name_of, model)
    return _fitting(_gated(group), model)


def group_alone(model: nn.Module, name: str, reason: str) -> ChannelGroup:
    """Return a group of one module that is not prunable.

    Args:
        model: the model.
        name: of the module.
        reason: why it is not prunable, in words.

    Returns:
        The group.
    """
    module = model.get_submodule(name)
    index = all_of(_width(module, "out") or weight_shape(module)[0])
    kind = "neurons" if isinstance(module, nn.Linear) else "filters"
    return ChannelGroup(name, kind, len(index), 1, (Member(name, "out", index, index),), reason)


def depthwise(module: nn.Module) -> bool:
    """Return True for a convolution with one filter of one channel per channel.

    Args:
        module: any module.

    Returns:
        False for every other module.
    """
    if not isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return False
    return 1 < module.groups == module.in_channels == module.out_channels


def _group(
    graph: torch_pruning.DependencyGraph,
    name: str,
    name_of: Mapping[nn.Module, str],
    model: nn.Module,
) -> ChannelGroup:
    module = model.get_submodule(name)
    prune_out = graph.get_pruner_of_module(module).prune_out_channels
    channels = graph.get_out_channels(module)
    dependencies = graph.get_pruning_group(module, prune_out, idxs=list(range(channels)))
    owners: Channels = {}
    reason: str | None = None
    attends = False
    for item in dependencies._group:
        target, handler = item.dep.target, item.dep.handler.__name__
        attends = attends or any(word in target.name for word in ATTENTION_NODES)
        if isinstance(target.module, nn.Parameter):
            reason = "the width is shared with a free parameter"
        elif target.module in name_of:
            key = (name_of[target.module], _side(target.module, handler))
            owner = owners.setdefault(key, (target.module, {}))[1]
            for index, root in zip(item.idxs, item.root_idxs, strict=True):
                owner[int(index)] = int(root)
            reason = reason or _obstacle(target.module)
    if not any(side == "in" for _, side in owners):
        reason = "its channels are the model's output"
    members = []
    for (member, side), (_, owner) in owners.items():
        index = sorted(owner)
        members.append(Member(member, side, np.array(index), np.array([owner[i] for i in index])))
    unit = 1
    kind = "filters" if isinstance(module, CONVOLUTIONS) else "neurons"
    if attends:
        kind = "heads"
        heads = _heads_above(model, name)
        if heads is None or channels % heads:
            words = ", ".join(HEAD_ATTRIBUTES)
            reason = reason or f"attention without one of {words} on the module that holds it"
        else:
            unit = channels // heads
    return ChannelGroup(name, kind, channels, unit, tuple(members), reason)


def _gated(group: ChannelGroup) -> ChannelGroup:
    """Return the group with both halves of a gated unit in one.

    In SwiGLU with one matrix, the first half of a projection gates the second. Its readers have
    half as many channels as it makes, and the tracer sees one half alone.
    """
    makers = [member for member in group.members if member.side == "out"]
    readers = [member for member in group.members if member.side == "in"]
    half = group.channels // 2
    if group.reason is not None or group.unit_size != 1 or not readers:
        return group
    if len(makers) != 1 or len(group.members) != 1 + len(readers):
        return group
    if not len(makers[0].index) == group.channels == 2 * half:
        return group
    for reader in readers:
        if len(reader.index) != half or not np.array_equal(reader.root % half, all_of(half)):
            return group
    members = tuple(replace(member, root=member.root % half) for member in (makers[0], *readers))
    return replace(group, channels=half, members=members)


def _fitting(group: ChannelGroup, model: nn.Module) -> ChannelGroup:
    """Return the group itself, or raise Unfollowed if a module does not have its channels.

    That happens behind operators that move channels into space or time, such as pixel shuffle.
    """
    for member in group.members if group.reason is None else ():
        width = _width(model.get_submodule(member.name), member.side)
        count = len(member.index)
        fits = count == len(member.root)
        if fits and count:
            fits = 0 <= member.root.min() <= member.root.max() < group.channels
        if fits and count and width is not None:
            fits = 0 <= member.index.min() <= member.index.max() < width
        if not fits:
            raise Unfollowed(f"torch-pruning counts other channels of {member.name} than it has")
    return group


def _width(module: nn.Module, side: str) -> int | None:
    """Return the channels that a module has on one side; None if its weight does not tell."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features
    if isinstance(module, COVERED):
        names = ("in_features", "in_channels") if side == "in" else ("out_features", "out_channels")
        values = (getattr(module, name, None) for name in names)
        return next(value for value in values if isinstance(value, int))
    return None


def _side(module: nn.Module, handler: str) -> str:
    """Return the side of a module that a handler of torch-pruning prunes.

    Channels of a depthwise convolution go with their filters.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "channel"
    return "out" if depthwise(module) else handler.split("_")[1]


def _obstacle(module: nn.Module) -> str | None:
    """Return why a group with this module cannot be pruned, or None."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return "embedding width: a layer normalisation spans it"
    if isinstance(module, nn.Embedding):
        return "embedding width: an embedding table spans it"
    if getattr(module, "groups", 1) > 1 and not depthwise(module):
        return "a grouped convolution is in the group"
    return None if isinstance(module, COVERED) else f"{type(module).__name__} is in the group"


def _heads_above(model: nn.Module, name: str) -> int | None:
    """Return the number of heads that the closest enclosing module states."""
    while name:
        name = name.rpartition(".")[0]
        heads = head_count(model.get_submodule(name))
        if heads is not None:
            return heads
    return None
