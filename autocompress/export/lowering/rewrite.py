"""From the float graph and the variants of a candidate to the compressed graph: shrunk, factorised and quantised in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.library import Variant
from autocompress.compress.prune.masks import Mask, Masks
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.export.float_graph.subgraphs import needed_parts
from autocompress.export.lowering.convolution import convolution
from autocompress.export.lowering.float_products import hold_apart
from autocompress.export.lowering.graph import FUNCTIONS, GraphBuilder
from autocompress.export.lowering.lower import LoweredModel, Site
from autocompress.export.lowering.operators import embedding, linear, recurrent, zeros
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import ModuleMap

NORM_PARAMETERS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Recipe:
    """Everything that the graph of one candidate is made of.

    Attributes:
        variants: by site name.
        masks: kept channels by (module, side).
        ranges: calibrated range by tensor.
        levels: accuracy level of the weight-only kernel, for the modules that run on it.
        blocks: block size, for the embeddings that stay packed at run time.
        forms: of the integer weights, for the modules whose kernel multiplies integers.
        smoothed: parameters of normalisations that were divided by smoothing factors, by name.
        others: parameters that training changed, by name; None for weights that were not trained.
    """

    candidate: Candidate
    variants: Mapping[str, Variant]
    masks: Masks
    ranges: Mapping[str, ActivationRange]
    levels: Mapping[str, int] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    forms: Mapping[str, IntegerForm] = field(default_factory=dict)
    smoothed: Mapping[str, Tensor] = field(default_factory=dict)
    others: Mapping[str, Tensor] | None = None

    @property
    def portable(self) -> bool:
        """Whether the integer products of the file are exact on every processor."""
        return all(form.portable for form in self.forms.values())


def rewrite(
    lowered: LoweredModel, module_map: ModuleMap, recipe: Recipe
) -> tuple[ModelProto, dict[str, str]]:
    """(graph, owner of each tensor) of a recipe."""
    graph = GraphBuilder(
        lowered, recipe.ranges, {tensor.name: tensor for tensor in lowered.proto.graph.initializer}
    )
    _replace_parameters(graph, recipe)
    norms = {name.rpartition(".")[0] for name in recipe.smoothed}
    rescaled = {
        reader for group in module_map.norms if group.norm in norms for reader in group.readers
    }
    by_output: dict[str, Site] = {}
    dropped: set[str] = set()
    states: dict[str, int] = {}
    ends = _removed_ends(lowered, module_map, recipe.masks)
    for module in module_map:
        touched = _touched(recipe, module.name) or module.name in rescaled
        for site in lowered.sites.get(module.name, ()):
            for output in (site.node.output[0], site.output, *site.tail):
                graph.owners[output] = module.name
            if not touched and (site.name not in recipe.variants or recipe.others is None):
                continue
            if site.kind == "recurrent":  # a constant: it has no place among the nodes
                graph.owner = site.owner
                recurrent(graph, site, recipe.variants[site.name])
                if site.name.rpartition(".")[2].startswith(
                    "hh_"
                ):  # reads the state, whose width the operator must know
                    state = recipe.masks.of(site.owner, "in")
                    states[site.tail[0]] = site.hidden if state is None else int(state.sum())
                continue
            by_output[site.node.output[0]] = site
            dropped.update({site.output, *site.absorbed, *site.tail} - {site.node.output[0]})
    for node in lowered.proto.graph.node:
        site_at = by_output.get(node.output[0])
        if site_at is not None and recipe.masks.dropped(site_at.owner):
            if site_at.owner in ends:
                graph.owner = site_at.owner
                zeros(graph, site_at, ends[site_at.owner])
        elif site_at is not None:
            config = recipe.candidate.config(site_at.owner)
            _emit(graph, site_at, recipe, config.executed(module_map[site_at.owner].kind))
        elif node.output[0] in states:
            graph.copy(node, hidden_size=states[node.output[0]])
        elif node.output[0] not in dropped:
            graph.nodes.append(node)
    hold_apart(graph)
    proto = ModelProto()
    proto.CopyFrom(lowered.shell)
    nodes, initializers = needed_parts(
        graph.nodes, graph.initializers.values(), {output.name for output in proto.graph.output}
    )
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(initializers)
    used = {node.op_type for node in proto.graph.node if node.domain == FUNCTIONS}
    proto.functions.extend(function for name, function in graph.functions.items() if name in used)
    for domain in sorted({node.domain for node in proto.graph.node} - {""}):
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto, graph.owners


def _removed_ends(lowered: LoweredModel, module_map: ModuleMap, masks: Masks) -> dict[str, str]:
    """Last module of each removed expert -> the tensor that its first one reads."""
    ends = {}
    for group in module_map.groups:
        units: dict[int, list[str]] = {}
        for member in group.members:
            if member.side == "whole" and masks.dropped(member.name):
                units.setdefault(int(member.root[0]), []).append(member.name)
        ends.update({names[-1]: lowered.sites[names[0]][0].input for names in units.values()})
    return ends


def _touched(recipe: Recipe, name: str) -> bool:
    config = recipe.candidate.config(name)
    same = (config.weight_bits, config.activation_bits, config.rank_ratio, config.sparsity) == (
        32,
        32,
        1.0,
        0.0,
    )
    return not same or any(
        recipe.masks.of(name, side) is not None for side in ("out", "in", "gate", "whole")
    )


def _replace_parameters(graph: GraphBuilder, recipe: Recipe) -> None:
    for name, value in {**recipe.smoothed, **(recipe.others or {})}.items():
        if name in graph.initializers and value.is_floating_point():
            graph.initializers[name] = numpy_helper.from_array(value.cpu().numpy(), name)
    for (name, side), mask in recipe.masks.kept.items():
        own = name in graph.lowered.sites
        for parameter in (
            NORM_PARAMETERS if side == "channel" else () if own or side == "in" else ("bias",)
        ):
            _cut(graph, f"{name}.{parameter}", mask, 0)
        if not own and side != "channel":  # a transposed convolution: (in, out, *kernel)
            _cut(graph, f"{name}.weight", mask, int(side == "out"))


def _cut(graph: GraphBuilder, key: str, mask: Mask, dimension: int) -> None:
    if key in graph.initializers:
        graph.constant(key, np.compress(mask, graph.array(key), axis=dimension))


def _emit(graph: GraphBuilder, site: Site, recipe: Recipe, config: ModuleConfig) -> None:
    graph.owner = site.owner
    variant = recipe.variants[site.name]
    if site.kind == "linear":
        unsigned = recipe.forms.get(site.owner) is IntegerForm.UNSIGNED
        linear(
            graph,
            site,
            variant,
            config,
            recipe.levels.get(site.owner),
            unsigned,
            recipe.masks.of(site.owner, "gate"),
        )
    elif site.kind == "embedding":
        embedding(graph, site, variant, recipe.blocks.get(site.owner))
    else:
        convolution(graph, site, variant, config, recipe.masks.of(site.owner, "out"))
