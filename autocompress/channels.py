"""Groups of modules whose channels must be pruned together, read from torch-pruning's dependency graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch_pruning
from numpy.typing import NDArray
from torch import nn

from autocompress.task import Inputs

HEAD_ATTRIBUTES = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")


@dataclass(frozen=True, eq=False)
class Member:
    """A module's channels that belong to a group: positions `index` (k,) on its `side`, each owned by root channel `root` (k,)."""

    name: str
    side: str  # "out", "in", or "channel" for normalisation layers, which have one side only
    index: NDArray[np.int64]
    root: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that live or die together; the pruning knob is shown on the root module, whose name the group bears.

    A unit is what is removed at once: one channel, or the `unit_size` channels of an attention head. A group with a
    `reason` is not prunable, and the reason says why.
    """

    name: str
    kind: str  # "heads", "filters" or "neurons"
    channels: int
    unit_size: int
    members: tuple[Member, ...]
    reason: str | None = None

    @property
    def units(self) -> int:
        """How many units there are."""
        return self.channels // self.unit_size

    def kept_units(self, pruning_ratio: float) -> int:
        """How many units are left at a ratio; at least one."""
        return max(1, self.units - round(pruning_ratio * self.units))

    def but(self, reason: str) -> ChannelGroup:
        """The same group, marked as not prunable."""
        return replace(self, reason=reason)


def find_channel_groups(model: nn.Module, example_inputs: Inputs, names: Iterable[str]) -> tuple[ChannelGroup, ...]:
    """The groups rooted at the compressible modules `names`, in that order; each producer belongs to one group.

    Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", through torch-pruning.
    """
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    inputs: Any = dict(example_inputs) if isinstance(example_inputs, Mapping) else example_inputs
    names = [name for name in names if not isinstance(model.get_submodule(name), nn.Embedding)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs, verbose=False)
        except Exception as error:  # nothing is pruned then, and inspect says why
            return tuple(_alone(model, name, f"torch-pruning cannot trace the model ({type(error).__name__})") for name in names)
    name_of = {module: name for name, module in model.named_modules()}
    groups: list[ChannelGroup] = []
    produced: set[str] = set()
    for name in names:
        module = model.get_submodule(name)
        if name in produced:
            continue
        try:
            group = _group(graph, module, name, name_of, model)
        except Exception as error:
            group = _alone(model, name, f"torch-pruning cannot follow its channels ({type(error).__name__})")
        produced.update(member.name for member in group.members if member.side == "out")
        groups.append(group)
    return tuple(groups)


def _alone(model: nn.Module, name: str, reason: str) -> ChannelGroup:
    """A group of one module that is not prunable."""
    module = model.get_submodule(name)
    index = np.arange(len(module.weight))  # type: ignore[arg-type]
    kind = "neurons" if isinstance(module, nn.Linear) else "filters"
    return ChannelGroup(name, kind, len(index), 1, (Member(name, "out", index, index),), reason)


def _group(
    graph: torch_pruning.DependencyGraph, module: nn.Module, name: str, name_of: Mapping[nn.Module, str], model: nn.Module
) -> ChannelGroup:
    prune_out = graph.get_pruner_of_module(module).prune_out_channels
    channels = graph.get_out_channels(module)
    found = graph.get_pruning_group(module, prune_out, idxs=list(range(channels)))
    members: dict[tuple[str, str], tuple[dict[int, int], nn.Module]] = {}
    reason: str | None = None
    attends = False
    for item in found._group:
        target, handler = item.dep.target, item.dep.handler.__name__
        attends = attends or "Attention" in target.name or "Softmax" in target.name or "Bmm" in target.name
        if isinstance(target.module, nn.Parameter):
            reason = "the width is shared with a free parameter"
        elif target.module in name_of:
            side = "channel" if isinstance(target.module, nn.modules.batchnorm._BatchNorm) else handler.split("_")[1]
            key = (name_of[target.module], side)
            if key not in members:
                members[key] = ({}, target.module)
            for index, root in zip(item.idxs, item.root_idxs, strict=True):
                members[key][0][int(index)] = int(root)
            reason = reason or _obstacle(target.module, side)
    consumers = [key for key in members if key[1] == "in"]
    if not consumers:
        reason = "its channels are the model's output"
    built = tuple(
        Member(key[0], key[1], np.array(sorted(index)), np.array([index[i] for i in sorted(index)])) for key, (index, _) in members.items()
    )
    convolution = isinstance(module, (nn.Conv1d, nn.Conv2d))
    unit, kind = 1, "filters" if convolution else "neurons"
    if attends:
        kind = "heads"
        heads = _head_count(model, name)
        if heads is None or channels % heads:
            reason = reason or f"attention without one of {', '.join(HEAD_ATTRIBUTES)} on the module that holds it"
        else:
            unit = channels // heads
    return ChannelGroup(name, kind, channels, unit, built, reason)


def _obstacle(module: nn.Module, side: str) -> str | None:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return "embedding width: a layer normalisation spans it"
    if isinstance(module, nn.Embedding):
        return "embedding width: an embedding table spans it"
    if isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups > 1:
        return "a grouped convolution is in the group"
    covered = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.modules.batchnorm._BatchNorm)
    return None if isinstance(module, covered) else f"{type(module).__name__} is in the group"


def _head_count(model: nn.Module, name: str) -> int | None:
    """The number of heads that the closest enclosing module states."""
    while name:
        name = name.rpartition(".")[0]
        parent = model.get_submodule(name)
        for attribute in HEAD_ATTRIBUTES:
            heads = getattr(parent, attribute, None)
            if isinstance(heads, int) and heads > 0:
                return heads
    return None
