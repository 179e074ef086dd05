"""Find the channel groups of a small model, for tests."""

from __future__ import annotations

from torch import Tensor, nn

from autocompress.model.channel_group import ChannelGroup
from autocompress.model.dependency_graph import find_channel_groups


def groups_of(model: nn.Module, inputs: Tensor) -> dict[str, ChannelGroup]:
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding))
    ]
    found = find_channel_groups(model, inputs, names)
    return {group.name: group for group in found}


def members(group: ChannelGroup) -> dict[tuple[str, str], tuple[list[int], list[int]]]:
    return {(m.name, m.side): (m.index.tolist(), m.root.tolist()) for m in group.members}
