"""Which channels of a model must be pruned together, from torch-pruning's dependency graph and from known structures."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn

from autocompress.model.channel_group import ChannelGroup, Member, all_of
from autocompress.model.known_structures import (
    HEAD_ATTRIBUTES,
    attention_groups,
    expert_groups,
    gate_members,
    head_count,
    inner_groups,
    input_members,
    weight_shape,
)
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.task.batches import Inputs, map_inputs
from autocompress.task.copies import copied

GROUP_SECONDS = 20.0
TRACER_SECONDS = 60.0  # for all groups of a model
COVERED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.modules.batchnorm._BatchNorm,
)


class _StandIn(nn.Module):
    """A recurrent layer for the tracer: one linear map with its inputs and outputs."""

    def __init__(self, source: SplitRecurrent) -> None:
        super().__init__()
        self.source = (source,)  # in a tuple, so that it is not traced
        inputs = weight_shape(source.get_submodule("ih_l0"))[1]
        self.linear = nn.Linear(inputs, source.hidden_size * (1 + source.bidirectional))

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        source = self.source[0]
        output = self.linear(x)
        last = output[:, -1] if source.batch_first and x.dim() == 3 else output[-1]
        # Not with torch.stack, which the tracer takes for a concatenation of channels and follows for ever.
        halves = last.unflatten(-1, (1 + source.bidirectional, -1)).movedim(-2, 0)
        hidden = halves.repeat(source.num_layers, *[1] * (last.dim()))
        return output, (hidden, hidden) if source.mode == "LSTM" else hidden


def find_channel_groups(
    model: nn.Module, example_inputs: Inputs, names: Sequence[str]
) -> tuple[ChannelGroup, ...]:
    """The groups rooted at the compressible modules `names`, in that order; each producer belongs to one group.

    Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", through torch-pruning.
    """
    model = copied(model, None)
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, SplitRecurrent)
    }
    plain = [
        n
        for n in names
        if n.rpartition(".")[0] not in layers
        and not isinstance(model.get_submodule(n), nn.Embedding)
    ]
    groups = [
        *attention_groups(model, plain),
        *(group for name, layer in layers.items() for group in inner_groups(name, layer)),
    ]
    mixtures = expert_groups(model, plain)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        if name:
            setattr(model.get_submodule(parent), child, _StandIn(layer))
            plain.append(f"{name}.linear")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    inputs: Any = map_inputs(example_inputs, torch.clone)  # the model may write to them
    deadline = time.monotonic() + TRACER_SECONDS
    graph, problem = _traced(model, inputs)
    name_of = {module: name for name, module in model.named_modules()}
    produced = {member.name for group in groups for member in group.members if member.side == "out"}
    routers = {group.name for group in mixtures}
    for name in plain:
        if name in produced or name in routers:
            continue
        left = deadline - time.monotonic()
        try:
            if graph is None:
                raise _Unfollowed(problem)
            if left <= 0:
                raise _Unfollowed(
                    f"not looked at in the {TRACER_SECONDS:.0f} s that the tracer has for all groups"
                )
            with _time_limit(min(GROUP_SECONDS, left)):
                group = _fitting(
                    _gated(_group(graph, model.get_submodule(name), name, name_of, model)), model
                )
            group = _with_layers(group, layers)
        except _Unfollowed as error:
            group = _with_layers(_alone(model, name, str(error)), layers)
        except Exception as error:  # whatever torch-pruning does not know leaves its channels whole
            reason = f"torch-pruning cannot follow its channels ({type(error).__name__})"
            group = _with_layers(_alone(model, name, reason), layers)
        produced.update(member.name for member in group.members if member.side == "out")
        groups.append(group)
    order = {name: i for i, name in enumerate(names)}
    found = sorted((*groups, *mixtures), key=lambda group: order.get(group.name, len(order)))
    return tuple(found)


class _Unfollowed(Exception):
    """Why a group is not prunable."""


def _traced(model: nn.Module, inputs: Any) -> tuple[torch_pruning.DependencyGraph | None, str]:
    """(dependency graph, "") or (None, why there is none): nothing that it would have found is pruned then, and inspect says why."""
    try:
        with warnings.catch_warnings(), _time_limit(TRACER_SECONDS):
            warnings.simplefilter("ignore")
            return torch_pruning.DependencyGraph().build_dependency(
                model, example_inputs=inputs, output_transform=_followed, verbose=False
            ), ""
    except Exception as error:
        torch._dynamo.reset()  # what was compiled under the tracer, as torch.cond is, does not run without it
        return None, f"torch-pruning cannot trace the model ({type(error).__name__})"


def _followed(result: Any) -> list[Tensor]:
    """The tensors of what a model returns that depend on its parameters; the tracer takes no None, numbers or dataclasses."""
    if isinstance(result, Tensor):
        return [result] if result.grad_fn is not None else []
    if isinstance(result, Mapping):
        parts = list(result.values())
    elif isinstance(result, (tuple, list)):
        parts = list(result)
    else:
        parts = list(vars(result).values()) if hasattr(result, "__dict__") else []
    return [tensor for part in parts for tensor in _followed(part)]


def _gated(group: ChannelGroup) -> ChannelGroup:
    """The group with both halves of a gated unit in one: where a projection's first half gates its second, as in SwiGLU with one
    matrix, readers have half as many channels as it makes, and the tracer sees one half alone."""
    makers = [member for member in group.members if member.side == "out"]
    readers = [member for member in group.members if member.side == "in"]
    half = group.channels // 2
    whole = (
        len(makers) == 1
        and len(group.members) == 1 + len(readers)
        and len(makers[0].index) == group.channels == 2 * half
    )
    if group.reason is not None or group.unit_size != 1 or not readers or not whole:
        return group
    if any(
        len(member.index) != half or not np.array_equal(member.root % half, all_of(half))
        for member in readers
    ):
        return group
    members = tuple(replace(member, root=member.root % half) for member in (makers[0], *readers))
    return replace(group, channels=half, members=members)


def _fitting(group: ChannelGroup, model: nn.Module) -> ChannelGroup:
    """The group itself; _Unfollowed where it counts channels that a module does not have, as behind operators that move channels
    into space or time (pixel shuffle)."""
    for member in group.members if group.reason is None else ():
        width = _width(model.get_submodule(member.name), member.side)
        fits = len(member.index) == len(member.root) and (
            not len(member.index) or 0 <= member.root.min() <= member.root.max() < group.channels
        )
        if not fits or (
            width is not None
            and len(member.index)
            and not 0 <= member.index.min() <= member.index.max() < width
        ):
            raise _Unfollowed(f"torch-pruning counts other channels of {member.name} than it has")
    return group


def _width(module: nn.Module, side: str) -> int | None:
    """How many channels a module has on one side; None where its weight does not say it."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features
    if isinstance(module, COVERED):
        names = ("in_features", "in_channels") if side == "in" else ("out_features", "out_channels")
        return next(
            value for name in names if isinstance(value := getattr(module, name, None), int)
        )
    return None


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError after that time, in the main thread of a Unix process: the tracer goes round for ever in some graphs."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError

    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _alone(model: nn.Module, name: str, reason: str) -> ChannelGroup:
    """A group of one module that is not prunable."""
    module = model.get_submodule(name)
    index = all_of(weight_shape(module)[0])
    kind = "neurons" if isinstance(module, nn.Linear) else "filters"
    return ChannelGroup(name, kind, len(index), 1, (Member(name, "out", index, index),), reason)


def _group(
    graph: torch_pruning.DependencyGraph,
    module: nn.Module,
    name: str,
    name_of: Mapping[nn.Module, str],
    model: nn.Module,
) -> ChannelGroup:
    prune_out = graph.get_pruner_of_module(module).prune_out_channels
    channels = graph.get_out_channels(module)
    found = graph.get_pruning_group(module, prune_out, idxs=list(range(channels)))
    members: dict[tuple[str, str], tuple[dict[int, int], nn.Module]] = {}
    reason: str | None = None
    attends = False
    for item in found._group:
        target, handler = item.dep.target, item.dep.handler.__name__
        attends = (
            attends
            or "Attention" in target.name
            or "Softmax" in target.name
            or "Bmm" in target.name
        )
        if isinstance(target.module, nn.Parameter):
            reason = "the width is shared with a free parameter"
        elif target.module in name_of:
            side = _side(target.module, handler)
            key = (name_of[target.module], side)
            if key not in members:
                members[key] = ({}, target.module)
            for index, root in zip(item.idxs, item.root_idxs, strict=True):
                members[key][0][int(index)] = int(root)
            reason = reason or _obstacle(target.module)
    consumers = [key for key in members if key[1] == "in"]
    if not consumers:
        reason = "its channels are the model's output"
    built = tuple(
        Member(key[0], key[1], np.array(sorted(index)), np.array([index[i] for i in sorted(index)]))
        for key, (index, _) in members.items()
    )
    convolution = isinstance(module, (nn.Conv1d, nn.Conv2d))
    unit, kind = 1, "filters" if convolution else "neurons"
    if attends:
        kind = "heads"
        heads = _heads_above(model, name)
        if heads is None or channels % heads:
            reason = (
                reason
                or f"attention without one of {', '.join(HEAD_ATTRIBUTES)} on the module that holds it"
            )
        else:
            unit = channels // heads
    return ChannelGroup(name, kind, channels, unit, built, reason)


def _side(module: nn.Module, handler: str) -> str:
    """Which channels of a module a handler of torch-pruning removes; those of a depthwise convolution go with their filters."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "channel"
    return "out" if depthwise(module) else handler.split("_")[1]


def depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution with one filter of one channel per channel."""
    return (
        isinstance(module, (nn.Conv1d, nn.Conv2d))
        and 1 < module.groups == module.in_channels == module.out_channels
    )


def _obstacle(module: nn.Module) -> str | None:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return "embedding width: a layer normalisation spans it"
    if isinstance(module, nn.Embedding):
        return "embedding width: an embedding table spans it"
    if getattr(module, "groups", 1) > 1 and not depthwise(module):
        return "a grouped convolution is in the group"
    return None if isinstance(module, COVERED) else f"{type(module).__name__} is in the group"


def _heads_above(model: nn.Module, name: str) -> int | None:
    """The number of heads that the closest enclosing module states."""
    while name:
        name = name.rpartition(".")[0]
        heads = head_count(model.get_submodule(name))
        if heads is not None:
            return heads
    return None


def _with_layers(group: ChannelGroup, layers: Mapping[str, SplitRecurrent]) -> ChannelGroup:
    """The same group with the gates of recurrent layers in the place of their stand-ins.

    Both directions of a layer lose the same units, since one operator runs them.
    """
    stand_ins = {f"{name}.linear": name for name in layers}
    makers = [m for m in group.members if m.side == "out" and m.name in stand_ins]
    members = [m for m in group.members if m.name not in stand_ins]
    reason, name, kind, channels = group.reason, group.name, group.kind, group.channels
    if group.name in stand_ins:
        layer = layers[stand_ins[group.name]]
        size, last = layer.hidden_size, layer.num_layers - 1
        members = [Member(m.name, m.side, m.index, m.root % size) for m in members]
        members = gate_members(stand_ins[group.name], layer, last, all_of(size)) + members
        name, kind, channels = f"{stand_ins[group.name]}.ih_l{last}", "hidden units", size
        if len(makers) > 1:
            reason = reason or "the states of two recurrent layers are added"
    elif makers:
        reason = reason or "the state of a recurrent layer is added to other channels"
    for m in group.members:
        if m.side == "in" and m.name in stand_ins:
            layer = layers[stand_ins[m.name]]
            root = m.root % channels if group.name in stand_ins else m.root
            members += input_members(stand_ins[m.name], layer, 0, m.index, root)
    return ChannelGroup(name, kind, channels, group.unit_size, tuple(members), reason)
