"""Operators belong to the modules whose weights they read, whatever the optimiser calls them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import transformers
from arithmetic import Formed
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from autocompress import Candidate, Task, find_modules
from autocompress.export.prepare import prepare
from autocompress.export.subject import layout_of, subject_of
from autocompress.integer_form import IntegerForm
from autocompress.space.search_space import SearchSpace
from autocompress.targets.device.profiler import NodeTime, profile_nodes
from autocompress.targets.latency_model.attribution import attribute
from autocompress.targets.latency_model.plan import Subject, all_forms, uniform_candidate
from autocompress.targets.latency_model.run import REST
from autocompress.targets.target import find_target
from autocompress.targets.workload import Kernel, Work, workload

TARGET = find_target("onnxruntime-cpu")
WITH_WEIGHTS = {
    "Gemm",
    "FusedGemm",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "Conv",
    "FusedConv",
    "QLinearConv",
}


def model(nodes: list[tuple[str, str, str]], weights: dict[str, tuple[int, ...]]) -> bytes:
    """A graph of nodes (operator, "inputs", "outputs"), with constants of these shapes."""
    made = [
        helper.make_node(op_type, reads.split(), makes.split(), name=makes.split()[0])
        for op_type, reads, makes in nodes
    ]
    generator = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(generator.standard_normal(shape, dtype=np.float32), name)
        for name, shape in weights.items()
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in ("x", made[-1].output[0])
    ]
    return helper.make_model(
        helper.make_graph(made, "g", ends[:1], ends[1:], constants)
    ).SerializeToString()


def work(**multiply_adds: float) -> Work:
    return Work(
        {
            name: Kernel("linear", 1, "float", 8, 8, amount)
            for name, amount in multiply_adds.items()
        },
        {},
    )


def node(operator: str, names: str, weights: str = "", us: float = 1.0) -> NodeTime:
    return NodeTime(operator, tuple(names.split()), us, weights=tuple(weights.split()))


BLOCK = model(
    [
        ("Transpose", "q.weight", "val_1"),
        ("MatMul", "x val_1", "val_2"),
        ("Add", "val_2 q.bias", "linear"),
        ("Transpose", "k.weight", "val_3"),
        ("MatMul", "x val_3", "linear_1"),
        ("Softmax", "linear", "softmax"),
        ("MatMul", "softmax linear_1", "attention"),
        ("Add", "attention positions", "placed"),
        ("Conv", "placed stem.0.weight", "conv"),
        ("Relu", "conv", "relu"),
    ],
    {
        "q.weight": (8, 8),
        "q.bias": (8,),
        "k.weight": (8, 8),
        "positions": (8, 8),
        "stem.0.weight": (8, 8, 1),
        "free": (8, 8),
    },
)
OWNERS = {"val_2": "q", "linear": "q", "linear_1": "k", "conv": "stem.0", "relu": "stem.0"}
BLOCK_WORK = work(**{"q": 64.0, "k": 192.0, "stem.0": 64.0})


@pytest.mark.parametrize(
    ("found", "owner"),
    [
        (node("Gemm", "gemm_output_token_1 val_2/MatMulAddFusion", "val_1"), "q"),
        (node("Gemm", "fused_gemm", "k.weight"), "k"),
        (node("Conv", "reorder_token_4", "ConvBnFusion_W_stem.0.weight"), "stem.0"),
        (node("FusedConv", "relu_nchwc relu"), "stem.0"),
        (node("FusedConv", "made_up relu", "joined"), "stem.0"),
        (node("DequantizeLinear", "made_up", "k.weight"), "k"),
        (node("Add", "linear"), "q"),
        (node("Transpose", "linear_1"), REST),
        (node("MatMul", "attention"), REST),
        (node("Add", "placed", "positions"), REST),
        (node("Gemm", "made_up", "free"), REST),
        (node("Gemm", "made_up", "joined"), REST),
        (node("Gemm", "made_up", "xval_1"), REST),
        (node("QuantizeLinear", "relu_quantized"), REST),
    ],
    ids=lambda value: (
        value
        if isinstance(value, str)
        else f"{value.operator} {value.names[0]} {' '.join(value.weights)}"
    ),
)
def test_the_owner_of_an_operator(found: NodeTime, owner: str) -> None:
    spent, operators = attribute([found], BLOCK, OWNERS, BLOCK_WORK)
    assert spent == {owner: (1.0, 1.0), REST: (1.0, 1.0) if owner == REST else (0.0, 0.0)}
    assert operators == ({found.operator: 1.0} if owner == REST else {})


def test_an_operator_on_joined_weights_is_shared_by_multiply_adds() -> None:
    """As attention is fused.

    Its queries and keys are one weight under a new name, its output is that of the last product.
    """
    profile = [
        node("Attention", "attention", "qkv_weights", 8.0),
        node("Add", "placed", "positions"),
    ]
    spent, operators = attribute(profile, BLOCK, OWNERS, BLOCK_WORK)
    assert spent == {"q": (2.0, 0.25), "k": (6.0, 0.75), REST: (1.0, 1.0)}
    assert operators == {"Add": 1.0}


def test_the_parts_of_a_module_are_added_up() -> None:
    """Factors, and weights that are still unpacked while the model runs."""
    graph = [
        ("Cast", "a0", "t1"),
        ("MatMul", "x t1", "t2"),
        ("Mul", "a1 a1scale", "t3"),
        ("MatMul", "t2 t3", "y"),
        ("MatMul", "y b", "z"),
    ]
    content = model(graph, {"a0": (8, 4), "a1": (4, 8), "a1scale": (4, 8), "b": (8, 8)})
    owners = {"t1": "a", "t2": "a", "t3": "a", "y": "a", "z": "b", "quantized": "quantize:x"}
    profile = [
        node("MatMul", "t2", "t1"),
        node("Mul", "t3", "a1 a1scale", 2.0),
        node("MatMul", "y", "", 4.0),
    ]
    profile += [node("MatMul", "out", "b", 8.0), node("QuantizeLinear", "quantized", "", 16.0)]
    spent, _ = attribute(profile, content, owners, work(a=1.0, b=1.0))
    assert spent == {"a": (7.0, 3.0), "b": (8.0, 1.0), REST: (16.0, 1.0)}


def test_a_runtime_that_does_not_say_what_is_read_is_taken_by_what_it_computes() -> None:
    """OpenVINO's operators bear the name of the last one that was fused to them."""
    products = [
        NodeTime("Convolution", ("relu",), 4.0, weights=None),
        NodeTime("MatMul", ("attention",), 1.0, weights=None),
    ]
    around = [
        NodeTime("MVN", ("placed",), 2.0, weights=None),
        NodeTime("FullyConnected", ("softmax",), 8.0, weights=None),
    ]
    around.append(NodeTime("FullyConnected", ("linear_1",), 16.0, weights=None))
    owners = {name: owner for name, owner in OWNERS.items() if name != "relu"}
    spent, operators = attribute(products + around, BLOCK, owners, BLOCK_WORK)
    assert spent == {"q": (8.0, 1.0), "k": (16.0, 1.0), "stem.0": (4.0, 1.0), REST: (3.0, 2.0)}
    assert operators == {"MatMul": 1.0, "MVN": 2.0}


def test_a_recurrent_operator_is_shared_by_its_weights() -> None:
    graph = [
        ("Split", "ih.weight", "i o"),
        ("Concat", "o i", "w"),
        ("Unsqueeze", "hh.weight", "r"),
        ("LSTM", "x w r", "y"),
    ]
    content = model(graph, {"ih.weight": (8, 8), "hh.weight": (8, 8)})
    owners = {"ih.weight": "ih", "hh.weight": "hh", "y": "hh"}
    spent, _ = attribute([node("LSTM", "y", "w r", 4.0)], content, owners, work(ih=3.0, hh=1.0))
    assert spent == {"ih": (3.0, 0.75), "hh": (1.0, 0.25), REST: (0.0, 0.0)}


def test_a_lookup_that_the_optimiser_has_made_belongs_to_no_operator() -> None:
    """The rows are a constant of the optimised graph, and what adds them does so in any form of the
    table.
    """
    graph = [
        ("Gather", "table places", "rows"),
        ("MatMul", "x w", "y"),
        ("Add", "y rows", "z"),
        ("LayerNormalization", "z g", "n"),
    ]
    content = model(graph, {"table": (8, 8), "places": (8,), "w": (8, 8), "g": (8,)})
    profile = [node("MatMul", "y", "w"), node("SkipLayerNormalization", "n", "rows", 2.0)]
    spent, operators = attribute(
        profile, content, {"rows": "table", "y": "w"}, work(table=1.0, w=1.0)
    )
    assert spent == {"w": (1.0, 1.0), REST: (2.0, 1.0)}
    assert operators == {"SkipLayerNormalization": 2.0}


def test_a_table_that_is_also_the_head_is_one_module() -> None:
    graph = [
        ("Gather", "table x", "rows"),
        ("Transpose", "table", "val_1"),
        ("MatMul", "rows val_1", "logits"),
    ]
    content = model(graph, {"table": (8, 8)})
    profile = [node("Gather", "made_up", "table"), node("Gemm", "other", "val_1", 2.0)]
    spent, _ = attribute(profile, content, {"rows": "table", "logits": "table"}, work(table=1.0))
    assert spent == {"table": (3.0, 2.0), REST: (0.0, 0.0)}


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
IDS = {"bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 0}


def network(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    ids = torch.randint(1, 48, (8, 10))
    images = torch.randn(8, 3, 16, 16)
    if name == "bert":
        config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)
        return transformers.BertForSequenceClassification(config), {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
    if name == "vit":
        return transformers.ViTForImageClassification(
            transformers.ViTConfig(image_size=16, patch_size=4, **SMALL)
        ), {"pixel_values": images}
    if name == "llama":
        config = transformers.LlamaConfig(
            vocab_size=50, num_key_value_heads=2, use_cache=False, **SMALL, **IDS
        )
        return transformers.LlamaForCausalLM(config), {"input_ids": ids}
    text = {**SMALL, **IDS, "vocab_size": 50, "max_position_embeddings": 16}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={**SMALL, "image_size": 16, "patch_size": 4},
        projection_dim=16,
    )
    return transformers.CLIPModel(config), {"input_ids": ids, "pixel_values": images}


@pytest.fixture(scope="module", params=["bert", "vit", "clip", "llama"])
def subject(request: pytest.FixtureRequest) -> Subject:
    torch.manual_seed(0)
    model, inputs = network(request.param)
    model.eval()
    example = {key: tensor[:1] for key, tensor in inputs.items()}
    task = Task(request.param, model, example, [(inputs, None)], lambda o, t: float(o.mean()))
    builder = prepare(task, find_modules(model, example), Formed(IntegerForm.REDUCED))
    space = SearchSpace.load(None).bind(builder.module_map, TARGET)
    return subject_of(task, builder, layout_of(builder), space)


def with_fixed_shapes(content: bytes, subject: Subject) -> bytes:
    found = onnx.load_from_string(content)
    for value in found.graph.input:
        for dimension, size in zip(
            value.type.tensor_type.shape.dim, subject.feed[value.name].shape, strict=True
        ):
            dimension.dim_value = size
    return found.SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [False, True], ids=["free", "fixed"])
@pytest.mark.parametrize("hidden", [False, True], ids=["as named", "renamed"])
def test_every_module_is_found_in_every_form(subject: Subject, fixed: bool, hidden: bool) -> None:
    """With fixed shapes the optimiser makes a Gemm under a name of its own of each product and its
    bias, and looks positions and types up once and for all.
    """
    lookups = {module.name for module in subject.layout.module_map if module.kind == "embedding"}
    for form in all_forms(subject):
        candidate = uniform_candidate(subject, form)
        content, owners = subject.noise_file(candidate)
        content = with_fixed_shapes(content, subject) if fixed else content
        profile = profile_nodes(content, subject.feed, TARGET.settings, 1)
        found = workload(subject.layout, candidate)
        if hidden:  # as if the optimiser gave every operator and every tensor another name
            profile = [one._replace(names=(f"made_up_{i}",)) for i, one in enumerate(profile)]
        # Microseconds are whole numbers in a profile: what counts is who owns an operator.
        spent, operators = attribute(
            [one._replace(microseconds=1.0) for one in profile], content, owners, found
        )
        assert {*found.kernels, REST} - lookups <= set(spent)
        assert not WITH_WEIGHTS & set(operators)


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["bert"], indirect=True)
def test_names_alone_would_miss_modules(subject: Subject) -> None:
    content, owners = subject.noise_file(Candidate())
    profile = profile_nodes(with_fixed_shapes(content, subject), subject.feed, TARGET.settings, 1)
    assert any(one.operator in WITH_WEIGHTS and not set(one.names) & set(owners) for one in profile)


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["bert"], indirect=True)
def test_a_weight_keeps_its_module_through_probes(subject: Subject) -> None:
    """On a device the values are other noise; names of weights do not depend on them."""
    candidate = uniform_candidate(subject, "int8")
    content, owners = subject.noise_file(candidate)
    found = onnx.load_from_string(content)
    for tensor in found.graph.initializer:
        if len(tensor.dims) >= 2 and tensor.data_type == TensorProto.INT8:
            tensor.raw_data = np.random.default_rng(7).bytes(len(tensor.raw_data))
    profile = profile_nodes(found.SerializeToString(), subject.feed, TARGET.settings, 1)
    there, here = (
        {
            name: count
            for name, (_, count) in attribute(
                p, content, owners, workload(subject.layout, candidate)
            )[0].items()
        }
        for p in (profile, profile_nodes(content, subject.feed, TARGET.settings, 1))
    )
    assert there == here
