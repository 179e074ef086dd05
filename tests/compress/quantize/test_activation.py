"""Activations are rounded as the runtime rounds them, and gradients reach values and steps."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from autocompress.compress.quantize.activation import (
    ActivationRange,
    RangeQuantizer,
    blockwise,
    dynamic,
)
from autocompress.compress.quantize.lsq import learned_step


def session(
    nodes: list, constants: dict[str, np.ndarray] | None = None
) -> onnxruntime.InferenceSession:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [
            helper.make_tensor(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape, v.flatten())
            for n, v in (constants or {}).items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


DYNAMIC = session(
    [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
)


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 80),
        elements=st.floats(-1000, 1000, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3),
    )
)
def test_dynamic_is_the_runtimes_bit_for_bit(x: np.ndarray) -> None:
    np.testing.assert_array_equal(
        dynamic(torch.from_numpy(x)).numpy(), DYNAMIC.run(None, {"x": x})[0]
    )


@pytest.mark.parametrize("bits", [8, 16])
def test_static_is_the_runtimes_bit_for_bit(bits: int) -> None:
    at = ActivationRange.spanning(-1.3, 2.9)
    scale, zero = at.affine(bits)
    kind = np.uint8 if bits == 8 else np.uint16
    runtime = session(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        {"s": np.array(scale, np.float32), "z": np.array(zero, kind)},
    )
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 2
    np.testing.assert_array_equal(
        RangeQuantizer(at)(x, bits).numpy(), runtime.run(None, {"x": x.numpy()})[0]
    )


def test_blocks_have_a_scale_each_and_pad_their_last() -> None:
    x = torch.tensor([[1.0, 0.5, 100.0, 50.0, 0.01]])
    found = blockwise(x, 2)
    torch.testing.assert_close(found[0, [0, 2, 4]], x[0, [0, 2, 4]])
    assert abs(float(found[0, 1]) - 0.5) < 1 / 127
    assert float(blockwise(torch.zeros(3, 5), 2).abs().max()) == 0


def test_gradients_are_those_of_learned_steps() -> None:
    """Esser et al. 2020, equation 3: round(v) - v inside, the bound outside."""
    x = torch.tensor([0.26, 0.9, 5.0, -5.0], requires_grad=True)
    step = torch.tensor(0.25, requires_grad=True)
    learned_step(x, step, torch.tensor(0.0), -7, 7).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]
    inside = (round(0.26 / 0.25) - 0.26 / 0.25) + (round(0.9 / 0.25) - 0.9 / 0.25)
    assert float(step.grad) == pytest.approx(inside + 7 - 7, abs=1e-5)


def test_training_arithmetic_equals_inference_arithmetic() -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    step, zero = torch.tensor(0.013), torch.tensor(4.0)
    inference = learned_step(x, step, zero, 0, 255)
    training = learned_step(x.clone().requires_grad_(True), step, zero, 0, 255)
    torch.testing.assert_close(training.detach(), inference, rtol=0, atol=1e-6)


def test_a_learned_range_is_exported_as_it_was_trained() -> None:
    quantizer = RangeQuantizer(ActivationRange.spanning(-1.0, 4.0))
    assert quantizer.learned() == quantizer.at
    quantizer.learn()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    x = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 2
    losses = []
    for _ in range(60):
        loss = (quantizer(x) - x).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    learned = quantizer.learned()
    assert learned.scale < quantizer.at.scale
    with torch.no_grad():
        torch.testing.assert_close(
            RangeQuantizer(learned)(x), quantizer(x), atol=learned.scale * 1.01, rtol=0
        )


def test_a_learned_range_does_not_grow_beyond_its_end() -> None:
    quantizer = RangeQuantizer(ActivationRange.spanning(0.0, 5.0), 6.0)
    quantizer.learn()
    x = torch.tensor([4.0, 5.5, 7.0])
    for factor, highest in ((0.5, 2.5), (1.1, 5.5), (1.2, 6.0), (3.0, 6.0)):
        quantizer.factor.data.fill_(factor)
        assert 255 * quantizer.learned().scale == pytest.approx(highest)
        assert float(quantizer(x).max().detach()) == pytest.approx(highest)
    wide = RangeQuantizer(ActivationRange.spanning(0.0, 7.0), 6.0)
    wide.learn()
    assert 255 * wide.learned().scale == pytest.approx(7.0), "a calibrated range stays"
