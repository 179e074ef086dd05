"""Build the compressed graph of a candidate from the float graph and its compressed weights.

Nodes of compressed modules are replaced in place; all other nodes are copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.prune.masks import Mask, Masks
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.export.float_graph.subgraphs import needed_parts
from autocompress.export.genai.attention import join_attention
from autocompress.export.lowering.convolution import convolution, static_linear
from autocompress.export.lowering.float_products import hold_apart
from autocompress.export.lowering.graph import FUNCTIONS, GraphBuilder
from autocompress.export.lowering.lower import LoweredModel, Site
from autocompress.export.lowering.operators import embedding, linear, recurrent, zeros
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import CompressibleModule, ModuleMap

NORM_PARAMETERS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Recipe:
    """Hold everything that the graph of one candidate is made of.

    Attributes:
        candidate: what is done to each module.
        variants: compressed weights by site name.
        masks: channels that are left, by (module, side).
        ranges: calibrated range by tensor.
        levels: accuracy level of the weight-only kernel, for the modules that run on it.
        blocks: block size, for the embeddings that stay packed at run time.
        forms: of the integer weights, for the modules whose kernel multiplies integers.
        smoothed: parameters of normalisations that were divided by smoothing factors, by name.
        statistics: means and variances of batch normalisations that were estimated again, by name.
        others: parameters that training changed, by name; None for weights that were not trained.
        rounds_products: True if linear layers on static 8-bit inputs write 8 bits, as in LiteRT.
    """

    candidate: Candidate
    variants: Mapping[str, Variant]
    masks: Masks
    ranges: Mapping[str, ActivationRange]
    levels: Mapping[str, int] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    forms: Mapping[str, IntegerForm] = field(default_factory=dict)
    smoothed: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    others: Mapping[str, Tensor] | None = None
    rounds_products: bool = False

    @property
    def portable(self) -> bool:
        """Return True if the integer products of the file are exact on every processor."""
        return all(form.portable for form in self.forms.values())


@dataclass
class _Plan:
    """Hold what happens to nodes of the float graph.

    Attributes:
        replaced: sites to rewrite, by first output of their node.
        dropped: outputs of nodes that go with a rewritten site.
        states: new width of the state, by first output of a recurrent operator.
    """

    replaced: dict[str, Site] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    states: dict[str, int] = field(default_factory=dict)


def rewrite(
    lowered: LoweredModel, module_map: ModuleMap, recipe: Recipe
) -> tuple[ModelProto, dict[str, str]]:
    """Build the graph of a recipe.

    Args:
        lowered: the float graph, which stays as it is.
        module_map: modules that can be compressed.
        recipe: what the graph is made of.

    Returns:
        (graph, owner of each tensor). An owner is a module, or "quantize:TENSOR".
    """
    initializers = {tensor.name: tensor for tensor in lowered.proto.graph.initializer}
    graph = GraphBuilder(lowered, recipe.ranges, initializers)
    _replace_parameters(graph, recipe)
    rescaled = _readers_of_smoothed(module_map, recipe)
    plan = _Plan()
    ends = _removed_ends(lowered, module_map, recipe.masks)
    for module in module_map:
        touched = _touched(recipe, module.name) or module.name in rescaled
        _plan_module(plan, graph, module, recipe, touched)
    for node in lowered.proto.graph.node:
        output = node.output[0]
        site = plan.replaced.get(output)
        if site is not None and recipe.masks.dropped(site.owner):
            if site.owner in ends:
                graph.owner = site.owner
                zeros(graph, site, ends[site.owner])
        elif site is not None:
            config = recipe.candidate.config(site.owner)
            _add_site(graph, site, recipe, config.executed(module_map[site.owner].kind))
        elif output in plan.states:
            graph.copy(node, hidden_size=plan.states[output])
        elif output not in plan.dropped:
            graph.nodes.append(node)
    hold_apart(graph)
    join_attention(graph)
    return _assembled(graph), graph.owners


def _readers_of_smoothed(module_map: ModuleMap, recipe: Recipe) -> set[str]:
    """Return the modules that read a smoothed normalisation: their weights were multiplied."""
    smoothed = {name.rpartition(".")[0] for name in recipe.smoothed}
    readers: set[str] = set()
    for group in module_map.norms:
        if group.norm in smoothed:
            readers.update(group.readers)
    return readers


def _plan_module(
    plan: _Plan, graph: GraphBuilder, module: CompressibleModule, recipe: Recipe, touched: bool
) -> None:
    """Plan the sites of one module, and replace its weight at once if it is a constant."""
    for site in graph.lowered.sites.get(module.name, ()):
        for output in (site.node.output[0], site.output, *site.tail):
            graph.owners[output] = module.name
        if not touched and (site.name not in recipe.variants or recipe.others is None):
            continue
        if site.kind != "recurrent":
            plan.replaced[site.node.output[0]] = site
            outputs = {site.output, *site.absorbed, *site.tail}
            plan.dropped.update(outputs - {site.node.output[0]})
            continue
        graph.owner = site.owner
        recurrent(graph, site, recipe.variants[site.name])
        # This matrix reads the state, whose width the operator must know.
        if site.name.rpartition(".")[2].startswith("hh_"):
            state = recipe.masks.of(site.owner, "in")
            plan.states[site.tail[0]] = site.hidden if state is None else int(state.sum())


def _assembled(graph: GraphBuilder) -> ModelProto:
    """Return the file's graph: what the outputs need, with the functions and domains in use."""
    proto = ModelProto()
    proto.CopyFrom(graph.lowered.shell)
    outputs = {output.name for output in proto.graph.output}
    nodes, initializers = needed_parts(graph.nodes, graph.initializers.values(), outputs)
    proto.graph.node.extend(nodes)
    for tensor in initializers:
        proto.graph.initializer.append(graph.lowered.shared.filled(tensor))
    used = {node.op_type for node in proto.graph.node if node.domain == FUNCTIONS}
    proto.functions.extend(function for name, function in graph.functions.items() if name in used)
    known = {"", *[entry.domain for entry in proto.opset_import]}
    for domain in sorted({node.domain for node in proto.graph.node} - known):
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto


def _removed_ends(lowered: LoweredModel, module_map: ModuleMap, masks: Masks) -> dict[str, str]:
    """Return by last module of each removed expert the tensor that its first one reads."""
    ends = {}
    for group in module_map.groups:
        units: dict[int, list[str]] = {}
        for member in group.members:
            if member.side == "whole" and masks.dropped(member.name):
                units.setdefault(int(member.root[0]), []).append(member.name)
        ends.update({names[-1]: lowered.sites[names[0]][0].input for names in units.values()})
    return ends


def _touched(recipe: Recipe, name: str) -> bool:
    """Return True if a module is quantised, factorised, sparse or cut."""
    config = recipe.candidate.config(name)
    axes = (config.weight_bits, config.activation_bits, config.rank_ratio, config.sparsity)
    if axes != (32, 32, 1.0, 0.0):
        return True
    sides = ("out", "in", "gate", "whole")
    return any(recipe.masks.of(name, side) is not None for side in sides)


def _replace_parameters(graph: GraphBuilder, recipe: Recipe) -> None:
    """Write smoothed, trained and cut parameters of modules that are not compressed themselves."""
    for name, value in {**recipe.smoothed, **recipe.statistics, **(recipe.others or {})}.items():
        if name in graph.initializers and value.is_floating_point():
            graph.initializers[name] = numpy_helper.from_array(value.cpu().numpy(), name)
    for (name, side), mask in recipe.masks.kept.items():
        own = name in graph.lowered.sites
        parameters: tuple[str, ...] = () if own or side == "in" else ("bias",)
        for parameter in NORM_PARAMETERS if side == "channel" else parameters:
            _cut(graph, f"{name}.{parameter}", mask, 0)
        if not own and side != "channel":  # a transposed convolution: (in, out, *kernel)
            _cut(graph, f"{name}.weight", mask, int(side == "out"))


def _cut(graph: GraphBuilder, key: str, mask: Mask, dimension: int) -> None:
    if key in graph.initializers:
        graph.constant(key, np.compress(mask, graph.array(key), axis=dimension))


def _add_site(graph: GraphBuilder, site: Site, recipe: Recipe, config: ModuleConfig) -> None:
    """Add the operators of one compressed module at one site."""
    graph.owner = site.owner
    variant = recipe.variants[site.name]
    if site.kind == "linear":
        level = recipe.levels.get(site.owner)
        unsigned = recipe.forms.get(site.owner) is IntegerForm.UNSIGNED
        experts = recipe.masks.of(site.owner, "gate")
        static = config.activation_bits == 8 and config.static("linear")
        if recipe.rounds_products and static and len(variant.factors) == 1:
            static_linear(graph, site, variant, experts)
            return
        if recipe.rounds_products and static:  # no range is known between the factors
            config = replace(config, activation_mode="dynamic")
        linear(graph, site, variant, config, level, unsigned, experts)
    elif site.kind == "embedding":
        shared = site.owner in recipe.levels
        embedding(graph, site, variant, recipe.blocks.get(site.owner), shared)
    else:
        convolution(graph, site, variant, config, recipe.masks.of(site.owner, "out"))
