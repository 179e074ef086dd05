"""Add linear, embedding and recurrent modules as operators on packed weights."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from autocompress.candidate import ModuleConfig
from autocompress.compress.assemble.fake_quant import gate_shift
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.prune.masks import Mask
from autocompress.compress.quantize.affine import StoredTensor
from autocompress.export.lowering.graph import CONTRIB, GraphBuilder
from autocompress.export.lowering.lower import Site
from autocompress.export.lowering.pack import pack_rows
from autocompress.export.lowering.weights import (
    float_weight,
    group_scale,
    int8_weight,
    uint8_weight,
)

SMALLEST_BLOCK = 16  # of GatherBlockQuantized


def linear(
    graph: GraphBuilder,
    site: Site,
    variant: Variant,
    config: ModuleConfig,
    level: int | None,
    unsigned: bool,
    experts: Mask | None = None,
) -> None:
    """Add a product per factor and the bias.

    Args:
        graph: gets nodes and initializers.
        site: where the float graph has the module.
        variant: its compressed weights.
        config: what is done to the module.
        level: accuracy level of the weight-only kernel, or None for another kernel.
        unsigned: give integer kernels uint8 weights around 128 instead of int8.
        experts: for a router, (experts,) True for those that are left; the others are never chosen.
    """
    value = site.input
    last = len(variant.factors) - 1
    for i, stored in enumerate(variant.factors):
        name = f"{site.owner}.weight/{i}"
        is_end = i == last and not site.bias and experts is None
        output = site.output if is_end else graph.short(f"{site.node.output[0]}/{i}")
        if config.activation_bits == 8:
            static = i == 0 and config.static("linear")
            value = _integer_product(graph, name, value, stored, output, unsigned, static)
            continue
        if config.activation_bits == 16 and i == 0:
            value = graph.rounded(value, 16)
        if level is not None:
            value = _weight_only_product(graph, name, value, stored, output, level)
        else:
            weight = _transposed(graph, float_weight(graph, name, stored))
            value = graph.add("MatMul", [value, weight], output)
    if site.bias is not None:
        bias = site.bias
        if variant.bias is not None:
            if graph.lowered.readers[bias] > 1:  # others that read it correct other errors
                bias = graph.short(f"{site.name}.bias")
            graph.constant(bias, variant.bias.cpu().numpy())
        output = site.output if experts is None else graph.short(f"{site.output}/open")
        value = graph.add("Add", [value, bias], output)
    if experts is not None:
        gate = graph.constant(graph.short(f"{site.owner}/gate"), gate_shift(experts))
        graph.add("Add", [value, gate], site.output)


def _transposed(graph: GraphBuilder, weight: str) -> str:
    return graph.once(
        f"{weight}/transposed", lambda short: graph.add("Transpose", [weight], short, perm=[1, 0])
    )


def _integer_product(
    graph: GraphBuilder,
    name: str,
    value: str,
    stored: StoredTensor,
    output: str,
    unsigned: bool,
    static: bool,
) -> str:
    """Add a MatMulInteger between a quantiser and the scales, which the runtime fuses."""
    quantised, scale, zero = graph.static(value) if static else graph.dynamic(value)
    assert stored.scale is not None
    call = graph.short(f"{output}/call")
    weight = uint8_weight(graph, name, stored) if unsigned else int8_weight(graph, name, stored)
    weight = _transposed(graph, weight)
    short = graph.short(name)
    dtype, middle = (np.uint8, 128) if unsigned else (np.int8, 0)
    if stored.zero_apart:
        assert stored.zero_point is not None
        zeros = np.broadcast_to(stored.zero_point.numpy().reshape(-1), (len(stored.values),))
        weight_zero = graph.shared(f"{short}b", (zeros.astype(np.int16) + middle).astype(dtype))
    else:
        weight_zero = graph.shared(f"{np.dtype(dtype).name}zero", np.full((), middle, dtype))
    product = graph.add("MatMulInteger", [quantised, weight, zero, weight_zero], f"{call}p")
    wide = graph.add("Cast", [product], f"{call}f", to=TensorProto.FLOAT)
    weight_scale = graph.constant(f"{short}s", stored.scale.cpu().numpy().reshape(-1))
    both = graph.add("Mul", [scale, weight_scale], f"{call}b")
    return graph.add("Mul", [wide, both], output)


def _weight_only_product(
    graph: GraphBuilder, name: str, value: str, stored: StoredTensor, output: str, level: int
) -> str:
    """Add a MatMulNBits: weights stay packed in memory, its kernel unpacks them block by block."""
    rows, columns = stored.values.shape
    size = stored.group_size
    short = graph.short(name)
    padded = np.pad(stored.values.numpy(), ((0, 0), (0, -columns % size)))
    blocks = padded.shape[1] // size
    packed = pack_rows(padded, stored.weight_bits).reshape(rows, blocks, -1)
    scale = graph.once(
        f"{name}/scale", lambda short: group_scale(graph, short, stored, (rows, blocks))
    )
    inputs = [value, graph.constant(short, packed), scale]
    inputs += _packed_zero_points(graph, short, stored)
    return graph.add(
        "MatMulNBits",
        inputs,
        output,
        domain=CONTRIB,
        K=columns,
        N=rows,
        bits=stored.weight_bits,
        block_size=size,
        accuracy_level=level,
    )


def _packed_zero_points(graph: GraphBuilder, short: str, stored: StoredTensor) -> list[str]:
    """Add the zero points of blocks; return their name, or none for symmetric weights."""
    if stored.zero_point is None:
        return []
    packed = pack_rows(stored.zero_point.numpy(), stored.weight_bits)
    return [graph.constant(f"{short}z", packed)]


def gather_block(stored_columns: int, config: ModuleConfig) -> int | None:
    """Return the block size with which GatherBlockQuantized can read a table.

    Args:
        stored_columns: width of the stored table, which is the rank of a factorised one.
        config: what is done to the embedding.

    Returns:
        columns per scale, or None if the operator cannot read such a table.
    """
    bits = config.weight_bits
    if bits not in (2, 4, 8) or config.group_size < 0 or stored_columns % (8 // bits):
        return None
    if config.group_size > 0:
        return config.group_size
    return max(SMALLEST_BLOCK, 1 << (stored_columns - 1).bit_length())


def embedding(
    graph: GraphBuilder, site: Site, variant: Variant, block: int | None, shared: bool = False
) -> None:
    """Add a Gather from the table, and a product where the table is factorised.

    Args:
        graph: gets nodes and initializers.
        site: where the float graph has the module.
        variant: its compressed weights.
        block: columns per scale of a table that stays packed and is unpacked row by row at run
            time. None unpacks the table when a session is created.
        shared: read the packed weight of the weight-only product of a head.
    """
    *first, stored = variant.factors
    if block is not None:
        _packed_gather(graph, site, stored, block, shared)
        return
    # A linear module gives its factors these names; one that shares the weight shares the tensors.
    output = graph.short(f"{site.output}/rows") if first else site.output
    weight = float_weight(graph, f"{site.owner}.weight/{len(first)}", stored)
    rows = graph.add("Gather", [weight, site.input], output)
    if first:  # rows of the rank's width become wide
        wide = float_weight(graph, f"{site.owner}.weight/0", first[0])
        graph.add("MatMul", [rows, wide], site.output)


def _packed_gather(
    graph: GraphBuilder, site: Site, stored: StoredTensor, block: int, shared: bool
) -> None:
    """Add a GatherBlockQuantized from the packed table."""
    name = f"{site.owner}.weight/{0 if shared else 'table'}"
    short = graph.short(name)
    rows, columns = stored.values.shape
    packed = pack_rows(stored.values.numpy(), stored.weight_bits)
    if shared:  # in the product's shape, and flat for the lookup
        whole = graph.constant(short, packed.reshape(rows, columns // block, -1))
        table = graph.add("Reshape", [whole, graph.shape(packed.shape)], f"{short}f")
    else:
        table = graph.constant(short, packed)
    scale = graph.once(
        f"{name}/scale",
        lambda short: group_scale(graph, short, stored, (rows, -(-columns // block))),
    )
    inputs = [table, site.input, scale, *_packed_zero_points(graph, short, stored)]
    attributes = {
        "gather_axis": 0,
        "quantize_axis": 1,
        "block_size": block,
        "bits": stored.weight_bits,
    }
    graph.add("GatherBlockQuantized", inputs, site.output, domain=CONTRIB, **attributes)


def zeros(graph: GraphBuilder, site: Site, like: str) -> None:
    """Add zeros in the place of a removed expert's output.

    Args:
        graph: gets nodes and initializers.
        site: the expert's last module, whose width the zeros have.
        like: name of the tensor whose leading dimensions they have.
    """
    name = graph.short(f"{site.output}/zeros")
    width = len(graph.array(f"{site.owner}.weight"))
    shape = graph.add("Shape", [like], f"{name}s", end=-1)
    whole = graph.add("Concat", [shape, graph.shape((width,))], f"{name}w", axis=0)
    graph.add("Expand", [graph.shared("floatzero", np.zeros((), np.float32)), whole], site.output)


def recurrent(graph: GraphBuilder, site: Site, variant: Variant) -> None:
    """Replace a weight of a recurrent operator by constants that the runtime unpacks.

    Args:
        graph: the weight's name becomes the output of a node.
        site: the weight of one gate matrix; its readers stay as they are.
        variant: its compressed weights.
    """
    del graph.initializers[site.output]
    value = float_weight(graph, f"{site.owner}/gates", variant.factors[0])
    graph.add("Identity", [value], site.output)
    if variant.bias is not None and site.bias in graph.initializers:
        graph.constant(site.bias, variant.bias.cpu().numpy())
