"""Every form of every kind of layer.

The file computes what the simulation computes, on the kernels that it was given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import pytest
import torch
from arithmetic import Formed
from fixture import Fixture, optimized, relative_difference
from onnx import TensorProto
from torch import nn

from autocompress import Candidate, ModuleConfig, Task
from autocompress.integer_form import IntegerForm
from autocompress.targets.device.sessions import DEFAULT
from autocompress.targets.kernel_arithmetic import products_saturate
from autocompress.targets.kernel_timing import FOLDED
from autocompress.targets.kernels import KernelChoice

pytestmark = pytest.mark.slow

BITS = (2, 3, 4, 5, 6, 7, 8)
LAYERS = {
    "linear": (nn.Linear(40, 24), (4, 7, 40)),
    "linear without bias, odd": (nn.Linear(37, 5, bias=False), (4, 37)),
    "conv": (nn.Conv2d(6, 10, 3, padding=1), (4, 6, 17, 17)),
    "pointwise": (nn.Conv2d(20, 12, 1), (4, 20, 15, 15)),
    "strided, no bias": (nn.Conv2d(5, 8, 3, stride=2, bias=False), (4, 5, 25, 25)),
    "grouped": (nn.Conv2d(8, 12, 3, groups=4, padding=1), (4, 8, 15, 15)),
    "depthwise": (nn.Conv2d(16, 16, 3, groups=16, padding=1), (4, 16, 15, 15)),
    "conv1d": (nn.Conv1d(6, 9, 3, padding=1), (8, 6, 60)),
}


class Chosen(KernelChoice):
    """Answers without a clock, so that every kernel is met on every machine."""

    def __init__(self, level: int = FOLDED, packed: bool = False) -> None:
        super().__init__()
        self.level, self.packed = level, packed

    def matmul_level(self, rows: int, columns: int, outputs: int, bits: int, block: int) -> int:
        return self.level

    def gather_stays_packed(
        self, lookups: int, entries: int, width: int, bits: int, block: int
    ) -> bool:
        return self.packed

    def integer_form(self, shape: tuple[int, int, int] | None) -> IntegerForm:
        return IntegerForm.REDUCED


def fixture_of(
    model: nn.Module, inputs: torch.Tensor, kernels: KernelChoice | None = None
) -> Fixture:
    data = [(inputs, torch.zeros(len(inputs), dtype=torch.int64))]
    return Fixture(
        Task("one", model.eval(), inputs[:1], data, lambda o, t: 0.0), kernels or Chosen()
    )


@pytest.fixture(scope="module", params=list(LAYERS))
def layer(request: pytest.FixtureRequest) -> Fixture:
    module, shape = LAYERS[request.param]
    torch.manual_seed(0)
    fixture = fixture_of(nn.Sequential(module), torch.randn(shape))
    fixture.turn = list(LAYERS).index(request.param)
    return fixture


def every_width_group_and_zero_point(
    layer: Fixture, activation_bits: int, mode: str, widths: Sequence[int] = BITS
) -> Iterator[Candidate]:
    """Yield half of all triples of them, with all pairs.

    Every second layer, and every second mode of a layer, has the other half.
    """
    turn = layer.turn + (activation_bits == 16 or mode == "dynamic")
    for (i, bits), (j, group_size) in itertools.product(enumerate(widths), enumerate((-1, 0, 16))):
        yield layer.uniform(
            weight_bits=bits,
            activation_bits=activation_bits,
            group_size=group_size,
            symmetric=(i + j + turn) % 2 == 0,
            activation_mode=mode,
            algorithm="nearest",
        )


@pytest.mark.parametrize(
    ("activation_bits", "mode"), [(32, "auto"), (16, "auto"), (8, "static"), (8, "dynamic")]
)
def test_every_width_group_and_zero_point_computes_what_was_simulated(
    layer: Fixture, activation_bits: int, mode: str
) -> None:
    for candidate in every_width_group_and_zero_point(layer, activation_bits, mode):
        proto = layer.build(candidate)
        assert proto.ByteSize() == layer.builder.size_bytes(candidate), candidate
        assert relative_difference(layer.run(proto), layer.simulate(candidate)) <= 1e-3, candidate


@pytest.mark.parametrize("form", list(IntegerForm))
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_no_form_saturates_on_the_processors_that_it_is_for(
    layer: Fixture, form: IntegerForm, mode: str
) -> None:
    """On this processor and on an emulated one of the other kind.

    Signed weights are for processors with exact products alone.
    """
    layer = layer.formed(form)
    differences = []
    # The largest integers saturate first; how the others are packed is another test's.
    for candidate in every_width_group_and_zero_point(layer, 8, mode, widths=(3, 7, 8)):
        proto, simulated = layer.build(candidate), layer.simulate(candidate)
        assert proto.ByteSize() == layer.builder.size_bytes(candidate), candidate
        assert relative_difference(layer.run_as(proto, saturates=False), simulated) <= 1e-3, (
            candidate
        )
        if form.portable or not products_saturate(DEFAULT):
            assert relative_difference(layer.run(proto), simulated) <= 1e-3, candidate
        differences.append(relative_difference(layer.run_as(proto, saturates=True), simulated))
    if form.portable:
        assert max(differences) <= 1e-3
    else:
        assert max(differences) > 0.01, "the emulated processor shows what goes wrong"


@pytest.mark.parametrize("bits", [16, 32])
def test_float_widths(layer: Fixture, bits: int) -> None:
    for activation_bits in (16, 32):
        assert (
            layer.difference(layer.uniform(weight_bits=bits, activation_bits=activation_bits))
            <= 1e-5
        )


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_no_float_kernel_is_left_for_8_bit_activations(
    layer: Fixture, bits: int, mode: str
) -> None:
    graph = optimized(
        layer.build(layer.uniform(weight_bits=bits, activation_bits=8, activation_mode=mode))
    )
    operators = [node.op_type for node in graph.node]
    assert not {"MatMul", "Gemm", "Conv", "FusedConv", "FusedMatMul"} & set(operators), operators
    largest = max(
        (int(np.prod(t.dims)) for t in graph.initializer if t.data_type == TensorProto.FLOAT),
        default=0,
    )
    assert largest <= 24, "no float copy of a weight"


def test_weights_take_just_their_bits() -> None:
    torch.manual_seed(0)
    fixture = fixture_of(nn.Sequential(nn.Linear(512, 256, bias=False)), torch.randn(4, 512))
    empty = fixture.builder.size_bytes(fixture.uniform(weight_bits=8)) - 512 * 256
    for bits in BITS:
        size = fixture.builder.size_bytes(fixture.uniform(weight_bits=bits))
        assert 0 <= size - 512 * 256 * bits / 8 - empty <= 2048, "the function that unpacks"
        grouped = fixture.builder.size_bytes(fixture.uniform(weight_bits=bits, group_size=32))
        assert grouped - empty - 512 * 256 * (bits + 0.5) / 8 <= 2048, "a float16 per group"


def weight_only(level: int) -> Fixture:
    torch.manual_seed(0)
    return fixture_of(
        nn.Sequential(nn.Linear(100, 48), nn.ReLU(), nn.Linear(48, 8)),
        torch.randn(6, 100),
        Chosen(level),
    )


@pytest.mark.parametrize("level", [0, 4])
def test_weight_only_kernels_compute_what_was_simulated(level: int) -> None:
    fixture = weight_only(level)
    for bits, group_size, symmetric, rank in itertools.product(
        (2, 4, 8), (16, 32, 64, 128), (True, False), (1.0, 0.5)
    ):
        candidate = fixture.uniform(
            weight_bits=bits, group_size=group_size, symmetric=symmetric, rank_ratio=rank
        )
        proto = fixture.build(candidate)
        nodes = [node for node in proto.graph.node if node.op_type == "MatMulNBits"]
        assert len(nodes) == (2 if rank == 1 else 4)
        assert proto.ByteSize() == fixture.builder.size_bytes(candidate)
        assert relative_difference(fixture.run(proto), fixture.simulate(candidate)) <= 1e-3, (
            candidate
        )
        assert [node.op_type for node in optimized(proto).node].count("MatMulNBits") == len(nodes)


def test_kernels_that_are_not_faster_are_not_used() -> None:
    fixture = weight_only(FOLDED)
    for bits in (2, 4, 8):
        assert "MatMulNBits" not in {
            n.op_type
            for n in fixture.build(fixture.uniform(weight_bits=bits, group_size=32)).graph.node
        }
    fixture = weight_only(4)
    for axes in (
        {"weight_bits": 3, "group_size": 32},
        {"weight_bits": 4},
        {"weight_bits": 4, "group_size": 32, "activation_bits": 8},
    ):
        assert "MatMulNBits" not in {
            n.op_type for n in fixture.build(fixture.uniform(**axes)).graph.node
        }


def test_weights_that_are_exact_everywhere_have_seven_bits() -> None:
    torch.manual_seed(0)
    fixture = fixture_of(
        nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 4)),
        torch.randn(6, 64),
        Formed(IntegerForm.REDUCED),
    )
    candidate = Candidate.of({"0": ModuleConfig(8, 8), "1": ModuleConfig(8)})
    variant = fixture.stitcher.variant("0", "0", candidate).factors[0]
    assert int(variant.int8().abs().max()) <= 63, "255 * 63 * 2 fits 16 bits"
    assert fixture.stitcher.variant("1", "1", candidate).factors[0].weight_bits == 8, (
        "float kernels do not saturate"
    )
    assert fixture.build(candidate).ByteSize() == fixture.builder.size_bytes(candidate)
    assert fixture.difference(candidate) <= 1e-3


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(50, 48), nn.Linear(48, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(ids).mean(1))


@pytest.mark.parametrize("packed", [True, False])
def test_embeddings_packed_and_folded(packed: bool) -> None:
    torch.manual_seed(0)
    fixture = fixture_of(Lookup(), torch.randint(0, 50, (4, 9)), Chosen(packed=packed))
    for bits, group_size, symmetric in itertools.product(
        (*BITS, 16), (-1, 0, 16, 32), (True, False)
    ):
        candidate = Candidate.of(
            {"table": ModuleConfig(bits, group_size=group_size, symmetric=symmetric)}
        )
        proto = fixture.build(candidate)
        stays = packed and bits in (2, 4, 8) and group_size >= 0
        assert ("GatherBlockQuantized" in {n.op_type for n in proto.graph.node}) == stays
        assert proto.ByteSize() == fixture.builder.size_bytes(candidate)
        assert relative_difference(fixture.run(proto), fixture.simulate(candidate)) <= 1e-5, (
            candidate
        )


class Chain(nn.Module):
    """Convolutions and linear layers that read each other's 8-bit outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 8, 1),
        )
        self.linear = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.convs(x).flatten(2).transpose(1, 2)).mean(1)


def test_neighbours_do_not_convert_back_and_forth() -> None:
    torch.manual_seed(0)
    model = Chain()
    with torch.no_grad():
        model.convs[1].weight.uniform_(-1, 1)  # negative gains turn weights round
        model.convs[1].running_mean.normal_()
    fixture = fixture_of(model, torch.randn(4, 3, 8, 8))
    for axes in (
        {},
        {"symmetric": False, "weight_bits": 5},
        {"group_size": 16, "weight_bits": 3},
        {"group_size": -1, "symmetric": False},
    ):
        candidate = fixture.uniform(
            **{"weight_bits": 4, "activation_bits": 8, "activation_mode": "static", **axes}
        )
        proto = fixture.build(candidate)
        assert relative_difference(fixture.run(proto), fixture.simulate(candidate)) <= 2e-3
        graph = optimized(proto)
        operators = [node.op_type for node in graph.node]
        assert operators.count("QLinearConv") == 3
        assert operators.count("MatMulInteger") + operators.count("MatMulIntegerToFloat") == 2
        assert not {"Conv", "FusedConv", "MatMul", "Gemm"} & set(operators)
        producer = {output: node for node in graph.node for output in node.output}
        for node in graph.node:
            if node.op_type == "QuantizeLinear":
                before = producer.get(node.input[0])
                assert before is None or before.op_type != "DequantizeLinear", (
                    "rounded again at once"
                )
        assert operators.count("DequantizeLinear") <= 1, "only behind the last convolution"


def test_mobile_blocks_stay_on_integers() -> None:
    torch.manual_seed(0)
    layers = []
    for channels, groups in ((8, 1), (8, 8), (8, 1)):
        layers += [
            nn.Conv2d(8, channels, 3, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
        ]
    fixture = fixture_of(nn.Sequential(*layers), torch.randn(4, 8, 16, 16) * 8)
    candidate = fixture.uniform(weight_bits=4, activation_bits=8)
    assert fixture.difference(candidate) <= 1e-3
    operators = [node.op_type for node in optimized(fixture.build(candidate)).node]
    operators = sorted(op for op in operators if op != "Transpose")  # of the layout
    assert operators == [
        "DequantizeLinear",
        "QLinearConv",
        "QLinearConv",
        "QLinearConv",
        "QuantizeLinear",
    ]
    for axes in (
        {"weight_bits": 4},
        {"weight_bits": 4, "activation_bits": 8, "activation_mode": "dynamic"},
    ):
        assert fixture.difference(fixture.uniform(**axes)) <= 1e-3


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 24)
        self.depthwise = nn.Conv1d(24, 24, 3, padding=1, groups=24)
        self.pointwise = nn.Conv1d(24, 32, 1)
        self.lstm = nn.LSTM(32, 20, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(40, 16, num_layers=2)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.pointwise(torch.relu(self.depthwise(self.table(ids).transpose(1, 2)))))
        x, _ = self.lstm(x.transpose(1, 2))
        x, (hidden) = self.gru(x.transpose(0, 1))
        return self.down(torch.relu(self.up(self.norm(x.mean(0) + hidden[-1]))))


@pytest.fixture(scope="module")
def everything() -> Fixture:
    torch.manual_seed(1)  # of seed 0 an 8-bit rounding lies between two integers
    return fixture_of(Everything(), torch.randint(0, 30, (6, 11)), Chosen(4))


def test_all_of_it_at_once_is_one_file(everything: Fixture) -> None:
    names = [module.name for module in everything.builder.module_map]
    assert [name for name in names if name.startswith("lstm")] == [
        "lstm.ih_l0",
        "lstm.hh_l0",
        "lstm.ih_l0_reverse",
        "lstm.hh_l0_reverse",
    ]
    configs = {
        "table": ModuleConfig(3),
        "depthwise": ModuleConfig(8, 8),
        "pointwise": ModuleConfig(5, 8, 16, activation_mode="dynamic"),
        "up": ModuleConfig(4, 32, 32, symmetric=False),
        "down": ModuleConfig(2, 8, activation_mode="static", rank_ratio=0.5),
    }
    configs |= {name: ModuleConfig(4) for name in names if name.startswith("lstm")}
    configs |= {name: ModuleConfig(6, group_size=32) for name in names if name.startswith("gru")}
    assert len(configs) == len(names)
    candidate = Candidate.of(configs)
    proto = everything.build(candidate)
    onnx.checker.check_model(proto, full_check=False)
    assert relative_difference(everything.run(proto), everything.simulate(candidate)) <= 1e-3
    assert proto.ByteSize() == pytest.approx(everything.builder.size_bytes(candidate), rel=0.01)
    assert proto.ByteSize() < everything.builder.size_bytes(Candidate())


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_recurrent_weights_are_stored_at_their_bits(everything: Fixture, bits: int) -> None:
    gates = [m for m in everything.builder.module_map if m.kind == "recurrent"]
    assert len(gates) == 8
    for group_size in (0, 16):
        candidate = Candidate.of({m.name: ModuleConfig(bits, group_size=group_size) for m in gates})
        proto = everything.build(candidate)
        assert relative_difference(everything.run(proto), everything.simulate(candidate)) <= 1e-5
        copies = [
            t.name
            for t in proto.graph.initializer
            if t.data_type == TensorProto.FLOAT and len(t.dims) == 2 and min(t.dims) > 1
        ]
        assert not [name for name in copies if "lstm" in name or "gru" in name]
        operators = [node.op_type for node in optimized(proto).node]
        assert operators.count("LSTM") + operators.count("GRU") == 3
