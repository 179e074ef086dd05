"""Simulate a model whose modules compute with compressed weights and rounded activations.

`Stitcher` puts the weights of candidates into it; `export.reload` those of a point's files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.between import Between, Place
from autocompress.compress.assemble.calls import Call, CallRanges, Calls
from autocompress.compress.assemble.fake_quant import SimulatedModule
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.prune.masks import Masks
from autocompress.compress.quantize.activation import ActivationRange, RangeQuantizer
from autocompress.compress.quantize.integer_bias import bias_error
from autocompress.compress.quantize.integer_matmul import Rounding
from autocompress.model.modules import CompressibleModule
from autocompress.model.plain.split import with_others
from autocompress.model.weights import side_dimension
from autocompress.task.copies import copied, named_state, set_state


def _never(module: CompressibleModule, config: ModuleConfig) -> bool:
    return False


def _nothing(candidate: Candidate) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class ActivationPlan:
    """Tell the simulation what the exported graph knows about activations.

    Attributes:
        ranges: calibrated range by tensor of the graph.
        calls: the calls of each linear or convolutional module, in their order.
        rounds_blocks: returns True if a module under a config runs on a weight-only kernel that
            rounds its inputs to 8 bits per block.
        ends: upper end of tensors behind a Clip, which the range of an integer convolution
            replaces. No range grows beyond it.
        rows: True if dynamic 8-bit inputs have a range per row instead of one per tensor.
        places: calls of functions by the tensor that they compute, for tensors between modules that
            files may round.
        between: returns the name of the range of each such tensor that a candidate's file rounds.
    """

    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)
    calls: Mapping[str, tuple[Call, ...]] = field(default_factory=dict)
    rounds_blocks: Callable[[CompressibleModule, ModuleConfig], bool] = _never
    ends: Mapping[str, float] = field(default_factory=dict)
    rows: bool = False
    places: Mapping[str, Place] = field(default_factory=dict)
    between: Callable[[Candidate], Mapping[str, str]] = _nothing

    @property
    def inputs(self) -> dict[str, str]:
        """Return the input tensor of each module's first call."""
        return {owner: calls[0].reads for owner, calls in self.calls.items()}

    def block_size(self, module: CompressibleModule, config: ModuleConfig) -> int:
        """Return how many inputs of a module are rounded to 8 bits with one scale.

        Args:
            module: a module of the model.
            config: its config.

        Returns:
            The size of a block; 0 if inputs are not rounded in blocks.
        """
        return config.group_size if self.rounds_blocks(module, config) else 0


@dataclass(frozen=True)
class FoldedNorm:
    """Round the output of a normalisation that is folded into an integer convolution, as a hook.

    Attributes:
        convolutions: the convolutions in front of it.
    """

    convolutions: tuple[SimulatedModule, ...]

    def __call__(
        self, norm: Any, args: tuple[Any, ...], named: Mapping[str, Any], output: Tensor
    ) -> Tensor:
        """Return `output` as the kernel writes it.

        It is unchanged if the normalisation reads no output of an integer convolution. The rounded
        bias is left out while the statistics of a batch replace those that it depends on.
        """
        read = args[0] if args else named["input"]
        waiting = []
        for convolution in self.convolutions:
            for unrounded in convolution.unrounded:
                if unrounded.output is read:
                    waiting.append((convolution, unrounded))
        if not waiting:
            return output
        convolution, last = waiting[-1]
        convolution.unrounded.remove(last)
        if norm.training:
            learning: Tensor = last.quantizer(output)
            return learning
        gain = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
        shift = ((0.0 if last.bias is None else last.bias) - norm.running_mean) * gain + (
            0.0 if norm.bias is None else norm.bias
        )
        error = bias_error(shift, last.scale * gain.abs(), last.quantizer.at.scale)
        rounded: Tensor = last.quantizer(output + error.view(-1, *[1] * (output.dim() - 2)))
        return rounded


class SimulatedModel:
    """Hold a copy of a model whose compressible modules are `SimulatedModule`s.

    Each tensor of the graph has one range quantizer, shared by its readers.
    """

    def __init__(
        self, teacher: nn.Module, kinds: Mapping[str, tuple[str, str]], plan: ActivationPlan
    ) -> None:
        """Copy `teacher` and replace its modules.

        Args:
            teacher: the float model; it is not changed.
            kinds: (kind, owner) by module name. The owner is the module itself, or
                the module with which its weight is tied.
            plan: calls and calibrated ranges.
        """
        self.quantizers = {
            tensor: RangeQuantizer(at, plan.ends.get(tensor, math.inf))
            for tensor, at in plan.ranges.items()
        }
        self.base_ranges = dict(plan.ranges)
        self.owners = {name: owner for name, (_, owner) in kinds.items()}
        rounding, order = Rounding(plan.rows), Calls()
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
            for norm in dict.fromkeys(call.norm for call in calls if call.norm):
                folded.setdefault(norm, []).append(self.simulated[name])
        self.model = with_others(copied(teacher, None, shares_weights=True), self.simulated)
        self.model.register_forward_pre_hook(order.restart)
        for norm, convolutions in folded.items():
            self.model.get_submodule(norm).register_forward_hook(
                FoldedNorm(tuple(convolutions)), with_kwargs=True
            )
        self.between = Between(order)
        order.again = self.between.again
        self._norms = [self.model.get_submodule(norm) for norm in folded]
        self._watches = False
        # The replaced weights stay the teacher's. The others are written to.
        for parameter in self.model.parameters():
            parameter.data = parameter.data.clone()
        self.state = {name: value.clone() for name, value in named_state(self.model).items()}

    def set_variant(
        self,
        name: str,
        owner: str,
        variant: Variant,
        config: ModuleConfig,
        masks: Masks,
        block_size: int,
    ) -> None:
        """Compute with a variant in one module from now on.

        Args:
            name: the module.
            owner: the module itself, or the module with which its weight is tied.
            variant: its compressed weights.
            config: the config of the variant.
            masks: the kept channels of the candidate.
            block_size: inputs per scale of a rounding weight-only kernel; 0 for no rounding.
        """
        sides = (masks.of(owner, "out"), masks.of(owner, "in"))
        self.simulated[name].set_variant(
            variant, config, sides, block_size, masks.of(owner, "gate")
        )

    def round_between(self, rounded: Mapping[Place, str]) -> None:
        """Round the results of calls of functions between modules from now on.

        Args:
            rounded: name of the range by call; other results stay as they are.
        """
        if rounded:
            self.watch_functions()
        self.between.quantizers = {place: self.quantizers[name] for place, name in rounded.items()}

    def watch_functions(self) -> None:
        """See the calls of functions between modules from now on, which takes a little time."""
        if not self._watches:
            self.between.watch(self.model, [*self.simulated.values(), *self._norms])
        self._watches = True

    def load(self, changed: Mapping[str, Tensor], masks: Masks) -> None:
        """Set the parameters outside the simulated modules; columns of removed channels become 0.

        Args:
            changed: parameters by name; others are the float model's.
            masks: the kept channels of the candidate.
        """
        state = {**self.state, **changed}
        for (name, side), mask in masks.kept.items():
            if side == "in" and name not in self.simulated:
                weight = state[f"{name}.weight"]
                gone = torch.from_numpy(~mask).nonzero().flatten().to(weight.device)
                state[f"{name}.weight"] = weight.index_fill(
                    side_dimension(self.model.get_submodule(name), side), gone, 0.0
                )
        set_state(self.model, state)

    def set_ranges(self, changed: Mapping[str, ActivationRange]) -> None:
        """Set the activation ranges.

        Args:
            changed: ranges by tensor; others are the calibrated ones.
        """
        for tensor, quantizer in self.quantizers.items():
            quantizer.factor = None
            quantizer.at = changed.get(tensor, self.base_ranges[tensor])
