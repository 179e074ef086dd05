"""Any candidate of one model as ONNX: with real weights, or with noise for its exact size and its latency before a weight is touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from onnx import ModelProto
from torch import nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.calls import Call
from autocompress.compress.assemble.library import LIBRARY_BYTES, Variant, VariantLibrary
from autocompress.compress.assemble.stitch import ActivationPlan, Stitcher, Trained
from autocompress.compress.calibrate.evidence import Evidence, task_losses
from autocompress.compress.calibrate.statistics import CALIBRATION_SAMPLES, collect_statistics
from autocompress.compress.prune.masks import Masks, Pruner
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.compress.quantize.smooth import Smoother
from autocompress.errors import ExportError
from autocompress.export.float_graph.float_cache import exported
from autocompress.export.float_graph.subgraphs import reads
from autocompress.export.float_graph.trace import ordered_outputs
from autocompress.export.lowering.blank import blank_variant
from autocompress.export.lowering.calibrate import calibrate
from autocompress.export.lowering.called import as_called
from autocompress.export.lowering.lower import LoweredModel, find_norms, lower
from autocompress.export.lowering.operators import gather_block
from autocompress.export.lowering.rewrite import Recipe, rewrite
from autocompress.integer_form import IntegerForm
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.model.plain.plain import plain_model
from autocompress.model.plain.split import fused_modules
from autocompress.targets.device.sessions import open_session
from autocompress.targets.kernels import FOLDED, KernelChoice
from autocompress.task.batches import Inputs, batch_size, input_tensors
from autocompress.task.calls import run_model
from autocompress.task.copies import copied
from autocompress.task.free_shapes import free_dimensions
from autocompress.task.outputs import relative_difference
from autocompress.task.task import Task

WEIGHT_ONLY_BITS = (2, 4, 8)
MULTIPLE_OF = {
    "filters": "conv",
    "neurons": "linear",
    "hidden units": "linear",
}  # kind of group -> kind of kernel


@dataclass
class Builder:
    """The lowered model with its calibrated ranges; `baseline` is the float file of the user's own model.

    `forms` are the integer forms that a latency table was measured with, by module; the others are the kernels' choice.
    """

    lowered: LoweredModel
    module_map: ModuleMap
    evidence: Evidence
    ranges: Mapping[str, ActivationRange]
    baseline: bytes
    kernels: KernelChoice
    multiples: Mapping[str, int] = field(default_factory=dict)
    forms: Mapping[str, IntegerForm] = field(default_factory=dict)
    _sizes: dict[Candidate, int] = field(default_factory=dict)

    @property
    def teacher(self) -> nn.Module:
        """The model, its fused modules split."""
        return self.evidence.model

    @cached_property
    def pruner(self) -> Pruner:
        """Masks of any candidate."""
        return Pruner(self.evidence, self.module_map)

    @cached_property
    def smoother(self) -> Smoother:
        """Smoothing factors of any candidate."""
        return Smoother(self.teacher, self.module_map, self.evidence.statistics)

    def with_multiples(self, multiples: Mapping[str, int]) -> Builder:
        """The same, but channel groups keep multiples of as many units as their kind of module likes."""
        groups = tuple(
            replace(g, multiple=multiples.get(MULTIPLE_OF.get(g.kind, ""), 1))
            for g in self.module_map.groups
        )
        return replace(
            self, module_map=replace(self.module_map, groups=groups), multiples=multiples, _sizes={}
        )

    @cached_property
    def plan(self) -> ActivationPlan:
        """What the simulation must know of the graph."""
        calls = {
            owner: tuple(
                Call(
                    site.input, site.output if site.kind == "conv" else "", self.lowered.norm(site)
                )
                for site in sites
            )
            for owner, sites in self.lowered.sites.items()
            if sites[0].kind in ("linear", "conv")
        }
        return ActivationPlan(self.ranges, calls, self.rounds_blocks)

    def library(
        self,
        folder: Path | None = None,
        memory_bytes: int = LIBRARY_BYTES,
        forms: Mapping[str, IntegerForm] | None = None,
    ) -> VariantLibrary:
        """Return the library of the model's variants, with the integers that `forms` state, else those of the target's fastest kernels."""

        def form(name: str) -> IntegerForm:
            return (
                self.integer_form(self.module_map[name])
                if forms is None
                else forms.get(name, IntegerForm.SIGNED)
            )

        return VariantLibrary(self.evidence, folder, form, memory_bytes)

    def integer_form(self, module: CompressibleModule) -> IntegerForm:
        """Return which integers the 8-bit kernel of a module may hold; nothing else decides it."""
        if module.name in self.forms:
            return self.forms[module.name]
        return self.kernels.integer_form(
            self._matmul_shape(module) if module.kind == "linear" else None
        )

    def weight_only_level(self, module: CompressibleModule, config: ModuleConfig) -> int | None:
        """Accuracy level of the weight-only kernel where it is the fastest for float inputs and groups of weights, else None."""
        fits = (
            config.activation_bits == 32
            and config.group_size > 0
            and config.weight_bits in WEIGHT_ONLY_BITS
        )
        if not fits or config.sparsity > 0 or module.kind != "linear":
            return None
        level = self.kernels.matmul_level(
            *self._matmul_shape(module), config.weight_bits, config.group_size
        )
        return None if level == FOLDED else level

    def rounds_blocks(self, module: CompressibleModule, config: ModuleConfig) -> bool:
        """Whether the weight-only kernel of a module under `config` rounds inputs to 8 bits per block."""
        level = self.weight_only_level(module, config)
        shape = self._matmul_shape(module)
        return level is not None and self.kernels.matmul_rounds_inputs(
            *shape, config.weight_bits, config.group_size, level
        )

    def _matmul_shape(self, module: CompressibleModule) -> tuple[int, int, int]:
        """(rows, columns, outputs) of one call on the example inputs."""
        rows = max(1, module.positions // len(self.lowered.sites[module.name]))
        return rows, module.weight_shape[1], module.weight_shape[0]

    def table_block(self, module: CompressibleModule, config: ModuleConfig) -> int | None:
        """Block size of an embedding whose packed lookup is at least as fast as the unpacked one, else None."""
        whole = config.rank_ratio >= 1 and config.sparsity == 0
        if module.kind != "embedding" or config.weight_bits not in WEIGHT_ONLY_BITS or not whole:
            return None
        entries, width = module.weight_shape
        block = gather_block(width, config)
        if block is None:
            return None
        lookups = max(1, module.positions // len(self.lowered.sites[module.name]))
        packed = self.kernels.gather_stays_packed(
            lookups, entries, width, config.weight_bits, block
        )
        return block if packed else None

    def recipe(
        self,
        candidate: Candidate,
        variants: Mapping[str, Variant],
        trained: Trained | None = None,
        levels: Mapping[str, int] | None = None,
        blocks: Mapping[str, int] | None = None,
        forms: Mapping[str, IntegerForm] | None = None,
    ) -> Recipe:
        """What the file of `candidate` is made of; `levels`, `blocks`, `forms` state the kernels, else the target's fastest are taken."""
        variants = {**variants, **(trained.variants if trained else {})}
        return Recipe(
            candidate,
            variants,
            trained.masks if trained else self.pruner.masks(candidate),
            {
                **self.ranges,
                **self.smoother.ranges(candidate, self.plan.inputs),
                **(trained.ranges if trained else {}),
            },
            _chosen(self.module_map, candidate, self.weight_only_level)
            if levels is None
            else levels,
            _chosen(self.module_map, candidate, self.table_block) if blocks is None else blocks,
            self._forms(candidate, variants) if forms is None else forms,
            self.smoother.parameters(candidate),
            trained.others if trained else None,
        )

    def _forms(
        self, candidate: Candidate, variants: Mapping[str, Variant]
    ) -> dict[str, IntegerForm]:
        """The form of the integer weights of each module whose kernel multiplies integers.

        Weights that were trained in a wider form than this process would choose keep it, so that what a file says of itself holds.
        """
        found = {}
        for module in self.module_map:
            if not candidate.config(module.name).integer(module.kind):
                continue
            form = self.integer_form(module)
            factors = variants[module.name].factors if module.name in variants else ()
            if form is IntegerForm.REDUCED and not all(
                form.holds(factor.int8()) for factor in factors
            ):
                form = IntegerForm.UNSIGNED if module.kind == "linear" else IntegerForm.SIGNED
            found[module.name] = form
        return found

    def build(self, recipe: Recipe) -> ModelProto:
        """The file's content."""
        return rewrite(self.lowered, self.module_map, recipe)[0]

    def blank(self, candidate: Candidate, noise: bool = True) -> tuple[ModelProto, dict[str, str]]:
        """(graph, owner of each tensor) with weights of the right shapes and no meaning: noise, or zeros."""
        masks = self.pruner.masks(candidate)
        variants = {
            site.name: self._blank(module, candidate.config(module.name), masks, noise)
            for module in self.module_map
            for site in self.lowered.sites[module.name]
        }
        return rewrite(self.lowered, self.module_map, self.recipe(candidate, variants))

    def _blank(
        self, module: CompressibleModule, config: ModuleConfig, masks: Masks, noise: bool
    ) -> Variant:
        return blank_variant(module, config, masks, self.integer_form(module), noise)

    def size_bytes(self, candidate: Candidate) -> int:
        """Size of the candidate's file."""
        plain = Candidate(candidate.modules)
        if plain not in self._sizes:
            self._sizes[plain] = self.blank(plain, noise=False)[0].ByteSize()
        return self._sizes[plain]

    @cached_property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """(producer, consumer) for what flows from module to module through other operators; a graph input has producer ""."""
        made = {site.output: owner for owner, sites in self.lowered.sites.items() for site in sites}
        inputs = set(self.lowered.input_names)
        found: dict[tuple[str, str], None] = {}
        for owner, sites in self.lowered.sites.items():
            frontier, seen = [site.input for site in sites], set()
            while frontier:
                value = frontier.pop()
                if value in seen:
                    continue
                seen.add(value)
                if value in made or value in inputs:
                    found[made.get(value, ""), owner] = None
                elif value in self.lowered.producer:
                    frontier += reads(self.lowered.producer[value])
        return tuple(found)

    def signature(self, module: CompressibleModule) -> str:
        """What the time of a module's kernel depends on besides widths, form and rows: kind, shape, attributes, and what is fused to it."""
        site, *more = self.lowered.sites[module.name]
        parts = [module.kind, "x".join(map(str, module.weight_shape))]
        for attribute in site.node.attribute:
            if attribute.name in ("strides", "dilations", "group"):
                parts.append(
                    f"{attribute.name} {'x'.join(map(str, attribute.ints)) or attribute.i}"
                )
        parts += [
            self.lowered.producer[value].op_type
            for value in site.tail
            if value in self.lowered.producer
        ]
        return " ".join(
            parts + ["bias"] * (site.bias is not None) + [f"{1 + len(more)} calls"] * bool(more)
        )


def _chosen(
    module_map: ModuleMap,
    candidate: Candidate,
    choose: Callable[[CompressibleModule, ModuleConfig], int | None],
) -> dict[str, int]:
    found = {module.name: choose(module, candidate.config(module.name)) for module in module_map}
    return {name: value for name, value in found.items() if value is not None}


def prepare(
    task: Task,
    module_map: ModuleMap,
    kernels: KernelChoice,
    device: torch.device | None = None,
    activation_range: str = "squared_error",
    graphs: Path | None = None,
    report: Callable[[str, float], None] = lambda what, share: None,
) -> Builder:
    """Export and calibrate once; modules whose weight the graph does not show are left out of the map.

    `activation_range` is how static ranges are chosen (as `ModuleConfig.weight_range`); folder `graphs` keeps exported graphs.
    """
    report("exporting the model", 0.0)
    teacher, outputs = (
        plain_model(task.model, task.example_inputs),
        tuple(task.output_weights or ()),
    )
    free = free_dimensions(task)
    lowered = lower(teacher, task.example_inputs, module_map, outputs, graphs, free)
    lowered = as_called(lowered, teacher, module_map, task.example_inputs)
    module_map = module_map.restricted_to(lowered.sites)
    if not module_map.modules:
        names = ", ".join(unseen.name for unseen in module_map.uncovered if unseen.name)
        raise ExportError(
            f"export: no module can be compressed, since the exported graph shows none as it is in the model; it has {names}"
        )
    module_map = replace(module_map, norms=find_norms(lowered, module_map))
    report("calibrating", 0.0)
    samples = [
        inputs for inputs, _ in task.first_samples(task.calibration_batches(), CALIBRATION_SAMPLES)
    ]
    if not lowered.dynamic_batch:
        samples = [task.example_inputs, *samples]
    if task.batch_first is False:  # the graph takes the example's shape, to which nothing is cut
        shapes = [tensor.shape for tensor in input_tensors(task.example_inputs)]
        samples = [
            inputs
            for inputs in samples
            if [tensor.shape for tensor in input_tensors(inputs)] == shapes
        ]
    ranges = calibrate(lowered, samples, batch_size(task.example_inputs), activation_range)
    device = device or torch.device("cpu")
    statistics = collect_statistics(teacher.to(device), module_map, samples, device)
    teacher.cpu()
    baseline = lowered.proto
    if fused_modules(task.model):
        baseline = exported(copied(task.model), task.example_inputs, outputs, graphs, free).proto
    evidence = Evidence(teacher, statistics, task_losses(task))
    builder = Builder(lowered, module_map, evidence, ranges, baseline.SerializeToString(), kernels)
    report("checking what can be pruned", 0.0)
    return _with_prunable_groups(builder, samples[0], outputs)


def _with_prunable_groups(builder: Builder, inputs: Inputs, names: Sequence[str]) -> Builder:
    """The same builder, in which groups that the exported graph cannot lose are not pruned.

    A graph may hold a width as a constant, or couple channels in a way that the dependency graph did not see; so about half of
    every group is removed and the file compared with the simulation, group by group where they differ. The count that is left has no
    divisor in common with the count before: a view that splits the width into parts would still fit half of it, and not a third.
    """
    groups = [group for group in builder.module_map.groups if group.reason is None]
    if not groups or _prunes(builder, inputs, groups, names):
        return builder
    bad = {group.name for group in groups if not _prunes(builder, inputs, [group], names)}
    kept = tuple(
        g.but("the exported graph does not compute the same without half of it")
        if g.name in bad
        else g
        for g in builder.module_map.groups
    )
    return replace(builder, module_map=replace(builder.module_map, groups=kept), _sizes={})


def _prunes(
    builder: Builder, inputs: Inputs, groups: list[ChannelGroup], names: Sequence[str]
) -> bool:
    # By magnitude: which units go does not matter here, and both sides must choose the same.
    candidate = Candidate.of(
        {
            group.name: ModuleConfig(pruning_ratio=_uneven_ratio(group), importance="l2")
            for group in groups
        }
    )
    stitcher = Stitcher(
        builder.teacher, builder.module_map, VariantLibrary(Evidence(builder.teacher))
    )
    try:
        with torch.no_grad():
            result = run_model(stitcher.apply(candidate), inputs)
        proto = builder.build(
            builder.recipe(candidate, stitched_variants(builder, stitcher, candidate))
        )
        outputs = open_session(proto.SerializeToString(), silent=True).run(
            None, builder.lowered.feed(inputs)
        )
    except Exception:
        return False  # PyTorch or ONNX Runtime refuses it: shapes do not fit any more
    expected = [output.tensor.numpy() for output in ordered_outputs(result, names)]
    return all(
        relative_difference(found, wanted, 1.0) <= 1e-3
        for found, wanted in zip(outputs, expected, strict=False)
    )


def _uneven_ratio(group: ChannelGroup) -> float:
    """What to remove so that about half of the units are left, a count that divides nothing which the whole count divides into."""
    counts = [count for count in range(1, group.units) if math.gcd(count, group.units) == 1]
    left = min(counts, key=lambda count: (abs(2 * count - group.units), -count), default=1)
    return 1 - left / group.units


def stitched_variants(
    builder: Builder, stitcher: Stitcher, candidate: Candidate
) -> dict[str, Variant]:
    """The library's variant of every site."""
    sites = [site for found in builder.lowered.sites.values() for site in found]
    return {site.name: stitcher.variant(site.name, site.owner, candidate) for site in sites}
