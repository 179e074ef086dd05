"""Build the ONNX graph of any candidate of one model.

`prepare.py` makes a `Builder` once per model. A graph has real weights, or placeholder weights for
the exact size and the latency of a candidate before any weight is compressed. `compressor.py` adds
the library that makes real weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from onnx import ModelProto
from torch import Tensor, nn

from autocompress.candidate import Candidate
from autocompress.compress.assemble.between import Place
from autocompress.compress.assemble.calls import Call
from autocompress.compress.assemble.simulated_model import ActivationPlan
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.prune.masks import Pruner
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.compress.quantize.smooth import Smoother
from autocompress.export.float_graph.large_files import file_bytes
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.float_graph.subgraphs import reads
from autocompress.export.genai.attention import attention_products
from autocompress.export.genai.phases import Feed, other_feeds, phase_feed
from autocompress.export.litert.chains import rounded_between, upper_ends, with_chains
from autocompress.export.litert.translate import Translated, owners_of, translated
from autocompress.export.lowering.lower import LoweredModel
from autocompress.export.lowering.placeholder import placeholder_variant
from autocompress.export.lowering.rewrite import Recipe, rewrite
from autocompress.export.module_kernels import ModuleKernels
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.results.files import MODEL_FILE, TFLITE_FILE
from autocompress.targets.kernels import KernelChoice
from autocompress.task.batches import Inputs

MULTIPLE_OF = {
    "filters": "conv",
    "neurons": "linear",
    "hidden units": "linear",
}  # kind of group -> kind of kernel


@dataclass
class Builder:
    """Build graphs from the exported, calibrated model.

    `dataclasses.replace` gives a builder with other kernels or forms; nothing that was computed for
    the old ones is taken over.

    Attributes:
        lowered: the float graph and the places of the modules in it.
        module_map: the modules and channel groups of the graph.
        evidence: the model and its calibration statistics.
        ranges: calibrated activation range by tensor of the graph.
        float_file: the float graph of the user's own model.
        kernels: the timed kernels of the target.
        multiples: multiple to which a width is rounded up, by kind of kernel.
        forms: integer forms that a latency table was measured with, by module; other modules take
            the fastest form.
        phase: of a decoder with a cache, whose latency decides; "" for other graphs.
        mixed: mix of phases that the times of kernels are of, in words; "" for no mix.
        flat_shapes: of the inputs by name, for files in the format of LiteRT; None for ONNX.
        integer_ends: True if inputs and outputs of such files are int8 where they are rounded.
        places: calls of functions by the tensor that they compute, for tensors between layers that
            such files may round; None if they round none.
    """

    lowered: LoweredModel
    module_map: ModuleMap
    evidence: Evidence
    ranges: Mapping[str, ActivationRange]
    float_file: SharedGraph
    kernels: KernelChoice
    multiples: Mapping[str, int] = field(default_factory=dict)
    forms: Mapping[str, IntegerForm] = field(default_factory=dict)
    phase: str = ""
    mixed: str = ""
    flat_shapes: Mapping[str, tuple[int, ...]] | None = None
    integer_ends: bool = False
    places: Mapping[str, Place] | None = None
    _sizes: dict[Candidate, int] = field(default_factory=dict, init=False, repr=False)
    _between: dict[Candidate, dict[str, str]] = field(default_factory=dict, init=False, repr=False)

    @property
    def baseline(self) -> bytes:
        """Return the content of the float file of the user's own model."""
        return self.written(self.float_file)

    @property
    def float_bytes(self) -> int:
        """Return the size of the float file."""
        return self.float_file.size_bytes if self.flat_shapes is None else len(self.baseline)

    @property
    def file_name(self) -> str:
        """Return the name of the model's file of a point."""
        return MODEL_FILE if self.flat_shapes is None else TFLITE_FILE

    def written(self, shared: SharedGraph) -> bytes:
        """Return the content of the file of a graph whose weights are those of a model.

        Args:
            shared: the graph.

        Raises:
            ExportError: as `content`.
        """
        return shared.content() if self.flat_shapes is None else self.content(shared.whole())

    def content(self, graph: ModelProto) -> bytes:
        """Return the content of the .tflite file of a graph, equal graphs as equal bytes.

        Args:
            graph: with its weights.

        Raises:
            ExportError: LiteRT has no operator for a node.
        """
        return self.flat(graph).content

    def flat(self, graph: ModelProto) -> Translated:
        """Return the .tflite file of a graph with the names of its tensors.

        Args:
            graph: with its weights.

        Raises:
            ExportError: LiteRT has no operator for a node.
        """
        assert self.flat_shapes is not None
        return translated(graph, self.flat_shapes, self.integer_ends)

    @property
    def teacher(self) -> nn.Module:
        """Return the float model, its fused modules split."""
        return self.evidence.model

    def latency_feed(self, inputs: Inputs) -> Feed:
        """Return the feed at which latency is measured.

        Args:
            inputs: of the model, in its own structure.

        Returns:
            Arrays by input name of the graph.
        """
        return phase_feed(self.lowered, inputs, self.phase)

    def other_feeds(self, inputs: Inputs) -> dict[str, Feed]:
        """Return further feeds at which files are timed, by the name of the phase of a decoder.

        Args:
            inputs: of the model, in its own structure.
        """
        return other_feeds(self.lowered, inputs, self.phase)

    @cached_property
    def module_kernels(self) -> ModuleKernels:
        """Return the kernels of the modules."""
        return ModuleKernels(self.lowered, self.kernels, self.forms)

    @cached_property
    def pruner(self) -> Pruner:
        """Return the masks of any candidate."""
        return Pruner(self.evidence, self.module_map)

    @cached_property
    def smoother(self) -> Smoother:
        """Return the smoothing factors of any candidate."""
        return Smoother(self.teacher, self.module_map, self.evidence.statistics)

    @cached_property
    def plan(self) -> ActivationPlan:
        """Return calls and activation ranges for the simulation."""
        calls, ends = {}, {}
        rounded = ("conv", "linear") if self.kernels.rows else ("conv",)  # outputs of kernels
        for owner, sites in self.lowered.sites.items():
            ends.update({site.output: self.lowered.upper_end(site) for site in sites})
            if all(site.kind in ("linear", "conv") for site in sites):
                calls[owner] = tuple(
                    Call(s.input, s.output if s.kind in rounded else "", self.lowered.norm(s))
                    for s in sites
                )
        if self.places:
            ends = {**upper_ends(self.lowered.proto), **ends}
        parts = (self.ranges, calls, self.module_kernels.rounds_blocks, ends)
        return ActivationPlan(*parts, self.kernels.rows, self.places or {}, self.between)

    def with_multiples(self, multiples: Mapping[str, int]) -> Builder:
        """Return a builder whose channel groups keep multiples of a number of units.

        Args:
            multiples: the number by kind of kernel ("linear", "conv"); 1 if a kind is missing.

        Returns:
            A new builder; this one is not changed.
        """
        groups = tuple(
            replace(group, multiple=multiples.get(MULTIPLE_OF.get(group.kind, ""), 1))
            for group in self.module_map.groups
        )
        return replace(
            self, module_map=replace(self.module_map, groups=groups), multiples=multiples
        )

    def recipe(
        self,
        candidate: Candidate,
        variants: Mapping[str, Variant],
        trained: Trained | None = None,
        levels: Mapping[str, int] | None = None,
        blocks: Mapping[str, int] | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> Recipe:
        """Collect the parts of a candidate's graph.

        Args:
            candidate: the configs of the modules.
            variants: compressed weights by site.
            trained: weights and ranges after recovery; it replaces `variants`.
            levels: accuracy level by module on the weight-only product; None takes the fastest.
            blocks: block size by packed embedding; None takes the fastest.
            statistics: means and variances of batch normalisations that differ from the float
                model's, by the name of the buffer; those of `trained` come first.

        Returns:
            The recipe for `build`.
        """
        variants = {**variants, **(trained.variants if trained else {})}
        ranges = {**self.ranges, **self.smoother.ranges(candidate, self.plan.inputs)}
        kernels, modules = self.module_kernels, self.module_map
        return Recipe(
            candidate,
            variants,
            trained.masks if trained else self.pruner.masks(candidate),
            {**ranges, **(trained.ranges if trained else {})},
            kernels.levels(modules, candidate) if levels is None else levels,
            kernels.blocks(modules, candidate) if blocks is None else blocks,
            kernels.integer_forms(modules, candidate, variants),
            self.smoother.parameters(candidate),
            statistics or {},
            trained.others if trained else None,
            self.kernels.rows,
        )

    def build(self, recipe: Recipe) -> ModelProto:
        """Build the graph of a recipe.

        Args:
            recipe: made by `recipe`.

        Returns:
            The content of the ONNX file.
        """
        return self.build_owned(recipe)[0]

    def build_owned(self, recipe: Recipe) -> tuple[ModelProto, dict[str, str]]:
        """Build the graph of a recipe, and say whose nodes it holds.

        Args:
            recipe: made by `recipe`.

        Returns:
            The content of the ONNX file, and the module by the name of each tensor.
        """
        graph, owners = rewrite(self.lowered, self.module_map, recipe)
        if self.places:
            plain = Candidate(recipe.candidate.modules)
            if plain not in self._between:
                self._between[plain] = rounded_between(graph, self.ranges, self.places)
            graph = with_chains(graph, recipe.ranges, self._between[plain])
        return graph, owners

    def between(self, candidate: Candidate) -> dict[str, str]:
        """Return the tensors between layers that the file of a candidate rounds.

        Args:
            candidate: the configs of the modules.

        Returns:
            Name of the range by tensor.
        """
        plain = Candidate(candidate.modules)
        if not self.places or not plain.modules:
            return {}
        if plain not in self._between:
            self.placeholder_graph(plain, noise=False)
        return self._between[plain]

    def placeholder_graph(
        self, candidate: Candidate, noise: bool = True
    ) -> tuple[ModelProto, dict[str, str]]:
        """Build the graph of a candidate without compressing a weight.

        Args:
            candidate: the configs of the modules.
            noise: fill weights with random numbers, on which kernels take their usual time; False
                fills them with zeros, which is ten times faster and takes the same bytes.

        Returns:
            The graph, and the module by the name of each tensor.
        """
        masks = self.pruner.masks(candidate)
        variants = {}
        for module in self.module_map if candidate.modules else ():
            config = candidate.config(module.name)
            form = self.module_kernels.integer_form(module)
            for site in self.lowered.sites[module.name]:
                variants[site.name] = placeholder_variant(module, config, masks, form, noise)
        return self.build_owned(self.recipe(candidate, variants))

    def flat_noise(self, candidate: Candidate) -> tuple[bytes, Mapping[str, str]]:
        """Return the file for LiteRT of a candidate with random weights, to be profiled.

        Args:
            candidate: the configs of the modules.

        Returns:
            The content, and the module by the name of each tensor.
        """
        graph, owners = self.placeholder_graph(candidate)
        flat = self.flat(graph)
        return flat.content, owners_of(flat, owners)

    def size_bytes(self, candidate: Candidate) -> int:
        """Return the exact size of a candidate's file, with the one of its weights beside it.

        Args:
            candidate: the configs of the modules; its distillation plays no part.

        Returns:
            Bytes.
        """
        plain = Candidate(candidate.modules)
        if plain not in self._sizes:
            graph = self.placeholder_graph(plain, noise=False)[0]
            written = self.flat_shapes is None
            self._sizes[plain] = file_bytes(graph) if written else len(self.content(graph))
        return self._sizes[plain]

    @cached_property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """Return (producer, consumer) of the paths between modules through other operators.

        The producer of a graph input is "".
        """
        owners = {s.output: owner for owner, sites in self.lowered.sites.items() for s in sites}
        inputs = set(self.lowered.input_names)
        edges: dict[tuple[str, str], None] = {}
        for owner, sites in self.lowered.sites.items():
            frontier, seen = [site.input for site in sites], set()
            while frontier:
                value = frontier.pop()
                if value in seen:
                    continue
                seen.add(value)
                if value in owners or value in inputs:
                    edges[owners.get(value, ""), owner] = None
                elif value in self.lowered.producer:
                    frontier += reads(self.lowered.producer[value])
        return tuple(edges)

    @cached_property
    def joined(self) -> tuple[tuple[str, ...], ...]:
        """Return the modules that one kernel computes where all are packed in the same form."""
        known = {module.name for module in self.module_map}
        return tuple(names for names in attention_products(self.lowered) if known.issuperset(names))

    def signature(self, module: CompressibleModule) -> str:
        """Describe a module's kernel for the latency model, apart from widths, form and rows.

        Args:
            module: a module of the exported model.

        Returns:
            Kind, weight shape, attributes, fused operators, bias and number of calls, as one text.
        """
        site, *more = self.lowered.sites[module.name]
        parts = [module.kind, "x".join(map(str, module.weight_shape))]
        for attribute in site.node.attribute:
            if attribute.name in ("strides", "dilations", "group"):
                values = "x".join(map(str, attribute.ints)) or attribute.i
                parts.append(f"{attribute.name} {values}")
        producer = self.lowered.producer
        parts += [producer[value].op_type for value in site.tail if value in producer]
        parts += ["bias"] * (site.bias is not None)
        parts += [f"{1 + len(more)} calls"] * bool(more)
        parts += [self.mixed] * bool(self.mixed)
        return " ".join(parts)
