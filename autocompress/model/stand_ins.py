"""Put stand-ins in the place of split layers, which the tracer cannot follow.

They are linear maps for recurrent layers, and whole transposed convolutions. `dependency_graph`
traces a model with stand-ins, and then translates the groups that it got back to the split layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from autocompress.model.channel_group import ChannelGroup, Member, all_of
from autocompress.model.known_structures import gate_members, input_members, weight_shape
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.model.plain.transposed import SplitTransposed


class StandIn(nn.Module):
    """Replace a recurrent layer by one linear map with the same inputs and outputs."""

    def __init__(self, source: SplitRecurrent) -> None:
        super().__init__()
        self.source = (source,)  # in a tuple, so that it is not traced
        inputs = weight_shape(source.get_submodule("ih_l0"))[1]
        self.linear = nn.Linear(inputs, source.hidden_size * (1 + source.bidirectional))

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Return an output and a state of the shapes of the recurrent layer.

        Args:
            input: as the recurrent layer takes it.
            hx: not used.

        Returns:
            (output, state).
        """
        source, x = self.source[0], input
        output = self.linear(x)
        last = output[:, -1] if source.batch_first and x.dim() == 3 else output[-1]
        # torch.stack would be taken for a concatenation of channels, which the tracer follows
        # without end.
        halves = last.unflatten(-1, (1 + source.bidirectional, -1)).movedim(-2, 0)
        hidden = halves.repeat(source.num_layers, *[1] * (last.dim()))
        return output, (hidden, hidden) if source.mode == "LSTM" else hidden


def with_layers(group: ChannelGroup, layers: Mapping[str, SplitRecurrent]) -> ChannelGroup:
    """Return a group with the gates of recurrent layers in the place of their stand-ins.

    Both directions of a layer lose the same units, since one operator runs them.

    Args:
        group: of a model with stand-ins; a stand-in's linear module is "NAME.linear".
        layers: the recurrent layers by name.

    Returns:
        The group itself if it holds no stand-in.
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


def with_products(group: ChannelGroup, layers: Mapping[str, SplitTransposed]) -> ChannelGroup:
    """Return a group with the products of transposed convolutions in the place of the whole ones.

    A channel of one has as many rows in its product as the kernel has values, and perhaps a bias.

    Args:
        group: of a model with whole transposed convolutions.
        layers: the split ones by name.

    Returns:
        The group itself if it holds none of them.
    """
    members: list[Member] = []
    for m in group.members:
        layer = layers.get(m.name)
        if layer is None:
            members.append(m)
            continue
        product = f"{m.name}.product"
        if m.side != "out":
            members.append(replace(m, name=product))
            continue
        rows = (m.index[:, None] * layer.taps + all_of(layer.taps)).reshape(-1)
        members.append(Member(product, "out", rows, np.repeat(m.root, layer.taps)))
        if layer.bias is not None:
            members.append(Member(m.name, "channel", m.index, m.root))
    name = f"{group.name}.product" if group.name in layers else group.name
    return replace(group, name=name, members=tuple(members))
