"""Count the bytes that each module has in a written graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from onnx import ModelProto


def bytes_by_module(
    model: ModelProto, owners: Mapping[str, str], modules: Collection[str]
) -> dict[str, int]:
    """Return the bytes of the nodes and tensors of each module.

    Args:
        model: with the weights in it.
        owners: module of the first output of each node, as `Builder.build_owned` returns them.
        modules: names of the modules.

    Returns:
        Bytes by module. A tensor that carries no module's name belongs to the module whose nodes
        read it; those that several modules read belong to none.
    """
    sizes = dict.fromkeys(modules, 0)
    readers: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.node:
        owner = owners.get(node.output[0], "")
        if owner in sizes:
            sizes[owner] += node.ByteSize()
        for name in node.input:
            readers[name].add(owner)
    for tensor in model.graph.initializer:
        own = tensor.name.rpartition(".")[0]
        owning = {own} if own in sizes else readers[tensor.name]
        if len(owning) == 1 and owning <= sizes.keys():
            sizes[owning.pop()] += tensor.ByteSize()
    return sizes
