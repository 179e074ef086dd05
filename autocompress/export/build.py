"""Any candidate of one model as ONNX: with real weights, or with noise for its exact size and its latency before a weight is touched."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from autocompress.attention import split_attention
from autocompress.candidate import Candidate, ModuleConfig
from autocompress.channels import ChannelGroup
from autocompress.compress.library import StoredTensor, Variant, VariantLibrary
from autocompress.compress.low_rank import rank_of
from autocompress.compress.prune import Masks, Pruner
from autocompress.compress.quantize import ActivationRange, quant_max
from autocompress.compress.stitch import Stitcher
from autocompress.export.calibrate import calibrate
from autocompress.export.lower import LoweredModel, export_float, lower
from autocompress.export.rewrite import rewrite
from autocompress.modules import CompressibleModule, ModuleMap
from autocompress.targets.runtime import open_session
from autocompress.task import Inputs, Task, batch_size, call_model, take_samples

CALIBRATION_SAMPLES = 128


@dataclass
class Builder:
    """The lowered model with its calibrated ranges; `baseline` is the float file of the user's own model."""

    lowered: LoweredModel
    module_map: ModuleMap
    pruner: Pruner
    ranges: Mapping[str, ActivationRange]
    baseline: bytes
    _sizes: dict[Candidate, int] = field(default_factory=dict)

    def input_ranges(self) -> dict[str, ActivationRange]:
        """Range of each convolution's input, by module name."""
        return {
            owner: self.ranges[site.input]
            for owner, sites in self.lowered.sites.items()
            for site in sites
            if site.kind == "conv" and site.input in self.ranges
        }

    def build(self, candidate: Candidate, variants: Mapping[str, Variant], others: Mapping[str, Tensor] | None = None) -> ModelProto:
        """The candidate with real weights; `variants` by site name, `others` replace parameters that recovery trained."""
        masks = self.pruner.masks(candidate)
        return rewrite(self.lowered, self.module_map, candidate, variants, masks, self.ranges, others)[0]

    def blank(self, candidate: Candidate) -> tuple[ModelProto, dict[str, str]]:
        """(graph, owner of each tensor) with weights of the right shapes and no meaning."""
        masks = self.pruner.masks(candidate)
        variants = {
            site.name: _blank_variant(module, candidate.config(module.name), masks)
            for module in self.module_map
            for site in self.lowered.sites[module.name]
        }
        return rewrite(self.lowered, self.module_map, candidate, variants, masks, self.ranges)

    def size_bytes(self, candidate: Candidate) -> int:
        """Size of the candidate's file."""
        plain = Candidate(candidate.modules)
        if plain not in self._sizes:
            self._sizes[plain] = self.blank(plain)[0].ByteSize()
        return self._sizes[plain]

    @cached_property
    def group_owners(self) -> dict[str, str]:
        """Tensor -> "group:NAME" for what lies between the producers and the consumers of a prunable group."""
        consumers: dict[str, list[str]] = {}
        for node in self.lowered.proto.graph.node:
            for value in node.input:
                consumers.setdefault(value, []).extend(node.output)
        sites = [site for found in self.lowered.sites.values() for site in found]
        stops = {output for s in sites for output in (s.node.output[0], s.output)}
        owners: dict[str, str] = {}
        for group in self.module_map.groups:
            if group.reason is not None:
                continue
            names = {m.name for m in group.members if m.side == "out"}
            frontier = [site.output for site in sites if site.name in names]
            while frontier:
                for output in consumers.get(frontier.pop(), []):
                    if output not in stops and output not in owners:
                        owners[output] = f"group:{group.name}"
                        frontier.append(output)
        return owners


def _blank_variant(module: CompressibleModule, config: ModuleConfig, masks: Masks) -> Variant:
    shape = list(module.weight_shape)
    for i, side in enumerate(("out", "in")):
        mask = masks.of(module.name, side)
        if mask is not None:
            shape[i] = int(mask.sum())
    shapes = [shape]
    if config.rank_ratio < 1 and module.kind == "linear":
        rank = rank_of(shape[0], shape[1], config.rank_ratio)
        shapes = [[rank, shape[1]], [shape[0], rank]]
    factors = tuple(_noise(s, config.weight_bits) for s in shapes)
    return Variant(factors, torch.zeros(shape[0]) if module.has_bias else None)


def _noise(shape: list[int], weight_bits: int) -> StoredTensor:
    """Random weights that keep activations at their size: kernels take a few percent longer on them than on constants."""
    fan_in = max(1, int(np.prod(shape[1:])))
    noise = np.resize(_noise_pool(), shape)
    if weight_bits >= 16:
        return StoredTensor(
            torch.from_numpy(noise / np.float32(np.sqrt(fan_in))).to(torch.float16 if weight_bits == 16 else torch.float32), weight_bits
        )
    step = 3.0 / quant_max(weight_bits)
    values = torch.from_numpy(np.clip(noise / step, -quant_max(weight_bits), quant_max(weight_bits)).astype(np.int8))
    return StoredTensor(values, weight_bits, torch.full((shape[0],), step / float(np.sqrt(fan_in))))


@cache
def _noise_pool() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(1_000_003, dtype=np.float32)


def prepare(task: Task, module_map: ModuleMap) -> tuple[Builder, nn.Module]:
    """(builder, teacher): export and calibrate once; modules whose weight the graph does not show are left out of the map."""
    teacher = split_attention(task.model).cpu()
    lowered = lower(teacher, task.example_inputs, module_map)
    module_map = module_map.restricted_to(lowered.sites)
    samples = [inputs for inputs, _ in take_samples(task.calibration_batches(), CALIBRATION_SAMPLES)]
    samples = samples if lowered.dynamic_batch else [task.example_inputs, *samples]
    ranges = calibrate(lowered, samples, batch_size(task.example_inputs))
    changed = any(isinstance(module, nn.MultiheadAttention) for module in task.model.modules())
    baseline = export_float(copy.deepcopy(task.model).cpu().eval(), task.example_inputs)[0] if changed else lowered.proto
    builder = Builder(lowered, module_map, Pruner(teacher, module_map), ranges, baseline.SerializeToString())
    return _with_prunable_groups(builder, teacher, samples[0]), teacher


def _with_prunable_groups(builder: Builder, teacher: nn.Module, inputs: Inputs) -> Builder:
    """The same builder, in which groups that the exported graph cannot lose are not pruned.

    A graph may hold a width as a constant, or couple channels in a way that the dependency graph did not see; so half of
    every group is removed and the file compared with the simulation, group by group where they differ.
    """
    groups = [group for group in builder.module_map.groups if group.reason is None]
    if not groups or _prunes(builder, teacher, inputs, groups):
        return builder
    bad = {group.name for group in groups if not _prunes(builder, teacher, inputs, [group])}
    kept = tuple(
        g.but("the exported graph does not compute the same without half of it") if g.name in bad else g for g in builder.module_map.groups
    )
    module_map = replace(builder.module_map, groups=kept)
    return Builder(builder.lowered, module_map, Pruner(teacher, module_map), builder.ranges, builder.baseline)


def _prunes(builder: Builder, teacher: nn.Module, inputs: Inputs, groups: list[ChannelGroup]) -> bool:
    candidate = Candidate.of({group.name: ModuleConfig(pruning_ratio=0.5) for group in groups})
    stitcher = Stitcher(teacher, builder.module_map, VariantLibrary(teacher), {})
    variants = {site.name: stitcher.variant(site.name, site.owner, candidate) for found in builder.lowered.sites.values() for site in found}
    with torch.no_grad():
        expected = call_model(stitcher.apply(candidate), inputs).numpy()
    try:
        proto = builder.build(candidate, variants)
        (found, *_) = open_session(proto.SerializeToString()).run(None, builder.lowered.feed(inputs))
    except Exception:
        return False  # ONNX Runtime refuses the graph: shapes do not fit any more
    same: bool = np.allclose(found, expected, rtol=1e-3, atol=1e-3 * max(1.0, float(np.abs(expected).max())))
    return found.shape == expected.shape and same
