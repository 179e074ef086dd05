"""Choose kernels, name what a kernel's time depends on, and follow what flows between modules."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hand_made import lowered
from onnx import NodeProto, helper

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.library import Variant
from autocompress.export.build import Builder
from autocompress.export.lowering.lower import LoweredModel, Site
from autocompress.integer_form import IntegerForm
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.targets.kernels import FOLDED


def module(name: str, kind: str, *shape: int, positions: int = 4) -> CompressibleModule:
    return CompressibleModule(name, kind, shape, True, 0, positions, "", "mlp", None)


A = module("a", "linear", 16, 8, positions=12)
CONV = module("conv", "conv", 8, 3, 3, 3)
TABLE = module("table", "embedding", 100, 32, positions=6)


def node(kind: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def site(owner: str, kind: str, made: NodeProto, output: str, bias: str | None, *tail: str) -> Site:
    return Site(owner, owner, kind, made, made.input[0], output, bias, (), tail)


def model() -> LoweredModel:
    """The input, and a table of it, go through a convolution.

    A linear module is called twice in a row.
    """
    conv = node("Conv", "mixed k", "c", strides=[2, 1], group=1)
    nodes = [
        node("Gather", "x t", "rows"),
        node("Add", "x rows", "mixed"),
        conv,
        node("BatchNormalization", "c s b m v", "n"),
        node("Relu", "n", "r"),
        node("Flatten", "r", "f"),
        node("MatMul", "f w", "h"),
        node("MatMul", "h w", "y"),
    ]
    sites = {
        "table": (site("table", "embedding", nodes[0], "rows", None),),
        "conv": (site("conv", "conv", conv, "r", "k.bias", "n", "r"),),
        "a": tuple(site("a", "linear", n, n.output[0], None) for n in nodes[-2:]),
    }
    return lowered(nodes, {"w": np.eye(4, dtype=np.float32)}, {"x": ["n", 4]}, ["y"], sites)


class Kernels:
    """Kernels that answer by what they are asked."""

    def __init__(self, level: int = 4, packed: bool = True) -> None:
        self.level, self.packed, self.asked = level, packed, []

    def matmul_level(self, *given: int) -> int:
        self.asked.append(given)
        return self.level

    def matmul_rounds_inputs(self, *given: int) -> bool:
        return given[-1] == 4

    def gather_stays_packed(self, *given: int) -> bool:
        self.asked.append(given)
        return self.packed

    def integer_form(self, shape: tuple[int, int, int] | None) -> IntegerForm:
        return IntegerForm.SIGNED if shape is None else IntegerForm.REDUCED


def builder(kernels: Kernels | None = None, **more: object) -> Builder:
    groups = (
        ChannelGroup("a", "neurons", 16, 1, ()),
        ChannelGroup("conv", "filters", 8, 1, ()),
        ChannelGroup("q", "heads", 8, 2, ()),
    )
    modules = ModuleMap((TABLE, CONV, A), groups, (), 0, 0)
    return Builder(
        model(), modules, SimpleNamespace(model=None), {}, b"", kernels or Kernels(), **more
    )


def test_what_flows_from_module_to_module_through_other_operators() -> None:
    assert set(builder().edges) == {
        ("", "table"),
        ("", "conv"),
        ("table", "conv"),
        ("conv", "a"),
        ("a", "a"),
    }


def test_a_signature_is_all_that_a_kernels_time_depends_on() -> None:
    given = builder()
    assert given.signature(TABLE) == "embedding 100x32"
    assert given.signature(A) == "linear 16x8 2 calls"
    assert given.signature(CONV) == (
        "conv 8x3x3x3 group 1 strides 2x1 BatchNormalization Relu bias"
    )


def test_groups_keep_multiples_of_what_their_kernel_likes() -> None:
    given = builder()
    given._sizes[Candidate()] = 5
    found = given.with_multiples({"linear": 8, "conv": 4})
    assert [g.multiple for g in found.module_map.groups] == [8, 4, 1]
    assert found.multiples == {"linear": 8, "conv": 4}
    assert found._sizes == {}
    assert [g.multiple for g in given.module_map.groups] == [1, 1, 1]


GROUPED = ModuleConfig(4, group_size=32)


@pytest.mark.parametrize(
    ("module", "config", "level", "expected"),
    [
        (A, GROUPED, 4, 4),
        (A, GROUPED, 0, 0),
        (A, GROUPED, FOLDED, None),
        (A, ModuleConfig(4), 4, None),
        (A, ModuleConfig(3, group_size=32), 4, None),
        (A, ModuleConfig(4, 8, group_size=32), 4, None),
        (A, ModuleConfig(4, group_size=32, sparsity=0.5), 4, None),
        (CONV, GROUPED, 4, None),
    ],
)
def test_weight_only_kernels_are_for_float_inputs_and_groups(
    module: CompressibleModule, config: ModuleConfig, level: int, expected: int | None
) -> None:
    kernels = Kernels(level)
    assert builder(kernels).weight_only_level(module, config) == expected
    if expected is not None:
        assert kernels.asked == [(6, 8, 16, 4, 32)], "rows of one of two calls, columns, outputs"


def test_only_kernels_that_round_inputs_say_so() -> None:
    assert builder(Kernels(4)).rounds_blocks(A, GROUPED)
    assert not builder(Kernels(1)).rounds_blocks(A, GROUPED)
    assert not builder(Kernels(4)).rounds_blocks(A, ModuleConfig())


@pytest.mark.parametrize(
    ("module", "config", "packed", "block"),
    [
        (TABLE, ModuleConfig(4), True, 32),
        (TABLE, ModuleConfig(4, group_size=16), True, 16),
        (TABLE, ModuleConfig(4), False, None),
        (TABLE, ModuleConfig(3), True, None),
        (TABLE, ModuleConfig(4, rank_ratio=0.5), True, None),
        (TABLE, ModuleConfig(4, sparsity=0.5), True, None),
        (TABLE, ModuleConfig(4, group_size=-1), True, None),
        (A, ModuleConfig(4), True, None),
    ],
)
def test_whole_tables_stay_packed_where_that_is_as_fast(
    module: CompressibleModule, config: ModuleConfig, packed: bool, block: int | None
) -> None:
    kernels = Kernels(packed=packed)
    assert builder(kernels).table_block(module, config) == block
    if block is not None:
        assert kernels.asked == [(6, 100, 32, 4, block)]


def test_forms_are_those_of_a_table_else_the_kernels() -> None:
    assert builder().integer_form(A) is IntegerForm.REDUCED
    assert builder().integer_form(CONV) is IntegerForm.SIGNED
    given = builder(forms={"a": IntegerForm.UNSIGNED})
    assert given.integer_form(A) is IntegerForm.UNSIGNED


def test_trained_integers_that_need_more_bits_keep_them() -> None:
    class Stored:
        def __init__(self, largest: int) -> None:
            self.values = np.array([largest, -1], np.int8)

        def int8(self):
            import torch

            return torch.from_numpy(self.values)

    candidate = Candidate.of({"a": ModuleConfig(8, 8), "conv": ModuleConfig(8)})
    for largest, form in ((63, IntegerForm.REDUCED), (64, IntegerForm.UNSIGNED)):
        variants = {"a": Variant((Stored(largest),), None)}
        assert builder()._forms(candidate, variants) == {"a": form}, "the convolution is in float"
    assert builder()._forms(candidate, {}) == {"a": IntegerForm.REDUCED}


def test_the_size_of_a_file_is_computed_once_and_not_by_its_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Candidate] = []

    def blank(self: Builder, candidate: Candidate, noise: bool = True):
        made.append(candidate)
        assert not noise
        return SimpleNamespace(ByteSize=lambda: 77), {}

    monkeypatch.setattr(Builder, "blank", blank)
    given = builder()
    modules = {"a": ModuleConfig(4)}
    long = Candidate.of(modules, SimpleNamespace(steps=100))
    assert [given.size_bytes(c) for c in (Candidate.of(modules), long, long)] == [77] * 3
    assert made == [Candidate.of(modules)]
