"""Find where a graph uses weights: hand-made graphs in the place of the exporter's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hand_made import lowered
from onnx import ModelProto, NodeProto, helper
from torch import nn

from autocompress.export.float_graph.float_graph import FloatGraph
from autocompress.export.lowering import lower as lowering
from autocompress.export.lowering.lower import LoweredModel, Site, find_norms, lower
from autocompress.model.modules import CompressibleModule, ModuleMap

SHAPES = {"fc": (4, 4), "conv": (4, 4, 1), "table": (4, 4), "gates": (12, 4)}
KINDS = {"fc": "linear", "conv": "conv", "table": "embedding", "gates": "recurrent"}
NORM = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]


def map_of(*names: str, aliases: tuple[str, ...] = ()) -> ModuleMap:
    modules = tuple(
        CompressibleModule(n, KINDS[n], SHAPES[n], True, 0, 1, "", "mlp", None, aliases)
        for n in names
    )
    return ModuleMap(modules, (), (), 0, 0)


def weights(*names: str) -> dict[str, np.ndarray]:
    shapes = {f"{n}.weight": shape for n, shape in SHAPES.items()}
    vector = (4,)
    return {name: np.ones(shapes.get(name, vector), np.float32) for name in names}


def proto(
    nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray], *outputs: str
) -> ModelProto:
    return lowered(nodes, constants, {"x": ["n", 4]}, outputs or (nodes[-1].output[0],)).proto


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch):
    def find(made: ModelProto, modules: ModuleMap) -> LoweredModel:
        monkeypatch.setattr(lowering, "exported", lambda *_: FloatGraph(made, True, ("a line",)))
        return lower(nn.Identity(), torch.ones(1, 4), modules)

    return find


def node(kind: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def test_a_product_with_its_bias(found) -> None:
    nodes = [
        node("Transpose", "fc.weight", "t", perm=[1, 0]),
        node("MatMul", "x t", "p"),
        node("Add", "p fc.bias", "y"),
    ]
    made = found(proto(nodes, weights("fc.weight", "fc.bias")), map_of("fc"))
    (site,) = made.sites["fc"]
    assert (site.name, site.kind, site.input, site.output) == ("fc", "linear", "x", "y")
    assert (site.bias, site.absorbed, site.node.op_type) == ("fc.bias", ("t",), "MatMul")
    assert (made.input_names, made.dynamic_batch, made.fixed) == (("x",), True, ("a line",))
    assert made.producer["y"].op_type == "Add"


@pytest.mark.parametrize(
    ("add", "outputs"),
    [("p other.bias", "y"), ("fc.bias p", "y"), ("p fc.bias", "y p")],
    ids=["another vector", "the other way round", "the product is read elsewhere"],
)
def test_an_addition_that_is_not_its_bias_stays_apart(found, add: str, outputs: str) -> None:
    nodes = [
        node("Transpose", "fc.weight", "t", perm=[1, 0]),
        node("MatMul", "x t", "p"),
        node("Add", add, "y"),
    ]
    constants = weights("fc.weight", "fc.bias", "other.bias")
    (site,) = found(proto(nodes, constants, *outputs.split()), map_of("fc")).sites["fc"]
    assert (site.output, site.bias) == ("p", None)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Transpose", "fc.weight", "t"), node("MatMul", "t x", "y")],
        [node("Transpose", "fc.weight", "t"), node("Mul", "x t", "y")],
        [
            node("Transpose", "fc.weight", "t"),
            node("MatMul", "x t", "p"),
            node("MatMul", "p t", "y"),
        ],
        [node("MatMul", "x fc.weight", "y")],
        [node("Gemm", "x fc.weight fc.bias", "y")],
        [node("Gemm", "x fc.weight fc.bias", "y", transB=1, alpha=0.5)],
        [node("Gemm", "x fc.weight fc.bias", "y", transB=1, transA=1)],
        [
            node("Gemm", "x fc.weight fc.bias", "p", transB=1),
            node("Mul", "p fc.weight", "y"),
        ],
        [node("Relu", "x", "y")],
    ],
    ids=[
        "first factor",
        "no product",
        "one transpose for two",
        "not transposed",
        "Gemm not transposed",
        "Gemm scaled",
        "Gemm of transposed inputs",
        "read otherwise too",
        "not used",
    ],
)
def test_other_uses_of_a_weight_have_no_site(found, nodes: list[NodeProto]) -> None:
    assert found(proto(nodes, weights("fc.weight", "fc.bias")), map_of("fc")).sites == {}


def test_gemm_and_two_calls(found) -> None:
    nodes = [
        node("Gemm", "x fc.weight fc.bias", "h", transB=1),
        node("Gemm", "h fc.weight", "y", transB=1),
    ]
    first, second = found(proto(nodes, weights("fc.weight", "fc.bias")), map_of("fc")).sites["fc"]
    assert (first.input, first.output, first.bias) == ("x", "h", "fc.bias")
    assert (second.input, second.output, second.bias) == ("h", "y", None)


def test_a_tied_weight_goes_by_the_name_that_the_graph_has(found) -> None:
    nodes = [node("Gemm", "x head.weight head.bias", "y", transB=1)]
    made = proto(nodes, {"head.weight": np.ones((4, 4), np.float32), **weights("head.bias")})
    (site,) = found(made, map_of("fc", aliases=("head",))).sites["fc"]
    assert (site.owner, site.name) == ("fc", "head")


def test_a_table(found) -> None:
    made = proto([node("Gather", "table.weight x", "y")], weights("table.weight"))
    (site,) = found(made, map_of("table")).sites["table"]
    assert (site.kind, site.input, site.output, site.bias) == ("embedding", "x", "y", None)


def conv(*tail: NodeProto, outputs: Sequence[str] = (), bias: str = "conv.bias") -> ModelProto:
    nodes = [node("Relu", "x", "s"), node("Conv", f"x conv.weight {bias}", "c"), *tail]
    constants = weights("conv.weight", "conv.bias", *NORM)
    limits = {"zero": np.float32(0), "one": np.float32(1), "six": np.float32(6)}
    return proto(nodes, {**constants, **limits}, *outputs)


BATCH = node("BatchNormalization", f"c {' '.join(NORM)}", "n")


@pytest.mark.parametrize(
    ("tail", "outputs", "expected"),
    [
        ([], ["c"], ()),
        ([BATCH, node("Relu", "n", "r")], ["r"], ("n", "r")),
        ([BATCH], ["n"], ("n",)),
        ([node("Relu", "c", "r")], ["r"], ("r",)),
        ([node("Clip", "c zero six", "r")], ["r"], ("r",)),
        ([node("Clip", "c one six", "r")], ["r"], ()),
        ([node("Clip", "c zero", "r")], ["r"], ()),
        ([BATCH, node("Relu", "n", "r")], ["r", "c"], ()),
        ([BATCH, node("Relu", "n", "r")], ["r", "n"], ("n",)),
        ([node("Relu", "c", "r"), node("Elu", "c", "e")], ["r", "e"], ()),
    ],
)
def test_what_follows_a_convolution_alone_is_its_tail(
    found, tail: list[NodeProto], outputs: list[str], expected: tuple[str, ...]
) -> None:
    made = found(conv(*tail, outputs=outputs), map_of("conv"))
    (site,) = made.sites["conv"]
    assert site.tail == expected
    assert site.output == (expected[-1] if expected else "c")
    assert made.norm(site) == ("bn" if "n" in expected else "")


def test_a_convolution_whose_bias_is_computed_has_no_site(found) -> None:
    assert found(conv(bias="s", outputs=["c"]), map_of("conv")).sites == {}


def test_a_recurrent_weight_is_followed_to_its_operator(found) -> None:
    nodes = [
        node("Split", "gates.weight", "g"),
        node("Concat", "g g", "w"),
        helper.make_node("LSTM", ["x", "w", "r", "b"], ["o", "h"], hidden_size=3),
    ]
    (site,) = found(proto(nodes, weights("gates.weight"), "h"), map_of("gates")).sites["gates"]
    assert (site.kind, site.output, site.bias) == ("recurrent", "gates.weight", "gates.bias")
    assert (site.tail, site.hidden) == (("o",), 3)
    alone = proto(nodes[:2], weights("gates.weight"), "w")
    assert found(alone, map_of("gates")).sites == {}


def linear(owner: str, reads: str) -> Site:
    product = node("MatMul", f"{reads} w", f"{owner}.out")
    return Site(owner, owner, "linear", product, reads, f"{owner}.out", None)


def norms(
    nodes: list[NodeProto], sites: dict[str, tuple[Site, ...]], outputs: tuple[str, ...] = ("y",)
) -> list[tuple[str, tuple[str, ...]]]:
    constants = {
        "norm.weight": np.ones(4, np.float32),
        "norm.bias": np.ones(4, np.float32),
        "other.weight": np.ones(4, np.float32),
        "zeros": np.zeros(4, np.float32),
        "w": np.eye(4, dtype=np.float32),
    }
    made = lowered(nodes, constants, {"x": ["n", 4]}, outputs, sites)
    modules = tuple(
        CompressibleModule(n, "linear", (4, 4), False, 0, 1, "", "mlp", None) for n in sites
    )
    for group in find_norms(made, ModuleMap(modules, (), (), 0, 0)):
        biased = any("norm.bias" in n.input for n in nodes if n.op_type == "LayerNormalization")
        assert group.parameters == ("weight", "bias")[: 1 + biased]
    return [(g.norm, g.readers) for g in find_norms(made, ModuleMap(modules, (), (), 0, 0))]


LAYER_NORM = node("LayerNormalization", "x norm.weight norm.bias", "n")


def test_a_normalisation_that_only_linear_modules_read() -> None:
    sites = {"a": (linear("a", "n"),), "b": (linear("b", "n"),)}
    nodes = [LAYER_NORM, sites["a"][0].node, sites["b"][0].node, node("Add", "a.out b.out", "y")]
    assert norms(nodes, sites) == [("norm", ("a", "b"))]
    scaled = [node("Mul", "x norm.weight", "n"), *nodes[1:]]
    assert norms(scaled, sites) == [("norm", ("a", "b"))]


def test_a_normalisation_that_others_read_keeps_its_scale() -> None:
    sites = {"a": (linear("a", "n"),)}
    nodes = [LAYER_NORM, sites["a"][0].node, node("Add", "a.out n", "y")]
    assert norms(nodes, sites) == [], "a residual reads it"
    assert norms([LAYER_NORM, sites["a"][0].node], sites, ("n", "a.out")) == [], "it is an output"
    shared = [LAYER_NORM, sites["a"][0].node, node("Mul", "a.out norm.weight", "y")]
    assert norms(shared, sites) == [], "its scale is read twice"
    nothing = [LAYER_NORM, node("Relu", "n", "y")]
    assert norms(nothing, {}) == []


def test_a_normalisation_with_another_bias_than_its_own_keeps_its_scale() -> None:
    sites = {"a": (linear("a", "n"),)}
    used = [LAYER_NORM, sites["a"][0].node, node("Add", "a.out norm.bias", "y")]
    assert norms(used, sites) == [], "its bias is read twice"
    other = [node("LayerNormalization", "x norm.weight w", "n"), sites["a"][0].node]
    assert norms(other, sites, ("a.out",)) == []
    without = [node("LayerNormalization", "x norm.weight zeros", "n"), sites["a"][0].node]
    assert norms(without, sites, ("a.out",)) == [("norm", ("a",))]


def test_a_module_that_is_called_twice_takes_no_scale() -> None:
    sites = {"a": (linear("a", "n"), linear("a", "m"))}
    nodes = [LAYER_NORM, sites["a"][0].node, node("Relu", "a.out", "y")]
    assert norms(nodes, sites) == []


def test_the_shell_has_ends_alone_and_prefixes_hide_nothing() -> None:
    made = lowered([node("Relu", "x", "t1")], weights("fc.weight"), {"x": ["n", 4]}, ["t1"])
    assert [v.name for v in (*made.shell.graph.input, *made.shell.graph.output)] == ["x", "t1"]
    assert not made.shell.graph.node
    assert not made.shell.graph.initializer
    assert len(made.proto.graph.node) == 1
    assert made.names == {"x", "t1", "fc.weight"}
    assert made.prefix == "t_"


def test_the_hash_of_operators_is_of_the_graph_and_not_of_weights() -> None:
    def hash_of(
        kind: str = "Gelu", axis: int = -1, heads: int = 4, scale: float = 1.0, prefix: str = ""
    ) -> str:
        made = [
            node("MatMul", "x w", f"{prefix}p"),
            node(kind, f"{prefix}p", f"{prefix}a"),
            node("Reshape", f"{prefix}a shape", f"{prefix}h"),
            node("Softmax", f"{prefix}h", f"{prefix}y", axis=axis),
        ]
        values = {"w": np.full((4, 4), scale, np.float32), "shape": np.array([0, heads, -1])}
        return lowered(made, values, {"x": ["n", 4]}, [f"{prefix}y"]).operators

    assert hash_of() == hash_of(scale=2.0) == hash_of(prefix="other")
    others = [hash_of(kind="Relu"), hash_of(axis=1), hash_of(heads=2)]
    assert len({hash_of(), *others}) == 4
