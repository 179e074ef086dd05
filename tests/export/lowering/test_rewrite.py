"""Build one file for any mix: it runs, agrees with the simulation and has the predicted size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fixture import Fixture, relative_difference
from onnx import TensorProto

from autocompress import Candidate
from autocompress.errors import ExportError
from autocompress.export.float_graph.float_graph import export_float
from autocompress.targets.device.sessions import open_session
from autocompress.task.task import Task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["cnn", "transformer"])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(request.getfixturevalue(f"{request.param}_task"))


def test_identity_is_the_float_model(fixture: Fixture) -> None:
    np.testing.assert_allclose(
        fixture.run(fixture.build(Candidate())), fixture.simulate(Candidate()), atol=1e-5
    )
    baseline = open_session(fixture.builder.baseline).run(
        None, fixture.builder.lowered.feed(fixture.inputs)
    )[0]
    np.testing.assert_allclose(baseline, fixture.simulate(Candidate()), atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_random_mixtures_run_and_agree(fixture: Fixture, seed: int) -> None:
    candidate = fixture.random(seed)
    proto = fixture.build(candidate)
    onnx.checker.check_model(proto)
    expected = fixture.simulate(candidate)
    # A difference of 1e-7 in one module may move a value of the next one's input across a tie.
    assert relative_difference(fixture.run(proto), expected) < 0.01
    assert proto.ByteSize() == fixture.builder.size_bytes(candidate)


@pytest.mark.parametrize(
    "axes",
    [
        {"weight_bits": 4},
        {"weight_bits": 8},
        {"weight_bits": 16},
        {"rank_ratio": 0.25},
        {"pruning_ratio": 0.5},
    ],
)
def test_float_kernels_agree_exactly_and_size_falls(
    fixture: Fixture, axes: dict[str, float]
) -> None:
    candidate = fixture.uniform(**axes)
    proto = fixture.build(candidate)
    np.testing.assert_allclose(fixture.run(proto), fixture.simulate(candidate), atol=1e-4)
    assert proto.ByteSize() < fixture.builder.size_bytes(Candidate())


def test_weights_are_stored_at_their_bits_without_float_copies(fixture: Fixture) -> None:
    for bits, dtype in ((4, TensorProto.INT4), (8, TensorProto.INT8), (16, TensorProto.FLOAT16)):
        candidate = fixture.uniform(weight_bits=bits)
        proto = fixture.build(candidate)
        stored = sum(int(np.prod(t.dims)) for t in proto.graph.initializer if t.data_type == dtype)
        assert stored == sum(int(np.prod(m.weight_shape)) for m in fixture.builder.module_map)
        largest_float = max(
            int(np.prod(t.dims))
            for t in proto.graph.initializer
            if t.data_type == TensorProto.FLOAT
        )
        assert (
            largest_float
            < max(int(np.prod(m.weight_shape)) for m in fixture.builder.module_map) / 4
        )


def test_tensors_shrink_when_pruned(fixture: Fixture) -> None:
    dense, pruned = fixture.build(Candidate()), fixture.build(fixture.uniform(pruning_ratio=0.5))

    def weights(proto: onnx.ModelProto) -> int:
        return sum(
            int(np.prod(t.dims))
            for t in proto.graph.initializer
            if t.data_type == TensorProto.FLOAT
        )

    masks = fixture.builder.pruner.masks(fixture.uniform(pruning_ratio=0.5))
    expected = 0
    for module in fixture.builder.module_map:
        shape = list(module.weight_shape)
        removed = int(np.prod(shape))
        for i, side in enumerate(("out", "in")):
            mask = masks.of(module.name, side)
            if mask is not None:
                shape[i] = int(mask.sum())
                if side == "out" and module.has_bias:
                    expected += len(mask) - int(mask.sum())
        expected += removed - int(np.prod(shape))
    norms = sum(
        4 * int((~mask).sum()) for (_, side), mask in masks.kept.items() if side == "channel"
    )
    biases = sum(  # a convolution without a bias is exported with zeros, which shrink as well
        int((~masks.of(m.name, "out")).sum())
        for m in fixture.builder.module_map
        if m.kind == "conv" and not m.has_bias and masks.of(m.name, "out") is not None
    )
    assert weights(dense) - weights(pruned) == expected + norms + biases


def test_the_runtime_fuses_every_integer_module(fixture: Fixture, tmp_path: Path) -> None:
    candidate = fixture.uniform(weight_bits=4, activation_bits=8)
    open_session(
        fixture.build(candidate).SerializeToString(), optimized=str(tmp_path / "optimized.onnx")
    )
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    linear = sum(m.kind == "linear" for m in fixture.builder.module_map)
    conv = sum(m.kind == "conv" for m in fixture.builder.module_map)
    fused = operators.count("DynamicQuantizeMatMul") + operators.count("MatMulIntegerToFloat")
    assert fused == linear
    assert operators.count("QLinearConv") == conv
    assert not {"Conv", "Gemm", "MatMulInteger"} & set(operators)


class Sequence(torch.nn.Module):
    """One-dimensional convolutions over an embedding whose weight the classifier shares."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(12, 16)
        self.conv = torch.nn.Sequential(
            torch.nn.Conv1d(16, 24, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv1d(24, 16, 3, padding=1),
        )
        self.out = torch.nn.Linear(16, 12)
        self.out.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.conv(self.embedding(ids).transpose(1, 2)).mean(2))


def test_conv1d_and_tied_weights() -> None:
    torch.manual_seed(0)
    data = [(torch.randint(0, 12, (8, 10)), torch.randint(0, 12, (8,)))] * 2
    fixture = Fixture(Task("sequence", Sequence().eval(), data[0][0][:1], data, lambda o, t: 0.0))
    assert len(fixture.builder.lowered.sites["embedding"]) == 2
    for candidate in (
        fixture.uniform(weight_bits=4, pruning_ratio=0.5),
        fixture.uniform(weight_bits=8),
    ):
        proto = fixture.build(candidate)
        np.testing.assert_allclose(fixture.run(proto), fixture.simulate(candidate), atol=1e-4)
        tables = [t for t in proto.graph.initializer if sorted(t.dims) == [12, 16]]
        assert len(tables) <= 2, "the shared table is stored once per orientation at most"


def test_a_fixed_batch_size_is_kept_where_the_model_needs_one() -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.reshape(2, 4)).reshape(2, 2, 2).sum(1)

    proto, dynamic, fixed, *_ = export_float(Fixed().eval(), torch.rand(2, 4))
    assert not dynamic
    assert fixed == ("x: dimension 0 (batch) is fixed: the traced program needs exactly 2",)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_a_model_that_cannot_be_exported_is_said_in_one_line() -> None:
    class Branches(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(ExportError, match=r"torch\.onnx\.export fails on the model") as caught:
        export_float(Branches().eval(), torch.rand(2, 4))
    assert "\n" not in str(caught.value)


def test_a_group_that_the_graph_cannot_lose_is_not_pruned() -> None:
    class HardWired(torch.nn.Module):
        """Scale hidden channels by a constant of full width in the exported graph."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)
            self.free, self.head = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scaled = torch.relu(self.up(x)) * torch.arange(1.0, 17.0)
            return self.head(torch.relu(self.free(self.down(scaled))))

    torch.manual_seed(0)
    data = [(torch.rand(8, 8), torch.randint(0, 4, (8,)))]
    fixture = Fixture(Task("hard", HardWired().eval(), torch.rand(1, 8), data, lambda o, t: 0.0))
    reasons = {g.name: g.reason for g in fixture.builder.module_map.groups}
    assert reasons["up"] is not None
    assert reasons["free"] is None
    candidate = fixture.uniform(pruning_ratio=0.5)
    np.testing.assert_allclose(
        fixture.run(fixture.build(candidate)), fixture.simulate(candidate), atol=1e-4
    )


def test_inputs_are_matched_by_name_and_outputs_by_value() -> None:
    class Pair(torch.nn.Module):
        """Take inputs in another order than the batch gives them, and return logits second."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = self.linear(left)
            return {"hidden": hidden, "logits": hidden - 3 * right}

    torch.manual_seed(0)
    inputs = {"right": torch.rand(8, 4), "left": torch.rand(8, 4)}
    task = Task(
        "pair",
        Pair().eval(),
        {k: v[:1] for k, v in inputs.items()},
        [(inputs, torch.zeros(8, dtype=torch.int64))],
        lambda o, t: 0.0,
    )
    fixture = Fixture(task)
    for candidate in (Candidate(), fixture.uniform(weight_bits=4)):
        np.testing.assert_allclose(
            fixture.run(fixture.build(candidate)), fixture.simulate(candidate), atol=1e-5
        )


def test_a_module_that_is_called_twice_is_stored_once() -> None:
    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(32, 32)
            self.head = torch.nn.Linear(32, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.layer(torch.relu(self.layer(x)))))

    torch.manual_seed(0)
    data = [(torch.rand(8, 32), torch.randint(0, 2, (8,)))]
    fixture = Fixture(Task("shared", Shared().eval(), torch.rand(1, 32), data, lambda o, t: 0.0))
    assert len(fixture.builder.lowered.sites["layer"]) == 2
    static = {"weight_bits": 8, "activation_bits": 8, "activation_mode": "static"}
    assert fixture.difference(fixture.uniform(**static)) < 1e-3, "both calls take one range"
    for axes in (
        {"weight_bits": 4},
        {"weight_bits": 8, "activation_bits": 8},
        {"weight_bits": 16},
        {"rank_ratio": 0.25},
    ):
        candidate = fixture.uniform(**axes)
        proto = fixture.build(candidate)
        expected = fixture.simulate(candidate)
        np.testing.assert_allclose(fixture.run(proto), expected, atol=0.03 * np.abs(expected).max())
        bits = axes.get("weight_bits", 32)
        matrices = [t for t in proto.graph.initializer if len(t.dims) == 2]
        weights = sum(
            len(t.raw_data) for t in matrices if bits == 32 or t.data_type != TensorProto.FLOAT
        )
        one = (32 * 32 + 64) if "rank_ratio" not in axes else (8 * 64 + 1 * 34)
        assert weights * 8 <= one * bits
