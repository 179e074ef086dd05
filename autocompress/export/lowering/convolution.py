"""Convolutions: float with folded weights, static 8 bits between Q/DQ pairs that the runtime fuses, or dynamic 8 bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from autocompress.candidate import ModuleConfig
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.factorise.low_rank import carriers
from autocompress.compress.quantize.affine import StoredTensor, grid_of
from autocompress.compress.quantize.integer_bias import covering_scale
from autocompress.export.lowering.graph import GraphBuilder
from autocompress.export.lowering.lower import Site
from autocompress.export.lowering.pack import float_weight, int8_weight

Array = NDArray[np.generic]


def convolution(
    graph: GraphBuilder,
    site: Site,
    variant: Variant,
    config: ModuleConfig,
    out: NDArray[np.bool_] | None,
) -> None:
    """One convolution and what is folded into it; `out` is the mask of its output channels."""
    stored = variant.factors[0]
    bias = _bias(graph, site, variant, out)
    attributes = {a.name: helper.get_attribute_value(a) for a in site.node.attribute}
    if out is not None and attributes.get("group", 1) > 1:
        attributes["group"] = int(out.sum())  # depthwise: a filter per channel
    config = config.executed("conv")
    if config.activation_bits == 8 and config.static("conv"):
        _static(graph, site, stored, bias, attributes)
        return
    if config.activation_bits == 8:
        _dynamic(graph, site, stored, bias, attributes)
    else:
        value = graph.rounded(site.input, 16) if config.activation_bits == 16 else site.input
        _float(graph, site, value, variant.factors, bias, attributes)
    for output in site.tail:
        graph.copy(graph.lowered.producer[output])


def _bias(
    graph: GraphBuilder, site: Site, variant: Variant, out: NDArray[np.bool_] | None
) -> Array | None:
    if variant.bias is not None:
        return np.asarray(variant.bias.cpu().numpy())
    if site.bias is None:
        return None
    bias = graph.array(site.bias)
    return bias if out is None else bias[out]


def _float(
    graph: GraphBuilder,
    site: Site,
    value: str,
    factors: tuple[StoredTensor, ...],
    bias: Array | None,
    attributes: dict[str, Any],
) -> None:
    """One convolution per factor, the bias on the last."""
    last = len(factors) - 1
    parts = (
        [attributes]
        if last == 0
        else _factor_attributes(attributes, [factor.values.shape[2:] for factor in factors])
    )
    for i, (stored, own) in enumerate(zip(factors, parts, strict=True)):
        name = f"{site.owner}.weight/conv{i}"
        inputs = [value, float_weight(graph, name, stored)]
        if i == last and bias is not None:
            inputs.append(graph.constant(f"{graph.short(name)}B", bias.astype(np.float32)))
        output = site.node.output[0] if i == last else graph.short(f"{site.node.output[0]}/{i}")
        value = graph.add("Conv", inputs, output, **own)


def _factor_attributes(
    attributes: dict[str, Any], kernels: list[torch.Size]
) -> list[dict[str, Any]]:
    """The attributes of each factor: stride, padding and dilation of an axis belong to the factor with the kernel's extent."""
    axes = len(kernels[0])
    kernel = [max(k[axis] for k in kernels) for axis in range(axes)]
    carrier = carriers(kernels, kernel)
    found = []
    for i, own in enumerate(kernels):
        part: dict[str, Any] = {"kernel_shape": list(own), "group": 1}
        for name, rest, times in (("strides", 1, 1), ("dilations", 1, 1), ("pads", 0, 2)):
            values = list(attributes.get(name, [rest] * axes * times))
            part[name] = [v if carrier[at % axes] == i else rest for at, v in enumerate(values)]
        found.append(part)
    return found


def _row_scales(stored: StoredTensor) -> NDArray[np.float64]:
    assert stored.scale is not None
    return np.array(
        np.broadcast_to(
            stored.scale.cpu().numpy().astype(np.float64).reshape(-1), (len(stored.values),)
        )
    )


def _dynamic(
    graph: GraphBuilder,
    site: Site,
    stored: StoredTensor,
    bias: Array | None,
    attributes: dict[str, Any],
) -> None:
    """ConvInteger on the range that the input has at run time."""
    quantised, scale, zero = graph.dynamic(site.input)
    name = f"{site.owner}.weight/conv"
    call = graph.short(f"{site.node.output[0]}/call")
    product = graph.add(
        "ConvInteger", [quantised, int8_weight(graph, name, stored), zero], f"{call}p", **attributes
    )
    wide = graph.add("Cast", [product], f"{call}f", to=TensorProto.FLOAT)
    shape = (-1, *[1] * (stored.values.dim() - 2))
    weight_scale = graph.constant(
        f"{graph.short(name)}s", _row_scales(stored).astype(np.float32).reshape(shape)
    )
    both = graph.add("Mul", [scale, weight_scale], f"{call}b")
    output = site.node.output[0]
    if bias is None:
        graph.add("Mul", [wide, both], output)
        return
    scaled = graph.add("Mul", [wide, both], f"{call}m")
    graph.add(
        "Add",
        [scaled, graph.constant(f"{graph.short(name)}B", bias.astype(np.float32).reshape(shape))],
        output,
    )


@dataclass(frozen=True)
class _Folded:
    """A batch normalisation folded into a convolution, float64 by output channel.

    The integers of the weights are multiplied by `factor`: -1 for negative gains, and nearer to 0 where the bias needs a larger scale.
    """

    factor: Tensor
    scale: Tensor
    shift: Tensor
    relu: bool


def _fold(graph: GraphBuilder, site: Site, stored: StoredTensor, bias: Array | None) -> _Folded:
    scale, relu = _row_scales(stored), False
    scale[~stored.dequantized().flatten(1).any(1).numpy()] = (
        0.0  # a filter without weights leaves its bias the scale
    )
    shift = np.zeros(len(scale)) if bias is None else bias.astype(np.float64)
    sign = np.ones(len(scale))
    for output in site.tail:
        node = graph.lowered.producer[output]
        relu = relu or node.op_type == "Relu"  # a Clip is what the range of the output does
        if node.op_type == "BatchNormalization":
            gamma, beta, mean, variance = (
                graph.array(n).astype(np.float64) for n in node.input[1:5]
            )
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            gain = gamma / np.sqrt(variance + epsilon)
            sign = np.where(gain < 0, -1.0, 1.0)
            scale, shift = scale * np.abs(gain), (shift - mean) * gain + beta
    exact, bias_shift = torch.from_numpy(scale), torch.from_numpy(shift)
    step = graph.ranges[site.input].scale
    covering = covering_scale(exact * step, bias_shift, graph.ranges[site.output].scale) / step
    larger = covering > exact * (1 + 1e-9)
    factor = torch.from_numpy(sign) * torch.where(larger, exact / covering, 1.0)
    return _Folded(factor, torch.where(larger, covering, exact), bias_shift, relu)


def _multiplied(stored: StoredTensor, factor: Tensor) -> StoredTensor:
    """The integers of each row times its `factor` (rows,) in [-1, 1].

    The sign changes by -(q - z) = (-q - 1) - (-z - 1), which keeps asymmetric integers in range.
    """
    shape = (-1, *[1] * (stored.values.dim() - 1))
    negative = factor.signbit()  # of zeros too: the file has its size whatever the weights
    if (
        negative.any() and stored.zero_point is not None and len(stored.zero_point) == 1
    ):  # every row gets its own zero point
        stored = replace(
            stored, zero_point=stored.zero_point.expand(len(factor), 1).clone(), group_size=0
        )
    if negative.any():
        sign, offset = (
            torch.where(negative, -1, 1).to(torch.int8),
            torch.where(negative, -1, 0).to(torch.int8),
        )
        zero = stored.zero_point
        if zero is None:
            stored = replace(stored, values=stored.values * sign.view(shape))
        else:
            values = stored.values * sign.view(shape) + offset.view(shape)
            stored = replace(
                stored, values=values, zero_point=zero * sign[:, None] + offset[:, None]
            )
    if bool((factor.abs() == 1).all()):
        return stored
    center = grid_of(stored, stored.values.shape).zero_point
    values = center + ((stored.values - center) * factor.abs().float().view(shape)).round()
    return replace(stored, values=values.to(torch.int8))


def _shared_weight(
    graph: GraphBuilder, site: Site, stored: StoredTensor, factor: Tensor, call: str
) -> str:
    """The integers that all calls share, times the `factor` of this one, in operators that the runtime folds."""
    weight = graph.add(
        "Cast",
        [int8_weight(graph, f"{site.owner}.weight/conv", stored)],
        f"{call}x",
        to=TensorProto.FLOAT,
    )
    shape = (-1, *[1] * (stored.values.dim() - 1))
    rows = graph.constant(f"{call}m", factor.numpy().astype(np.float32).reshape(shape))
    rounded = graph.add("Round", [graph.add("Mul", [weight, rows], f"{call}y")], f"{call}z")
    return graph.add("Cast", [rounded], f"{call}q", to=TensorProto.INT8)


def _static(
    graph: GraphBuilder,
    site: Site,
    stored: StoredTensor,
    bias: Array | None,
    attributes: dict[str, Any],
) -> None:
    folded = _fold(graph, site, stored, bias)
    rows, scale = len(folded.scale), folded.scale.numpy()
    # Each call has its own batch normalisation and bias scale folded in.
    call = graph.short(f"{site.node.output[0]}/call")
    source = graph.rounded(site.input)
    if len(graph.lowered.sites[site.owner]) > 1:
        weight = _shared_weight(graph, site, stored, folded.factor, call)
    else:
        weight = int8_weight(
            graph, f"{site.node.output[0]}/weight", _multiplied(stored, folded.factor)
        )
    scale_name = graph.constant(f"{call}s", scale.astype(np.float32))
    zero = graph.shared(f"int8zeros{rows}", np.zeros(rows, np.int8))
    dequantised = graph.add("DequantizeLinear", [weight, scale_name, zero], f"{call}w", axis=0)
    # The kernel adds an int32 bias at the scale of its products.
    bias_scale = scale * graph.ranges[site.input].scale
    bias_inputs = [
        graph.constant(f"{call}B", np.round(folded.shift.numpy() / bias_scale).astype(np.int32)),
        graph.constant(f"{call}t", bias_scale.astype(np.float32)),
        graph.shared(f"zeros{rows}", np.zeros(rows, np.int32)),
    ]
    added = graph.add("DequantizeLinear", bias_inputs, f"{call}b", axis=0)
    result = graph.add("Conv", [source, dequantised, added], f"{call}c", **attributes)
    if folded.relu:
        result = graph.add("Relu", [result], f"{call}r")
    graph.round_as(site.output, result, site.output)
