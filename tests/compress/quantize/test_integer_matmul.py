"""Integer products give what floats and the runtime's kernels give, and stand aside where they
cannot.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from fixture import Fixture, relative_difference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from autocompress.compress.quantize import integer_matmul as integer
from autocompress.compress.quantize.affine import StoredTensor
from autocompress.compress.quantize.integer_matmul import (
    MIDDLE,
    IntegerFactor,
    Rounding,
    has_integer_products,
    rounded,
)

needs_products = pytest.mark.skipif(
    not has_integer_products(), reason="this processor has no 8-bit integer products that are exact"
)


@pytest.fixture(scope="module")
def fixture(transformer_task) -> Fixture:
    return Fixture(transformer_task)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer, "WORTH", 0)


def runtime() -> onnxruntime.InferenceSession:
    """x and int8 weights -> (integers of x, their scale and zero point, sums of products)."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info(n, t, [None, None])
        for n, t in (("x", TensorProto.FLOAT), ("w", TensorProto.INT8))
    ]
    kinds = {
        "q": TensorProto.UINT8,
        "s": TensorProto.FLOAT,
        "z": TensorProto.UINT8,
        "y": TensorProto.INT32,
    }
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info(n, t, None) for n, t in kinds.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


RUNTIME = runtime()
arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
    elements=st.floats(-1000, 1000, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3),
)


@pytest.mark.slow
@given(arrays)
def test_integers_are_the_runtimes(x: np.ndarray) -> None:
    found = rounded(torch.from_numpy(x))
    q, scale, zero, _ = RUNTIME.run(None, {"x": x, "w": np.zeros((x.shape[1], 1), np.int8)})
    np.testing.assert_array_equal(found.values.numpy().astype(int) + MIDDLE, q.astype(int))
    assert (found.scale, found.zero_point) == (float(scale), int(zero))


@needs_products
@pytest.mark.parametrize("rows", [1, 2, 700])  # in one part, and in several
@pytest.mark.parametrize("columns", [2, 3, 31, 190])
@pytest.mark.parametrize("outputs", [1, 2, 17, 50])
def test_products_are_the_runtimes(rows: int, columns: int, outputs: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(0.3, 2, (rows, columns)).astype(np.float32)
    weight = generator.integers(-127, 128, (outputs, columns)).astype(np.int8)
    scale, bias = (
        generator.random(outputs).astype(np.float32),
        generator.normal(size=outputs).astype(np.float32),
    )
    factor = IntegerFactor.of(
        StoredTensor(torch.from_numpy(weight), 8, torch.from_numpy(scale)[:, None])
    )
    _, step, _, sums = RUNTIME.run(None, {"x": x, "w": np.ascontiguousarray(weight.T)})
    expected = sums.astype(np.float64) * float(step) * scale
    for given_bias, added in ((None, 0.0), (torch.from_numpy(bias), bias)):
        found = factor.product(rounded(torch.from_numpy(x)), given_bias).numpy()
        np.testing.assert_allclose(found, expected + added, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@needs_products
@pytest.mark.usefixtures("always")
def test_modules_compute_what_their_float_form_computes(fixture: Fixture) -> None:
    generator, used = torch.Generator().manual_seed(0), []
    for seed in range(12):
        fixture.stitcher.apply(fixture.random(seed))
        for name, module in fixture.stitcher.simulated.items():
            if module.integers is None:
                continue
            x = torch.randn(4, 6, module.in_features, generator=generator)
            with torch.no_grad():
                found = module(x)
            with torch.enable_grad():
                expected = module(x).detach()
            # Between factors a sum that is another in its last bit may round to the next integer.
            limit = 1e-5 if len(module.stored) == 1 else 0.01
            assert relative_difference(found.numpy(), expected.numpy()) < limit, (
                seed,
                name,
                module.config,
            )
            used.append(module.config)
    for form in (
        lambda c: c.symmetric,
        lambda c: not c.symmetric,
        lambda c: c.group_size > 0,
        lambda c: c.group_size < 0,
        lambda c: c.rank_ratio < 1,
        lambda c: c.sparsity > 0,
        lambda c: c.weight_bits == 8,
    ):
        assert any(form(config) for config in used)


@pytest.mark.slow
@needs_products
@pytest.mark.usefixtures("always")
def test_the_whole_model_agrees_with_its_file(fixture: Fixture) -> None:
    for axes in ({}, {"pruning_ratio": 0.5}, {"rank_ratio": 0.5}, {"symmetric": False}):
        assert (
            fixture.difference(fixture.uniform(weight_bits=4, activation_bits=8, **axes)) < 0.03
        ), axes


@pytest.mark.slow
@needs_products
@pytest.mark.usefixtures("always")
def test_what_is_no_number_stays_none(fixture: Fixture) -> None:
    fixture.stitcher.apply(fixture.uniform(weight_bits=4, activation_bits=8))
    module = next(m for m in fixture.stitcher.simulated.values() if m.integers is not None)
    with torch.no_grad():
        for bad in (float("nan"), float("inf")):
            x = torch.randn(3, module.in_features)
            x[1, 0] = bad
            assert not bool(torch.isfinite(module(x)).all())
        assert module(torch.zeros(0, module.in_features)).shape == (0, module.out_features)


def test_a_tensor_is_rounded_once_and_again_when_it_has_changed() -> None:
    rounding, x = Rounding(), torch.randn(3, 4)
    first = rounding(x)
    assert rounding(x) is first
    x.mul_(2)
    second = rounding(x)
    assert second is not first
    assert second.scale == pytest.approx(2 * first.scale)
    assert rounding(x.clone()) is not second, "another tensor, if of the same values"
    with torch.inference_mode():
        y = torch.randn(3, 4)
        assert rounding(y) is not rounding(y), "it might have been written to"


@pytest.mark.slow
@needs_products
@pytest.mark.usefixtures("always")
def test_training_is_on_floats(fixture: Fixture) -> None:
    candidate = fixture.uniform(weight_bits=4, activation_bits=8)
    model = fixture.stitcher.apply(candidate)
    fixture.stitcher.start_training(candidate)
    module = next(m for m in fixture.stitcher.simulated.values() if m.integers is not None)
    x = torch.randn(5, module.in_features)
    with torch.no_grad():
        before = module(x)
        for weight in module.trained:
            weight.mul_(1.5)
        assert not torch.equal(module(x), before), (
            "the trained weights are used, not the stored ones"
        )
    assert model is fixture.stitcher.model


def test_weights_that_no_integer_kernel_takes() -> None:
    values = torch.ones(4, 8, dtype=torch.int8)
    assert IntegerFactor.of(StoredTensor(values[:, :1], 4, torch.ones(4, 1))) is None, "one column"
    assert IntegerFactor.of(StoredTensor(torch.ones(4, 8), 32)) is None, "float"
    assert IntegerFactor.of(StoredTensor(values, 4, torch.ones(4, 2), group_size=4)) is None, (
        "scales by group"
    )
    eight = StoredTensor(values, 8, torch.ones(4, 1), torch.ones(4, 1, dtype=torch.int8))
    assert IntegerFactor.of(eight) is None, "values less their zero point do not fit"
    assert IntegerFactor.of(
        StoredTensor(values, 4, torch.ones(1, 1), group_size=-1)
    ).scale.shape == (4,)
