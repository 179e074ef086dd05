"""Count the bytes that each module has in a .tflite file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from autocompress.targets.device.litert.operators import read_flat, tensor_name

NODE_BYTES = 40  # of an operator's table, about


def flat_bytes_by_module(
    content: bytes, owners: Mapping[str, str], modules: Collection[str]
) -> dict[str, int]:
    """Return the bytes of the weights and operators of each module.

    Args:
        content: of the file.
        owners: module by name of a tensor, as `translate.owners_of` returns them.
        modules: names of the modules.

    Returns:
        Bytes by module. A constant that operators of several modules read belongs to none.
    """
    flat = read_flat(content)
    (graph,) = flat.subgraphs
    sizes, readers, unpacked = dict.fromkeys(modules, 0), defaultdict[int, set[str]](set), {}
    for operator in graph.operators:
        owner = owners.get(tensor_name(int(operator.outputs[0])), "")
        if owner in sizes:
            sizes[owner] += NODE_BYTES
        elif len(operator.inputs) == 1:  # what unpacks a constant
            unpacked[int(operator.outputs[0])] = int(operator.inputs[0])
        for number in operator.inputs:
            readers[unpacked.get(int(number), int(number))].add(owner)
    for number, owning in readers.items():
        data = flat.buffers[graph.tensors[number].buffer].data if number >= 0 else None
        own = owning & sizes.keys()
        if data is not None and len(own) == 1:
            scales = graph.tensors[number].quantization
            sizes[own.pop()] += len(data) + (4 * len(scales.scale) if scales is not None else 0)
    return sizes
