"""Linear, embedding and recurrent modules as operators on packed weights."""

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
from autocompress.export.lowering.pack import (
    float_weight,
    group_scale,
    int8_weight,
    pack_rows,
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

    `level` runs them on the weight-only kernel at that accuracy level, `unsigned` gives integer kernels weights around 128. `experts`
    are those that a router still has.
    """
    value = site.input
    last = len(variant.factors) - 1
    for i, stored in enumerate(variant.factors):
        name = f"{site.owner}.weight/{i}"
        output = (
            graph.short(f"{site.node.output[0]}/{i}")
            if i < last or site.bias or experts is not None
            else site.output
        )
        if config.activation_bits == 8:
            value = _integer_product(
                graph,
                name,
                value,
                stored,
                output,
                unsigned,
                static=i == 0 and config.static("linear"),
            )
            continue
        if config.activation_bits == 16 and i == 0:
            value = graph.rounded(value, 16)
        if level is not None:
            value = _weight_only_product(graph, name, value, stored, output, level)
        else:
            value = graph.add(
                "MatMul", [value, _transposed(graph, float_weight(graph, name, stored))], output
            )
    if site.bias is not None:
        if variant.bias is not None:
            graph.constant(site.bias, variant.bias.cpu().numpy())
        value = graph.add(
            "Add",
            [value, site.bias],
            site.output if experts is None else graph.short(f"{site.output}/open"),
        )
    if experts is not None:
        graph.add(
            "Add",
            [value, graph.constant(graph.short(f"{site.owner}/gate"), gate_shift(experts))],
            site.output,
        )


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
    """MatMulInteger between a quantiser and the scales, which the runtime fuses."""
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
    """MatMulNBits: weights stay packed in memory and are unpacked block by block inside the kernel."""
    rows, columns = stored.values.shape
    short = graph.short(name)
    blocks = np.pad(stored.values.numpy(), ((0, 0), (0, -columns % stored.group_size)))
    packed = pack_rows(blocks, stored.weight_bits).reshape(
        rows, blocks.shape[1] // stored.group_size, -1
    )
    scale = graph.once(
        f"{name}/scale", lambda short: group_scale(graph, short, stored, (rows, packed.shape[1]))
    )
    inputs = [value, graph.constant(short, packed), scale]
    if stored.zero_point is not None:
        inputs.append(
            graph.constant(f"{short}z", pack_rows(stored.zero_point.numpy(), stored.weight_bits))
        )
    return graph.add(
        "MatMulNBits",
        inputs,
        output,
        domain=CONTRIB,
        K=columns,
        N=rows,
        bits=stored.weight_bits,
        block_size=stored.group_size,
        accuracy_level=level,
    )


def gather_block(stored_columns: int, config: ModuleConfig) -> int | None:
    """Block size with which GatherBlockQuantized can read a table of that width, or None."""
    if (
        config.weight_bits not in (2, 4, 8)
        or config.group_size < 0
        or stored_columns % (8 // config.weight_bits)
    ):
        return None
    if config.group_size > 0:
        return config.group_size
    return max(SMALLEST_BLOCK, 1 << (stored_columns - 1).bit_length())


def embedding(graph: GraphBuilder, site: Site, variant: Variant, block: int | None) -> None:
    """Gather from the table, unpacked when the session is created, or (with a block size) row by row at run time."""
    *first, stored = variant.factors
    if block is None:
        # Under the names that a linear module would give its factors, so that one that shares the weight shares what is stored.
        output = graph.short(f"{site.output}/rows") if first else site.output
        found = graph.add(
            "Gather",
            [float_weight(graph, f"{site.owner}.weight/{len(first)}", stored), site.input],
            output,
        )
        if first:  # rows of the rank's width become wide
            graph.add(
                "MatMul",
                [found, float_weight(graph, f"{site.owner}.weight/0", first[0])],
                site.output,
            )
        return
    name = f"{site.owner}.weight/table"
    short = graph.short(name)
    rows, columns = stored.values.shape
    packed = graph.constant(short, pack_rows(stored.values.numpy(), stored.weight_bits))
    scale = graph.once(
        f"{name}/scale",
        lambda short: group_scale(graph, short, stored, (rows, -(-columns // block))),
    )
    inputs = [packed, site.input, scale]
    if stored.zero_point is not None:
        inputs.append(
            graph.constant(f"{short}z", pack_rows(stored.zero_point.numpy(), stored.weight_bits))
        )
    attributes = {
        "gather_axis": 0,
        "quantize_axis": 1,
        "block_size": block,
        "bits": stored.weight_bits,
    }
    graph.add("GatherBlockQuantized", inputs, site.output, domain=CONTRIB, **attributes)


def zeros(graph: GraphBuilder, site: Site, like: str) -> None:
    """Zeros in the place of a removed expert's output: the leading dimensions of tensor `like`, the module's own width."""
    name = graph.short(f"{site.output}/zeros")
    width = len(graph.array(f"{site.owner}.weight"))
    shape = graph.add("Shape", [like], f"{name}s", end=-1)
    whole = graph.add("Concat", [shape, graph.shape((width,))], f"{name}w", axis=0)
    graph.add("Expand", [graph.shared("floatzero", np.zeros((), np.float32)), whole], site.output)


def recurrent(graph: GraphBuilder, site: Site, variant: Variant) -> None:
    """The weight under its own name, as constants that the runtime unpacks when the session is created."""
    del graph.initializers[site.output]
    value = float_weight(graph, f"{site.owner}/gates", variant.factors[0])
    graph.add("Identity", [value], site.output)
    if variant.bias is not None and site.bias in graph.initializers:
        graph.constant(site.bias, variant.bias.cpu().numpy())
