"""See every tensor that is rounded, whatever the batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_made import lowered
from onnx import NodeProto, helper

from autocompress.compress.quantize.activation import ActivationRange
from autocompress.errors import NotComputableError
from autocompress.export.lowering import calibrate as calibrate_module
from autocompress.export.lowering.calibrate import calibrate
from autocompress.export.lowering.lower import LoweredModel, Site

EYE = np.eye(4, dtype=np.float32)


def site(kind: str, node: NodeProto, output: str) -> Site:
    return Site(output, output, kind, node, node.input[0], output, None)


def model(batch: int | str = "n") -> LoweredModel:
    """y = 3 relu(x): a linear module reads x, a convolution h (it makes y), a table i."""
    nodes = [
        helper.make_node("MatMul", ["x", "eye"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Mul", ["r", "three"], ["y"]),
    ]
    sites = {
        "fc": (site("linear", nodes[0], "h"),),
        "conv": (site("conv", nodes[1], "y"),),
        "table": (site("embedding", nodes[2], "never"),),
    }
    weights = {"eye": EYE, "three": np.float32(3)}
    return lowered(nodes, weights, {"x": [batch, 4]}, ["y"], sites)


def spans(found: dict[str, ActivationRange]) -> dict[str, tuple[float, float]]:
    return {name: (r.low, r.high) for name, r in found.items()}


def batch(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_ranges_span_what_all_batches_show() -> None:
    batches = [batch([1, 2, 3, -4]), batch([0, 5, 0, 0], [0, 0, -7, 0])]
    found = calibrate(model(), batches, 1, "min_max")
    assert spans(found) == {"x": (-7, 5), "h": (-7, 5), "y": (0, 15)}
    assert found["y"].affine(8) == (pytest.approx(15 / 255), 0)


def test_outputs_of_linear_modules_are_seen_for_kernels_that_round_them() -> None:
    other = model()
    sites = {**other.sites, "fc": (site("linear", other.sites["fc"][0].node, "r"),)}
    batches = [batch([1, 2, 3, -4])]
    found = calibrate(replace(other, sites=sites), batches, 1, "min_max", linear_outputs=True)
    assert spans(found) == {"x": (-4, 3), "r": (0, 3), "h": (-4, 3), "y": (0, 9)}


def test_tensors_that_are_fetched_one_by_one_give_the_same_ranges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(size, 4, generator=generator) for size in (3, 2, 5)]
    together = calibrate(model(), batches, 1, "squared_error")
    runs = []
    inner = calibrate_module._see
    monkeypatch.setattr(
        calibrate_module, "_see", lambda o, values, n: (runs.append([*values]), inner(o, values, n))
    )
    monkeypatch.setattr(calibrate_module, "MOST_BYTES", 60)
    assert calibrate(model(), batches, 1, "squared_error") == together
    assert runs == 3 * [["x"], ["h"], ["y"]]


def test_a_graph_without_rounded_tensors_needs_no_data() -> None:
    assert calibrate(replace(model(), sites={}), [], 1, "min_max") == {}


def test_batches_are_cut_to_the_size_of_the_file_and_smaller_ones_left_out() -> None:
    fixed = replace(model(2), dynamic_batch=False)
    batches = [batch([9, 9, 9, 9]), batch([1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 8, 0])]
    assert spans(calibrate(fixed, batches, 2, "min_max")) == {
        "x": (0, 2),
        "h": (0, 2),
        "y": (0, 6),
    }


def test_numbers_beside_the_batch_are_not_cut() -> None:
    nodes = [helper.make_node("Mul", ["x", "s"], ["y"])]
    sites = {"fc": (site("linear", nodes[0], "y"),)}
    scaled = lowered(nodes, {}, {"s": [], "x": [2, 4]}, ["y"], sites)
    batches = [(torch.tensor(3.0), batch([1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 8, 0]))]
    found = calibrate(replace(scaled, dynamic_batch=False), batches, 2, "min_max")
    assert spans(found) == {"x": (0, 2)}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_name_their_tensor(value: float) -> None:
    with pytest.raises(NotComputableError) as caught:
        calibrate(model(), [batch([1, 2, value, 0])], 1, "min_max")
    assert str(caught.value).startswith("calibration: tensor x: ")
    assert str(caught.value).endswith("; check the calibration data")


@pytest.mark.parametrize("value", [-np.inf, np.nan, np.finfo(np.float32).min])
def test_a_tensor_that_no_module_needs_may_have_no_range(value: float) -> None:
    batches = [batch([1, 2, 3, -4]), batch([5, 0, 0, 0])]
    nodes = [
        helper.make_node("MatMul", ["x", "eye"], ["h"]),
        helper.make_node("Add", ["h", "mask"], ["y"]),
    ]
    weights = {"eye": EYE, "mask": np.array([0, value, 0, 0], np.float32)}
    sites = {"fc": (site("linear", nodes[0], "h"),)}
    masked = lowered(nodes, weights, {"x": ["n", 4]}, ["y"], sites)
    found = calibrate(masked, batches, 1, "squared_error", True, ("h", "y"))
    assert spans(found) == {"x": (-4, 5), "h": (-4, 5)}
    needed = replace(masked, sites={"fc": (site("linear", nodes[0], "y"),)})
    with pytest.raises(NotComputableError, match="tensor y: activation holds"):
        calibrate(needed, batches, 1, "squared_error", True, ("y",))
