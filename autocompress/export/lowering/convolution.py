"""Add the operators of a convolution in one of three forms.

Float with folded weights; static 8 bits between quantisers that the runtime fuses; dynamic 8 bits.
Where kernels of linear layers write 8 bits too, these have the second form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from autocompress.candidate import ModuleConfig
from autocompress.compress.assemble.fake_quant import gate_shift
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.factorise.low_rank import carriers
from autocompress.compress.quantize.affine import StoredTensor, grid_of
from autocompress.compress.quantize.integer_bias import covering_scale
from autocompress.export.lowering.graph import GraphBuilder
from autocompress.export.lowering.lower import Site
from autocompress.export.lowering.weights import float_weight, int8_weight

Array = NDArray[np.generic]


def convolution(
    graph: GraphBuilder,
    site: Site,
    variant: Variant,
    config: ModuleConfig,
    out: NDArray[np.bool_] | None,
) -> None:
    """Add a convolution and what follows it alone.

    Args:
        graph: gets nodes and initializers.
        site: where the float graph has the convolution.
        variant: its compressed weights.
        config: what is done to the module.
        out: (channels,) True for the output channels that are left, or None for all.
    """
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
    if site.bias is None:
        return None
    if variant.bias is not None:
        return np.asarray(variant.bias.cpu().numpy())
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
    """Add one convolution per factor, the bias on the last one."""
    last = len(factors) - 1
    parts = [attributes]
    if last > 0:
        parts = _factor_attributes(attributes, [factor.values.shape[2:] for factor in factors])
    for i, (stored, own) in enumerate(zip(factors, parts, strict=True)):
        name = f"{site.owner}.weight/conv{i}"
        inputs = [value, float_weight(graph, name, stored)]
        if i == last and bias is not None:
            added = _bias_name(graph, site, f"conv{i}")
            inputs.append(graph.constant(added, bias.astype(np.float32)))
        output = site.node.output[0] if i == last else graph.short(f"{site.node.output[0]}/{i}")
        value = graph.add("Conv", inputs, output, **own)


def _factor_attributes(
    attributes: dict[str, Any], kernels: list[torch.Size]
) -> list[dict[str, Any]]:
    """Return the attributes of each factor.

    Stride, padding and dilation of an axis belong to the factor that has the kernel's extent there.
    """
    axes = len(kernels[0])
    kernel = [max(k[axis] for k in kernels) for axis in range(axes)]
    carrier = carriers(kernels, kernel)
    parts = []
    for i, own in enumerate(kernels):
        part: dict[str, Any] = {"kernel_shape": list(own), "group": 1}
        for name, neutral, times in (("strides", 1, 1), ("dilations", 1, 1), ("pads", 0, 2)):
            values = list(attributes.get(name, [neutral] * axes * times))
            part[name] = [v if carrier[at % axes] == i else neutral for at, v in enumerate(values)]
        parts.append(part)
    return parts


def _row_scales(stored: StoredTensor) -> NDArray[np.float64]:
    assert stored.scale is not None
    scales = stored.scale.cpu().numpy().astype(np.float64).reshape(-1)
    return np.array(np.broadcast_to(scales, (len(stored.values),)))


def _dynamic(
    graph: GraphBuilder,
    site: Site,
    stored: StoredTensor,
    bias: Array | None,
    attributes: dict[str, Any],
) -> None:
    """Add a ConvInteger on the range that the input has at run time."""
    quantised, scale, zero = graph.dynamic(site.input)
    name = f"{site.owner}.weight/conv"
    call = graph.short(f"{site.node.output[0]}/call")
    inputs = [quantised, int8_weight(graph, name, stored), zero]
    product = graph.add("ConvInteger", inputs, f"{call}p", **attributes)
    wide = graph.add("Cast", [product], f"{call}f", to=TensorProto.FLOAT)
    shape = (-1, *[1] * (stored.values.dim() - 2))
    rows = _row_scales(stored).astype(np.float32).reshape(shape)
    weight_scale = graph.constant(f"{graph.short(name)}s", rows)
    both = graph.add("Mul", [scale, weight_scale], f"{call}b")
    output = site.node.output[0]
    if bias is None:
        graph.add("Mul", [wide, both], output)
        return
    scaled = graph.add("Mul", [wide, both], f"{call}m")
    added = _bias_name(graph, site, "conv")
    graph.constant(added, bias.astype(np.float32).reshape(shape))
    graph.add("Add", [scaled, added], output)


def _bias_name(graph: GraphBuilder, site: Site, part: str) -> str:
    """Return the name of a bias, which modules that share a weight need not share."""
    return f"{graph.short(f'{site.name}.weight/{part}')}B"


@dataclass(frozen=True)
class _Folded:
    """Hold a batch normalisation folded into a convolution.

    Attributes:
        factor: (rows,) float64 that the integers of the weights are multiplied by, in [-1, 1]:
            negative for negative gains, nearer to 0 where the bias needs a larger scale.
        scale: (rows,) float64, of the multiplied integers.
        shift: (rows,) float64, the bias.
        relu: whether a ReLU follows.
    """

    factor: Tensor
    scale: Tensor
    shift: Tensor
    relu: bool


def _fold(graph: GraphBuilder, site: Site, stored: StoredTensor, bias: Array | None) -> _Folded:
    scale, relu = _row_scales(stored), False
    # A filter without weights leaves its bias the scale.
    scale[~stored.dequantized().flatten(1).any(1).numpy()] = 0.0
    shift = np.zeros(len(scale)) if bias is None else bias.astype(np.float64)
    sign = np.ones(len(scale))
    for output in site.tail:
        node = graph.lowered.producer[output]
        relu = relu or node.op_type == "Relu"  # a Clip's range ends where it does
        if node.op_type == "BatchNormalization":
            parameters = [graph.array(name).astype(np.float64) for name in node.input[1:5]]
            gamma, beta, mean, variance = parameters
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
    """Multiply the integers of each row by its `factor` (rows,) in [-1, 1].

    The sign changes by -(q - z) = (-q - 1) - (-z - 1), which keeps asymmetric integers in range.
    """
    shape = (-1, *[1] * (stored.values.dim() - 1))
    negative = factor.signbit()  # of zeros too: the file has its size whatever the weights
    if negative.any():
        sign = torch.where(negative, -1, 1).to(torch.int8)
        offset = torch.where(negative, -1, 0).to(torch.int8)
        zero = stored.zero_point
        if zero is None:
            stored = replace(stored, values=stored.values * sign.view(shape))
        else:
            if len(zero) == 1:  # every row gets its own zero point
                zero = zero.expand(len(factor), 1).clone()
                stored = replace(stored, group_size=0)
            values = stored.values * sign.view(shape) + offset.view(shape)
            zero = zero * sign[:, None] + offset[:, None]
            stored = replace(stored, values=values, zero_point=zero)
    if bool((factor.abs() == 1).all()):
        return stored
    center = grid_of(stored, stored.values.shape).zero_point
    values = center + ((stored.values - center) * factor.abs().float().view(shape)).round()
    return replace(stored, values=values.to(torch.int8))


def _shared_weight(
    graph: GraphBuilder, site: Site, stored: StoredTensor, factor: Tensor, call: str
) -> str:
    """Multiply the integers that all calls share by the `factor` of one call.

    The runtime folds the operators.
    """
    integers = int8_weight(graph, f"{site.owner}.weight/conv", stored)
    weight = graph.add("Cast", [integers], f"{call}x", to=TensorProto.FLOAT)
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
    """Add a convolution between dequantised tensors, with its normalisation folded in."""
    inputs, call, relu = _dequantised(graph, site, stored, bias)
    result = graph.add("Conv", inputs, f"{call}c", **attributes)
    if relu:
        result = graph.add("Relu", [result], f"{call}r")
    graph.round_as(site.output, result, site.output)


def static_linear(
    graph: GraphBuilder, site: Site, variant: Variant, experts: NDArray[np.bool_] | None
) -> None:
    """Add a linear layer that reads and writes 8 bits by calibrated ranges.

    Args:
        graph: gets nodes and initializers.
        site: where the float graph has the layer.
        variant: its compressed weight.
        experts: for a router, (experts,) True for those that are left; the others are never chosen.
    """
    (stored,) = variant.factors
    bias = _bias(graph, site, variant, None)
    (source, weight, added), call, _ = _dequantised(graph, site, stored, bias)
    weight = graph.add("Transpose", [weight], f"{call}k", perm=[1, 0])
    product = graph.add("MatMul", [source, weight], f"{call}p")
    result = graph.add("Add", [product, added], f"{call}c")
    if experts is None:
        graph.round_as(site.output, result, site.output)
        return
    output = graph.short(f"{site.output}/open")
    graph.round_as(site.output, result, output)
    gate = graph.constant(graph.short(f"{site.owner}/gate"), gate_shift(experts))
    graph.add("Add", [output, gate], site.output)


def _dequantised(
    graph: GraphBuilder, site: Site, stored: StoredTensor, bias: Array | None
) -> tuple[list[str], str, bool]:
    """Return (input, weight, bias), the beginning of short names, and if a ReLU follows."""
    folded = _fold(graph, site, stored, bias)
    rows, scale = len(folded.scale), folded.scale.numpy()
    # Each call has its own batch normalisation and bias scale folded in.
    call = graph.short(f"{site.node.output[0]}/call")
    source = graph.rounded(site.input)
    if len(graph.lowered.sites[site.owner]) > 1:
        weight = _shared_weight(graph, site, stored, folded.factor, call)
    else:
        name = f"{site.node.output[0]}/weight"
        weight = int8_weight(graph, name, _multiplied(stored, folded.factor))
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
    return [source, dequantised, added], call, folded.relu
