"""From the float graph and the variants of a candidate to the compressed graph: shrunk, factorised and quantised in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from autocompress.candidate import Candidate
from autocompress.compress.library import StoredTensor, Variant
from autocompress.compress.prune import Masks
from autocompress.compress.quantize import ActivationRange
from autocompress.export.lower import LoweredModel, Site, remove_dead_nodes
from autocompress.export.pack import stored_values, weight_tensor
from autocompress.modules import ModuleMap

Array = NDArray[np.generic]
NORM_PARAMETERS = ("weight", "bias", "running_mean", "running_var")


@dataclass
class Rewriter:
    """Collects the nodes and initializers of one compressed graph; `owners` tells which module made each tensor."""

    lowered: LoweredModel
    ranges: Mapping[str, ActivationRange]
    initializers: dict[str, TensorProto]
    nodes: list[NodeProto] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    owner: str = ""
    _quantized: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _weights: dict[str, str] = field(default_factory=dict)

    def add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """One node with one output, named after it."""
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        self.owners[output] = self.owner
        return output

    def constant(self, name: str, value: Any) -> str:
        """An initializer."""
        self.initializers[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def array(self, name: str) -> Array:
        """The value of an initializer."""
        return np.asarray(numpy_helper.to_array(self.initializers[name]))

    def weight(self, name: str, values: Array, stored: StoredTensor) -> str:
        """An initializer at its bits, and a Cast of 4-bit values to int8, which the runtime folds when the session is created.

        A weight that several calls share is stored once.
        """
        if name not in self._weights:
            self.initializers[name] = weight_tensor(name, values, stored.weight_bits)
            packed = stored.weight_bits == 4
            self._weights[name] = self.add("Cast", [name], f"{name}/int8", to=TensorProto.INT8) if packed else name
        return self._weights[name]

    def float_weight(self, name: str, values: Array, stored: StoredTensor, scale_shape: tuple[int, ...]) -> str:
        """A float weight that is stored at its bits and unpacked by operators that the runtime folds."""
        if name not in self._weights:
            self.initializers[name] = weight_tensor(name, values, stored.weight_bits)
            result = name
            if stored.weight_bits < 32:
                result = self.add("Cast", [name], f"{name}/float", to=TensorProto.FLOAT)
            if stored.scale is not None:
                scale = self.constant(f"{name}/scale", stored.scale.cpu().numpy().reshape(scale_shape))
                result = self.add("Mul", [result, scale], f"{name}/dequantized")
            self._weights[name] = result
        return self._weights[name]

    def dynamic(self, value: str) -> tuple[str, ...]:
        """(uint8 tensor, scale, zero point) of a float tensor, once however many modules read it."""
        if value not in self._quantized:
            outputs = [f"{value}/q", f"{value}/q_scale", f"{value}/q_zero"]
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [value], outputs, name=outputs[0]))
            self.owners.update(dict.fromkeys(outputs, f"quantize:{value}"))
            self._quantized[value] = tuple(outputs)
        return self._quantized[value]

    def static(self, value: str, source: str, output: str, at: ActivationRange) -> str:
        """QuantizeLinear and DequantizeLinear of `source`, whose calibrated range is that of tensor `value`."""
        scale = self.constant(f"{value}/range_scale", np.float32(at.scale).reshape(()))
        zero = self.constant(f"{value}/range_zero", np.uint8(at.zero_point).reshape(()))
        quantised = self.add("QuantizeLinear", [source, scale, zero], f"{value}/quantized")
        self._quantized[value] = (output,)
        return self.add("DequantizeLinear", [quantised, scale, zero], output)

    def linear(self, site: Site, variant: Variant, activation_bits: int) -> None:
        """MatMul per factor, float or DynamicQuantizeLinear + MatMulInteger, then the bias."""
        value = site.input
        last = len(variant.factors) - 1
        for i, stored in enumerate(variant.factors):
            values = stored_values(stored).T
            name = f"{site.owner}.weight/linear{i}"
            output = f"{site.node.output[0]}/factor{i}" if i < last or site.bias else site.output
            if activation_bits == 8:
                output = self._integer_product(name, f"{site.node.output[0]}/{i}", value, values, stored, output)
            else:
                weight = self.float_weight(name, values, stored, (-1,))
                self.add("MatMul", [value, weight], output)
            value = output
        if site.bias is not None:
            self.add("Add", [value, self._bias(site, variant)], site.output)

    def _integer_product(self, name: str, call: str, value: str, values: Array, stored: StoredTensor, output: str) -> str:
        quantised, scale, zero = self.dynamic(value)
        assert stored.scale is not None
        weight = self.weight(name, values, stored)
        weight_zero = self.constant(f"{name}/zero", np.zeros((), np.int8))
        product = self.add("MatMulInteger", [quantised, weight, zero, weight_zero], f"{call}/product")
        wide = self.add("Cast", [product], f"{call}/product_float", to=TensorProto.FLOAT)
        weight_scale = self.constant(f"{name}/scale", stored.scale.cpu().numpy())
        both = self.add("Mul", [scale, weight_scale], f"{call}/both_scales")
        return self.add("Mul", [wide, both], output)

    def _bias(self, site: Site, variant: Variant) -> str:
        assert site.bias is not None
        if variant.bias is not None:
            self.constant(site.bias, variant.bias.cpu().numpy())
        return site.bias

    def embedding(self, site: Site, variant: Variant) -> None:
        """Gather from the table, unpacked when the session is created."""
        stored = variant.factors[0]
        table = self.float_weight(f"{site.owner}.weight/table", stored_values(stored), stored, (-1, 1))
        self.add("Gather", [table, site.input], site.output)

    def convolution(self, site: Site, variant: Variant, activation_bits: int, out: NDArray[np.bool_] | None) -> None:
        """Conv with a folded weight, or, for 8-bit activations, between Q/DQ pairs that the runtime fuses to QLinearConv."""
        stored = variant.factors[0]
        values = stored_values(stored)
        bias = self._conv_bias(site, variant, out)
        attributes = {a.name: helper.get_attribute_value(a) for a in site.node.attribute}
        name = f"{site.owner}.weight/conv"
        if activation_bits == 8:
            # Each call has its own batch normalisation and bias scale folded in.
            name = f"{site.node.output[0]}/weight"
            self._quantized_convolution(site, name, values, stored, bias, attributes)
            return
        weight = self.float_weight(name, values, stored, (-1, *[1] * (values.ndim - 1)))
        inputs = [site.input, weight] + ([] if bias is None else [self.constant(f"{name}/bias", bias.astype(np.float32))])
        self.add("Conv", inputs, site.node.output[0], **attributes)
        for output in site.tail:
            original = self.lowered.producer[output]
            self.add(
                original.op_type,
                list(original.input),
                output,
                **{a.name: helper.get_attribute_value(a) for a in original.attribute},
            )

    def _conv_bias(self, site: Site, variant: Variant, out: NDArray[np.bool_] | None) -> Array | None:
        if variant.bias is not None:
            return np.asarray(variant.bias.cpu().numpy())
        if site.bias is None:
            return None
        bias = self.array(site.bias)
        return bias if out is None else bias[out]

    def _quantized_convolution(
        self, site: Site, name: str, values: Array, stored: StoredTensor, bias: Array | None, attributes: dict[str, Any]
    ) -> None:
        assert stored.scale is not None
        scale = stored.scale.cpu().numpy().astype(np.float64)
        shift: NDArray[np.float64] = np.zeros(len(values)) if bias is None else bias.astype(np.float64)
        relu = False
        for output in site.tail:
            node = self.lowered.producer[output]
            relu = relu or node.op_type == "Relu"
            if node.op_type == "BatchNormalization":
                gamma, beta, mean, variance = (self.array(n).astype(np.float64) for n in node.input[1:5])
                epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
                gain = gamma / np.sqrt(variance + epsilon)
                values = (values * np.where(gain < 0, -1, 1).reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
                scale, shift = scale * np.abs(gain), (shift - mean) * gain + beta
        scale = np.maximum(scale, 1e-12)
        value, at = site.input, self.ranges[site.input]
        if value not in self._quantized:
            self.static(value, value, f"{value}/dequantized", at)
        source = self._quantized[value][0]
        weight = self.weight(name, values, stored)
        scale_name = self.constant(f"{name}/scale", scale.astype(np.float32))
        zero = self.constant(f"{name}/zero", np.zeros(len(values), np.int8))
        dequantised = self.add("DequantizeLinear", [weight, scale_name, zero], f"{name}/dequantized", axis=0)
        # The kernel adds an int32 bias at the scale of its products.
        bias_scale = (scale * at.scale).astype(np.float32)
        limit = 2.0**31 - 1
        rounded = np.clip(np.round(shift / bias_scale), -limit, limit).astype(np.int32)
        bias_inputs = [
            self.constant(f"{name}/bias", rounded),
            self.constant(f"{name}/bias_scale", bias_scale),
            self.constant(f"{name}/bias_zero", np.zeros(len(values), np.int32)),
        ]
        added = self.add("DequantizeLinear", bias_inputs, f"{name}/bias_dequantized", axis=0)
        result = self.add("Conv", [source, dequantised, added], f"{site.node.output[0]}/conv", **attributes)
        if relu:
            result = self.add("Relu", [result], f"{site.node.output[0]}/relu")
        self.static(site.output, result, site.output, self.ranges[site.output])


def rewrite(
    lowered: LoweredModel,
    module_map: ModuleMap,
    candidate: Candidate,
    variants: Mapping[str, Variant],
    masks: Masks,
    ranges: Mapping[str, ActivationRange],
    others: Mapping[str, Tensor] | None = None,
) -> tuple[ModelProto, dict[str, str]]:
    """(graph of `candidate`, owner of each tensor): `variants` by site name, `others` replace parameters by name."""
    proto = ModelProto()
    proto.CopyFrom(lowered.proto)
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, value in (others or {}).items():
        if name in initializers and value.is_floating_point():
            initializers[name] = numpy_helper.from_array(value.numpy(), name)
    for (name, side), mask in masks.kept.items():
        for parameter in NORM_PARAMETERS if side == "channel" else ():
            key = f"{name}.{parameter}"
            if key in initializers:
                initializers[key] = numpy_helper.from_array(numpy_helper.to_array(initializers[key])[mask], key)
    rewriter = Rewriter(lowered, ranges, initializers)
    by_output: dict[str, Site] = {}
    dropped: set[str] = set()
    for module in module_map:
        config = candidate.config(module.name).effective()
        touched = (config.weight_bits, config.rank_ratio) != (32, 1.0) or any(
            masks.of(module.name, side) is not None for side in ("out", "in")
        )
        for site in lowered.sites.get(module.name, ()):
            for output in (site.node.output[0], site.output, *site.tail):
                rewriter.owners[output] = module.name
            if touched or (site.name in variants and others is not None):
                by_output[site.node.output[0]] = site
                dropped.update({site.output, *site.absorbed, *site.tail} - {site.node.output[0]})
    for node in lowered.proto.graph.node:
        site_at = by_output.get(node.output[0])
        if site_at is not None:
            _emit(rewriter, site_at, candidate, variants[site_at.name], masks)
        elif node.output[0] not in dropped:
            rewriter.nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(rewriter.nodes)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(rewriter.initializers.values())
    remove_dead_nodes(proto)
    return proto, rewriter.owners


def _emit(rewriter: Rewriter, site: Site, candidate: Candidate, variant: Variant, masks: Masks) -> None:
    rewriter.owner = site.owner
    activation_bits = candidate.config(site.owner).effective().activation_bits
    if site.kind == "linear":
        rewriter.linear(site, variant, activation_bits)
    elif site.kind == "embedding":
        rewriter.embedding(site, variant)
    else:
        rewriter.convolution(site, variant, activation_bits, masks.of(site.owner, "out"))
