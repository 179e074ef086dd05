"""A compressed model assembled from the library by swapping tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.calls import Call, CallRanges, Calls
from autocompress.compress.assemble.fake_quant import SimulatedModule
from autocompress.compress.assemble.library import (
    Variant,
    VariantLibrary,
    variant_from_tensors,
    variant_to_tensors,
)
from autocompress.compress.prune.masks import Masks, Pruner
from autocompress.compress.quantize.activation import ActivationRange, RangeQuantizer
from autocompress.compress.quantize.integer_bias import bias_error
from autocompress.compress.quantize.integer_matmul import Rounding
from autocompress.compress.quantize.smooth import Smoother
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.model.weights import side_dimension
from autocompress.task.copies import copied


def _never(module: CompressibleModule, config: ModuleConfig) -> bool:
    return False


@dataclass(frozen=True)
class ActivationPlan:
    """What the exported graph knows about activations.

    Attributes:
        ranges: calibrated range by tensor of the graph.
        calls: the calls of each linear or convolutional module, in their order.
        rounds_blocks: whether a module under a config runs on a weight-only kernel that rounds inputs to 8 bits per block.
    """

    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)
    calls: Mapping[str, tuple[Call, ...]] = field(default_factory=dict)
    rounds_blocks: Callable[[CompressibleModule, ModuleConfig], bool] = _never

    @property
    def inputs(self) -> dict[str, str]:
        """The tensor that each module reads in its first call."""
        return {owner: calls[0].reads for owner, calls in self.calls.items()}


@dataclass(frozen=True)
class Trained:
    """What recovery changed: variants by module, other parameters by name, ranges by tensor, and the channels that are kept."""

    variants: dict[str, Variant]
    others: dict[str, Tensor]
    ranges: dict[str, ActivationRange]
    masks: Masks

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat tensors for a safetensors file; `from_tensors` reverses it."""
        tensors = {f"other|{name}": value for name, value in self.others.items()}
        for name, variant in self.variants.items():
            tensors.update(variant_to_tensors(variant, f"variant|{name}|"))
        tensors = _kept_once(tensors)
        for tensor, at in self.ranges.items():
            tensors[f"range|{tensor}"] = torch.tensor(
                [at.scale, at.zero_point, at.low, at.high], dtype=torch.float64
            )
        for (name, side), mask in self.masks.kept.items():
            tensors[f"mask|{name}|{side}"] = torch.from_numpy(mask)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Trained:
        """Reverse of `to_tensors`."""
        again = {
            key.partition("|")[2]: value.numpy().tobytes().decode()
            for key, value in tensors.items()
            if key.startswith("same|")
        }
        tensors = {**tensors, **{key: tensors[known] for key, known in again.items()}}
        # A module's name may hold any character, so what surrounds it is cut off from both ends.
        whole = "variant|"
        names = dict.fromkeys(
            key.removeprefix(whole).rpartition("|")[0] for key in tensors if key.startswith(whole)
        )
        variants = {name: variant_from_tensors(tensors, f"variant|{name}|") for name in names}
        others = {
            key.partition("|")[2]: value
            for key, value in tensors.items()
            if key.startswith("other|")
        }
        ranges, kept = {}, {}
        for key, value in tensors.items():
            kind, _, name = key.partition("|")
            if kind == "range":
                scale, zero, low, high = value.tolist()
                ranges[name] = ActivationRange(scale, int(zero), low, high)
            elif kind == "mask":
                name, _, side = name.rpartition("|")
                kept[name, side] = value.numpy()
        return cls(variants, others, ranges, Masks(kept))


def _kept_once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, and under "same|" and its other names the first name: safetensors refuses memory that tensors share."""
    found: dict[str, Tensor] = {}
    first: dict[tuple[int, torch.Size, torch.dtype, tuple[int, ...]], str] = {}
    for name, value in tensors.items():
        known = (
            first.setdefault((value.data_ptr(), value.shape, value.dtype, value.stride()), name)
            if value.numel()
            else name
        )
        if known != name:
            found[f"same|{name}"] = torch.frombuffer(bytearray(known.encode()), dtype=torch.uint8)
        else:
            part = value.untyped_storage().nbytes() != value.numel() * value.element_size()
            found[name] = value.contiguous().clone() if part else value.contiguous()
    return found


@dataclass(frozen=True)
class FoldedNorm:
    """A hook behind a normalisation: where one of `convolutions` has it folded in, its output is what the integer kernel rounds."""

    convolutions: tuple[SimulatedModule, ...]

    def __call__(
        self, norm: Any, args: tuple[Any, ...], named: Mapping[str, Any], output: Tensor
    ) -> Tensor:
        """Round `output`; unchanged where what the normalisation reads is not from an integer convolution."""
        read = args[0] if args else named["input"]
        waiting = [
            (c, found) for c in self.convolutions for found in c.unrounded if found.output is read
        ]
        if not waiting:
            return output
        convolution, found = waiting[-1]
        convolution.unrounded.remove(found)
        gain = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
        shift = ((0.0 if found.bias is None else found.bias) - norm.running_mean) * gain + (
            0.0 if norm.bias is None else norm.bias
        )
        error = bias_error(shift, found.scale * gain.abs(), found.quantizer.at.scale)
        rounded: Tensor = found.quantizer(output + error.view(-1, *[1] * (output.dim() - 2)))
        return rounded


class SimulatedModel:
    """A copy of `teacher` whose compressible modules are `SimulatedModule`s, with one range quantizer per tensor."""

    def __init__(
        self, teacher: nn.Module, kinds: Mapping[str, tuple[str, str]], plan: ActivationPlan
    ) -> None:
        """`kinds`: (kind, name of the module under whose name it is planned) by module name."""
        self.quantizers = {tensor: RangeQuantizer(at) for tensor, at in plan.ranges.items()}
        self.base_ranges = dict(plan.ranges)
        self.owners = {name: owner for name, (_, owner) in kinds.items()}
        self.model, rounding, order = copied(teacher, None), Rounding(), Calls()
        self.model.register_forward_pre_hook(order.restart)
        self.simulated: dict[str, SimulatedModule] = {}
        folded: dict[str, list[SimulatedModule]] = {}
        for name, (kind, owner) in kinds.items():
            calls = plan.calls.get(owner, ())
            ranges = [
                CallRanges(self.quantizers[c.reads], self.quantizers.get(c.writes), c.norm != "")
                for c in calls
            ]
            self.simulated[name] = SimulatedModule(
                teacher.get_submodule(name), kind, owner, ranges, order, rounding
            )
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, self.simulated[name])
            for norm in dict.fromkeys(call.norm for call in calls if call.norm):
                folded.setdefault(norm, []).append(self.simulated[name])
        for norm, convolutions in folded.items():
            self.model.get_submodule(norm).register_forward_hook(
                FoldedNorm(tuple(convolutions)), with_kwargs=True
            )
        self.state = {name: value.clone() for name, value in self.model.state_dict().items()}

    def set_variant(
        self,
        name: str,
        owner: str,
        variant: Variant,
        config: ModuleConfig,
        masks: Masks,
        block_size: int,
    ) -> None:
        """Compute with `variant` in module `name`, compressed as `owner`."""
        sides = (masks.of(owner, "out"), masks.of(owner, "in"))
        self.simulated[name].set_variant(
            variant, config, sides, block_size, masks.of(owner, "gate")
        )

    def load(self, changed: Mapping[str, Tensor], masks: Masks) -> None:
        """The original parameters outside the simulated modules, but for those in `changed`, without what pruned channels feed."""
        state = {**self.state, **changed}
        for (name, side), mask in masks.kept.items():
            if side == "in" and name not in self.simulated:
                weight = state[f"{name}.weight"]
                gone = torch.from_numpy(~mask).nonzero().flatten().to(weight.device)
                state[f"{name}.weight"] = weight.index_fill(
                    side_dimension(self.model.get_submodule(name), side), gone, 0.0
                )
        self.model.load_state_dict(state, strict=True)

    def set_ranges(self, changed: Mapping[str, ActivationRange]) -> None:
        """The calibrated ranges, but for those in `changed`."""
        for tensor, quantizer in self.quantizers.items():
            quantizer.factor = None
            quantizer.at = changed.get(tensor, self.base_ranges[tensor])


class Stitcher(SimulatedModel):
    """A candidate costs a swap, not a compression.

    The order on one module is prune, smooth, factorise, (train,) quantise. `teacher`, the model itself, is never changed.
    """

    def __init__(
        self,
        teacher: nn.Module,
        module_map: ModuleMap,
        library: VariantLibrary,
        plan: ActivationPlan | None = None,
    ) -> None:
        self.teacher = teacher
        self.module_map = module_map
        self.library = library
        self.plan = plan or ActivationPlan()
        self.pruner = Pruner(library.evidence, module_map)
        self.masks = Masks({})
        self.smoother = Smoother(library.model, module_map, library.evidence.statistics)
        kinds = {
            name: (module.kind, module.name)
            for module in module_map
            for name in (module.name, *module.aliases)
        }
        super().__init__(teacher, kinds, self.plan)

    def ranges(
        self, candidate: Candidate, trained: Trained | None = None
    ) -> dict[str, ActivationRange]:
        """Range of every tensor under `candidate`."""
        smoothed = self.smoother.ranges(candidate, self.plan.inputs)
        return {**self.base_ranges, **smoothed, **(trained.ranges if trained else {})}

    def apply(self, candidate: Candidate, trained: Trained | None = None) -> nn.Module:
        """The model under `candidate`; `trained` replaces what recovery changed."""
        self.masks = masks = trained.masks if trained else self.pruner.masks(candidate)
        self.set_ranges(self.ranges(candidate, trained))
        for module in self.module_map:
            config = candidate.config(module.name)
            block_size = config.group_size if self.plan.rounds_blocks(module, config) else 0
            for name in (module.name, *module.aliases):
                variant = (trained.variants.get(name) if trained else None) or self.variant(
                    name, module.name, candidate, masks
                )
                self.set_variant(name, module.name, variant, config, masks, block_size)
        self.load(
            {**self.smoother.parameters(candidate), **(trained.others if trained else {})}, masks
        )
        return self.model

    def variant(
        self, name: str, owner: str, candidate: Candidate, masks: Masks | None = None
    ) -> Variant:
        """The library's variant of `name`, compressed as its owner (another name where weights are tied); `masks` of the candidate where
        they are known."""
        masks = self.pruner.masks(candidate) if masks is None else masks
        variant = self.library.get(
            owner, candidate.config(owner), masks, self.smoother.of(owner, candidate)
        )
        return variant if name == owner else Variant(variant.factors, self.library.bias(name, None))

    def start_training(self, candidate: Candidate) -> None:
        """Make the weights, scales and static ranges of the applied candidate trainable in place."""
        masks = self.masks
        for module in self.module_map:
            if masks.dropped(module.name):
                continue
            smoothed = self.smoother.of(module.name, candidate)
            factors = self.library.float_weight(
                module.name, candidate.config(module.name), masks, smoothed
            ).factors
            first = self.simulated[module.name]
            first.start_training(factors)
            for alias in module.aliases:
                self.simulated[alias].start_training(factors)
                self.simulated[alias].trained = first.trained
                self.simulated[alias].trained_steps = first.trained_steps

    def trained_state(self) -> Trained:
        """What training left of the applied candidate."""
        variants = {name: module.trained_variant() for name, module in self.simulated.items()}
        others = {
            name: value.detach().cpu().clone()
            for name, value in self.model.state_dict().items()
            if name in self.state
        }
        ranges = {
            tensor: q.learned() for tensor, q in self.quantizers.items() if q.factor is not None
        }
        return Trained(variants, others, ranges, self.masks)
