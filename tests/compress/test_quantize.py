from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from autocompress.compress.quantize import (
    ActivationRange,
    activation_range,
    quant_max,
    quantize_activation,
    quantize_weight,
    straight_through,
)
from autocompress.export.pack import pack_int4

weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
    elements=st.floats(-4, 4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3),
)


@given(weights, st.sampled_from([4, 8]))
def test_weights_stay_in_range_and_near(weight: np.ndarray, bits: int) -> None:
    values, scale = quantize_weight(torch.from_numpy(weight), bits)
    assert values.dtype == torch.int8
    assert int(values.abs().max()) <= quant_max(bits)
    assert bool((scale > 0).all())
    assert bool((values[torch.from_numpy(weight) == 0] == 0).all()), "symmetric keeps zero exact"
    # The search may clip, but never does worse than the unclipped range, whose error is at most half a step each.
    back = values * scale.view(-1, *[1] * (weight.ndim - 1))
    error = (back - torch.from_numpy(weight)).flatten(1).square().sum(1)
    step = torch.from_numpy(weight).flatten(1).abs().amax(1) / quant_max(bits)
    assert bool((error <= weight[0].size * (step / 2) ** 2 * 1.01 + 1e-12).all())


def test_more_bits_never_hurt() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    errors = []
    for bits in (4, 8):
        values, scale = quantize_weight(weight, bits)
        errors.append(float((values * scale[:, None] - weight).square().sum()))
    assert errors[1] < errors[0] / 50


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_weight(torch.tensor([[bad, 1.0]]), 8)


def test_zero_rows_and_single_elements() -> None:
    values, scale = quantize_weight(torch.tensor([[0.0], [2.0]]), 4)
    assert values.tolist() == [[0], [7]]
    assert float(values[1, 0] * scale[1]) == pytest.approx(2.0)
    assert float(scale[0]) == 1.0


@given(hnp.arrays(np.int8, hnp.array_shapes(max_dims=3, max_side=7), elements=st.integers(-8, 7)))
def test_onnx_reads_back_what_is_packed(values: np.ndarray) -> None:
    packed = pack_int4(values)
    assert len(packed) == (values.size + 1) // 2
    tensor = helper.make_tensor("t", TensorProto.INT4, values.shape, packed, raw=True)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), values)


def dynamic_quantize_model() -> bytes:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def runtime() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(dynamic_quantize_model(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_dynamic_activations_are_the_runtimes(runtime: onnxruntime.InferenceSession, shift: float) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1)) + shift
    expected = runtime.run(None, {"x": x.numpy()})[0]
    found = quantize_activation(x, None).numpy()
    step = (max(float(x.max()), 0) - min(float(x.min()), 0)) / 255
    assert np.abs(found - expected).max() <= step * 1.01, "at most one step, where a value lies on a tie"
    assert (np.abs(found - expected) < step * 0.01).mean() > 0.99


def test_all_zero_activations() -> None:
    assert float(quantize_activation(torch.zeros(4), None).abs().max()) == 0
    assert activation_range(torch.zeros(4)) == ActivationRange(1.0, 0)


def test_calibrated_range_clips_outliers() -> None:
    sample = torch.cat([torch.rand(10_000), torch.tensor([30.0])])
    chosen = activation_range(sample)
    full = ActivationRange(30.0 / 255, 0)
    errors = [float((quantize_activation(sample, r) - sample).square().sum()) for r in (chosen, full)]
    assert errors[0] <= errors[1]


def test_gradients_pass_straight_through() -> None:
    weight = torch.randn(3, 5, requires_grad=True)
    values, scale = quantize_weight(weight, 4)
    seen = straight_through(weight, scale, 4)
    torch.testing.assert_close(seen, values * scale[:, None])
    seen.sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones_like(weight))
