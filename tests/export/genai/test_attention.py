"""Products that an attention reads as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import builder, lowered, run
from onnx import NodeProto, helper
from small_decoders import TARGET, decoder_task

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.quantize.affine import StoredTensor
from autocompress.export.compressor import Compressor
from autocompress.export.genai.attention import attention_products, join_attention
from autocompress.export.lowering.graph import CONTRIB, GraphBuilder
from autocompress.export.lowering.lower import LoweredModel, Site
from autocompress.export.lowering.operators import linear
from autocompress.export.subject import builder_for, layout_of
from autocompress.measure.prepare import prepared
from autocompress.targets.device.sessions import open_session
from autocompress.targets.target import find_target
from autocompress.targets.workload import workload

GENERATOR = np.random.default_rng(0)
ROWS = {"q": 8, "k": 4, "v": 4}
X = GENERATOR.standard_normal((3, 32)).astype(np.float32)
BIASES = {name: GENERATOR.standard_normal(rows).astype(np.float32) for name, rows in ROWS.items()}
FOUR = ModuleConfig(4, group_size=32, symmetric=False)


def weight(name: str, bits: int = 4, group_size: int = 16, zeros: bool = True) -> StoredTensor:
    rows, blocks = ROWS[name], 32 // group_size
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    values = torch.from_numpy(GENERATOR.integers(low, high, (rows, 32)).astype(np.int8))
    # Halves of the largest scale, of a size of its own for each weight.
    shares = (GENERATOR.random((rows, blocks)) / 2 + 0.5).astype(np.float16)
    shares[0, 0] = 1
    scale = torch.from_numpy(shares.astype(np.float32) * np.float32(rows / 70))
    points = GENERATOR.integers(low, high, (rows, blocks)).astype(np.int8)
    zero = torch.from_numpy(points) if zeros else None
    return StoredTensor(values, bits, scale, zero, group_size=group_size)


def decoder(biased: bool = False, key: str = "x") -> LoweredModel:
    """An attention behind three products."""
    sites, nodes = {}, []
    for name in ROWS:
        source = key if name == "k" else "x"
        product = helper.make_node("MatMul", [source, f"{name}/transposed"], [f"{name}/product"])
        nodes.append(product)
        output = f"{name}/product"
        if biased:
            output = f"{name}/biased"
            nodes.append(helper.make_node("Add", [f"{name}/product", f"{name}.bias"], [output]))
        bias = f"{name}.bias" if biased else None
        sites[name] = (Site(name, name, "linear", product, source, output, bias),)
    read = [uses[0].output for uses in sites.values()]
    nodes.append(helper.make_node("GroupQueryAttention", [*read, "past"], ["y"], domain=CONTRIB))
    weights = {f"{name}.bias": bias for name, bias in BIASES.items()}
    return lowered(nodes, weights, {"x": ["n", 32], "z": ["n", 32]}, ["y"], sites)


def rewritten(model: LoweredModel, **weights: StoredTensor) -> GraphBuilder:
    """The graph with packed products, before they are joined."""
    graph = builder(model)
    for name, uses in model.sites.items():
        graph.owner = name
        linear(graph, uses[0], Variant((weights[name],), None), FOUR, 0, False)
    graph.nodes.append(model.proto.graph.node[-1])
    return graph


def attention(graph: GraphBuilder) -> NodeProto:
    return graph.nodes[-1]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_three_products_of_one_form_become_one(biased: bool, zeros: bool) -> None:
    weights = {name: weight(name, zeros=zeros) for name in ROWS}
    model = decoder(biased)
    graph = rewritten(model, **weights)
    join_attention(graph)
    whole = attention(graph)
    assert list(whole.input[1:]) == ["", "", "past"]
    graph.nodes = graph.nodes[:-1]
    found = run(graph, whole.input[0], {"x": X, "z": X})
    parts = []
    for name, stored in weights.items():
        exact = X @ stored.dequantized().numpy().T
        parts.append(exact + BIASES[name] if biased else exact)
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1), rtol=1e-4, atol=1e-4)
    assert graph.owners[whole.input[0]] == "q"
    assert attention_products(model) == (("q", "k", "v"),)


@pytest.mark.parametrize("other", [{"bits": 8}, {"group_size": 32}, {"zeros": False}])
def test_other_forms_stay_three_products(other: dict[str, int]) -> None:
    weights = {name: weight(name, **(other if name == "v" else {})) for name in ROWS}  # type: ignore[arg-type]
    graph = rewritten(decoder(), **weights)
    join_attention(graph)
    assert list(attention(graph).input) == ["q/product", "k/product", "v/product", "past"]


def test_products_of_another_input_stay() -> None:
    model = decoder(key="z")
    graph = rewritten(model, **{name: weight(name) for name in ROWS})
    join_attention(graph)
    assert list(attention(graph).input[:2]) == ["q/product", "k/product"]
    assert attention_products(model) == ()


def test_products_that_others_read_stay() -> None:
    model = decoder()
    extra = helper.make_node("Relu", ["k/product"], ["more"])
    model.proto.graph.node.append(extra)
    graph = rewritten(model, **{name: weight(name) for name in ROWS})
    graph.nodes = [extra, model.proto.graph.node[-2], *graph.nodes[:-1]]
    graph.nodes.sort(key=lambda node: node.op_type == "GroupQueryAttention")
    join_attention(graph)
    assert list(attention(graph).input[:2]) == ["q/product", "k/product"]
    assert attention_products(model) == ()


@pytest.mark.parametrize(
    "family", ["llama", *[pytest.param(n, marks=pytest.mark.slow) for n in ("mistral", "qwen2")]]
)
def test_files_of_decoders_hold_one_product_where_three_have_one_form(
    tmp_path: Path, family: str
) -> None:
    task = prepared(decoder_task(tmp_path, family))
    modules = find_modules(task.model, task.example_inputs)
    made = builder_for(task, modules, find_target(TARGET))
    compressor, layout = Compressor.of(made), layout_of(made)
    assert [names[0].rpartition(".")[2] for names in layout.joined] == ["q_proj", "q_proj"]
    configs = {module.name: FOUR for module in made.module_map}
    configs["model.layers.1.self_attn.k_proj"] = ModuleConfig(8, group_size=32, symmetric=False)
    candidate = Candidate.of(configs)
    graph = compressor.graph(candidate)
    first, second = (n for n in graph.graph.node if n.op_type == "GroupQueryAttention")
    assert (first.input[1], first.input[2]) == ("", "")
    assert all(second.input[:3])
    products = [n for n in graph.graph.node if n.op_type == "MatMulNBits"]
    linear = [s for uses in made.lowered.sites.values() for s in uses if s.kind == "linear"]
    assert len(products) == len(linear) - 2
    assert graph.ByteSize() == made.size_bytes(candidate)
    with torch.no_grad():
        simulated = compressor.module(candidate)(**task.example_inputs).logits.numpy()  # type: ignore[arg-type]
    feed = made.lowered.feed(task.example_inputs)
    output = open_session(graph.SerializeToString()).run(None, feed)[0]
    assert np.linalg.norm(output - simulated) <= 0.02 * np.linalg.norm(simulated)
    kernels = workload(layout, candidate).kernels
    assert set(layout.joined[0]) & set(kernels) == {layout.joined[0][0]}
    assert set(layout.joined[1]) <= set(kernels)
    assert kernels[layout.joined[0][0]].kept_out == 64 + 2 * 32
