"""A compressed model assembled from the library by swapping tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.activation import ActivationRange, RangeQuantizer
from autocompress.compress.importance import side_dimension
from autocompress.compress.integer import Rounding
from autocompress.compress.library import Variant, VariantLibrary, variant_from_tensors, variant_to_tensors
from autocompress.compress.prune import Masks, Pruner
from autocompress.compress.simulate import SimulatedModule
from autocompress.compress.smooth import Smoother
from autocompress.modules import CompressibleModule, ModuleMap


def _never(module: CompressibleModule, config: ModuleConfig) -> bool:
    return False


@dataclass(frozen=True)
class ActivationPlan:
    """What the exported graph knows about activations.

    Attributes:
        ranges: calibrated range by tensor of the graph.
        inputs: the tensor that each linear or convolutional module reads.
        outputs: for each convolution, (module whose output its integer kernel rounds: itself or the normalisation folded into
            it, tensor).
        rounds_blocks: whether a module under a config runs on a weight-only kernel that rounds inputs to 8 bits per block.
    """

    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    rounds_blocks: Callable[[CompressibleModule, ModuleConfig], bool] = _never


@dataclass(frozen=True)
class Trained:
    """What recovery changed: variants by module, other parameters by name, ranges by tensor, and the channels that are kept."""

    variants: dict[str, Variant]
    others: dict[str, Tensor]
    ranges: dict[str, ActivationRange]
    masks: Masks

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat tensors for a safetensors file; `from_tensors` reverses it."""
        tensors = {f"other|{name}": value.contiguous() for name, value in self.others.items()}
        for tensor, at in self.ranges.items():
            tensors[f"range|{tensor}"] = torch.tensor([at.scale, at.zero_point, at.low, at.high], dtype=torch.float64)
        for name, variant in self.variants.items():
            tensors.update(variant_to_tensors(variant, f"variant|{name}|"))
        for (name, side), mask in self.masks.kept.items():
            tensors[f"mask|{name}|{side}"] = torch.from_numpy(mask)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Trained:
        """Reverse of `to_tensors`."""
        # A module's name may hold any character, so what surrounds it is cut off from both ends.
        whole = "variant|"
        names = dict.fromkeys(key.removeprefix(whole).rpartition("|")[0] for key in tensors if key.startswith(whole))
        variants = {name: variant_from_tensors(tensors, f"variant|{name}|") for name in names}
        others = {key.partition("|")[2]: value for key, value in tensors.items() if key.startswith("other|")}
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


class SimulatedModel:
    """A copy of `teacher` whose compressible modules are `SimulatedModule`s, with one range quantizer per tensor."""

    def __init__(self, teacher: nn.Module, kinds: Mapping[str, tuple[str, str]], plan: ActivationPlan) -> None:
        """`kinds`: (kind, name of the module under whose name it is planned) by module name."""
        self.quantizers = {tensor: RangeQuantizer(at) for tensor, at in plan.ranges.items()}
        self.base_ranges = dict(plan.ranges)
        self.owners = {name: owner for name, (_, owner) in kinds.items()}
        self.model, rounding = copy.deepcopy(teacher).eval(), Rounding()
        self.simulated: dict[str, SimulatedModule] = {}
        for name, (kind, owner) in kinds.items():
            read = self.quantizers.get(plan.inputs.get(owner, ""))
            rounded, tensor = plan.outputs.get(owner, (owner, ""))
            made = self.quantizers.get(tensor)
            self.simulated[name] = SimulatedModule(teacher.get_submodule(name), kind, read, made if rounded == owner else None, rounding)
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, self.simulated[name])
            if rounded != owner and made is not None:
                self._round_behind(rounded, self.simulated[name], made)
        self.state = {name: value.clone() for name, value in self.model.state_dict().items()}

    def _round_behind(self, norm: str, convolution: SimulatedModule, quantizer: RangeQuantizer) -> None:
        """The normalisation is folded into the convolution, so its output is what the integer kernel rounds."""

        def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
            if not convolution.rounds_output:
                return output
            gain = (module.running_var + module.eps).rsqrt() * (1.0 if module.weight is None else module.weight)
            bias = 0.0 if convolution.bias is None else convolution.bias
            shift = (bias - module.running_mean) * gain + (0.0 if module.bias is None else module.bias)
            error = convolution.bias_error(shift, gain).view(-1, *[1] * (output.dim() - 2))
            rounded: Tensor = quantizer(output + error)
            return rounded

        self.model.get_submodule(norm).register_forward_hook(hook)

    def set_variant(self, name: str, owner: str, variant: Variant, config: ModuleConfig, masks: Masks, block_size: int) -> None:
        """Compute with `variant` in module `name`, compressed as `owner`."""
        sides = (masks.of(owner, "out"), masks.of(owner, "in"))
        self.simulated[name].set_variant(variant, config, sides, block_size, masks.of(owner, "gate"))

    def load(self, changed: Mapping[str, Tensor], masks: Masks) -> None:
        """The original parameters outside the simulated modules, but for those in `changed`, without what pruned channels feed."""
        state = {**self.state, **changed}
        for (name, side), mask in masks.kept.items():
            if side == "in" and name not in self.simulated:
                weight = state[f"{name}.weight"]
                gone = torch.from_numpy(~mask).nonzero().flatten().to(weight.device)
                state[f"{name}.weight"] = weight.index_fill(side_dimension(self.model.get_submodule(name), side), gone, 0.0)
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

    def __init__(self, teacher: nn.Module, module_map: ModuleMap, library: VariantLibrary, plan: ActivationPlan | None = None) -> None:
        self.teacher = teacher
        self.module_map = module_map
        self.library = library
        self.plan = plan or ActivationPlan()
        self.pruner = Pruner(library.evidence, module_map)
        self.masks = Masks({})
        self.smoother = Smoother(library.model, module_map, library.evidence.statistics)
        kinds = {name: (module.kind, module.name) for module in module_map for name in (module.name, *module.aliases)}
        super().__init__(teacher, kinds, self.plan)

    def ranges(self, candidate: Candidate, trained: Trained | None = None) -> dict[str, ActivationRange]:
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
                variant = (trained.variants.get(name) if trained else None) or self.variant(name, module.name, candidate, masks)
                self.set_variant(name, module.name, variant, config, masks, block_size)
        self.load({**self.smoother.parameters(candidate), **(trained.others if trained else {})}, masks)
        return self.model

    def variant(self, name: str, owner: str, candidate: Candidate, masks: Masks | None = None) -> Variant:
        """The library's variant of `name`, compressed as its owner (another name where weights are tied); `masks` of the candidate where
        they are known."""
        masks = self.pruner.masks(candidate) if masks is None else masks
        variant = self.library.get(owner, candidate.config(owner), masks, self.smoother.of(owner, candidate))
        return variant if name == owner else Variant(variant.factors, self.library.bias(name, None))

    def start_training(self, candidate: Candidate) -> None:
        """Make the weights, scales and static ranges of the applied candidate trainable in place."""
        masks = self.masks
        for module in self.module_map:
            if masks.dropped(module.name):
                continue
            smoothed = self.smoother.of(module.name, candidate)
            factors = self.library.float_weight(module.name, candidate.config(module.name), masks, smoothed).factors
            first = self.simulated[module.name]
            first.start_training(factors)
            for alias in module.aliases:
                self.simulated[alias].start_training(factors)
                self.simulated[alias].trained = first.trained
                self.simulated[alias].trained_steps = first.trained_steps

    def trained_state(self) -> Trained:
        """What training left of the applied candidate."""
        variants = {name: module.trained_variant() for name, module in self.simulated.items()}
        others = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items() if name in self.state}
        ranges = {tensor: q.learned() for tensor, q in self.quantizers.items() if q.factor is not None}
        return Trained(variants, others, ranges, self.masks)
