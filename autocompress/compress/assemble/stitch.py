"""Assemble a candidate's model from the library by swapping tensors.

The model simulates what the candidate's file computes. The order on one module is prune, smooth,
factorise, (train,) quantise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import NewType

from torch import Tensor, nn

from autocompress.candidate import Candidate
from autocompress.compress.assemble.library import VariantLibrary
from autocompress.compress.assemble.simulated_model import ActivationPlan, SimulatedModel
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.calibrate.batch_norm import NormStatistics
from autocompress.compress.prune.masks import Masks, Pruner
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.compress.quantize.smooth import Smoother
from autocompress.model.modules import ModuleMap
from autocompress.task.copies import named_state

# The one model of a stitcher, which the next `apply` changes: use it before, or take a deep copy.
BorrowedModel = NewType("BorrowedModel", nn.Module)
REMEMBERED = 32  # candidates whose statistics of normalisations are kept


class Stitcher(SimulatedModel):
    """Turn one model into candidate after candidate by swapping tensors.

    A candidate costs a swap, not a compression. There is one simulated model: `apply` changes it
    and lends it out. `Compressor.module` gives a model of its own.

    Attributes:
        teacher: the float model, never changed.
        module_map: its modules.
        library: makes and keeps compressed weights.
        plan: calls and activation ranges of the graph.
        norms: estimates the statistics of batch normalisations again for a candidate.
        masks: the kept channels of the last applied candidate.
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
        self.norms = NormStatistics(teacher, library.evidence.batches)
        self._statistics: OrderedDict[Candidate, Mapping[str, Tensor]] = OrderedDict()
        self.masks = Masks({})
        self.smoother = Smoother(library.model, module_map, library.evidence.statistics)
        kinds = {
            name: (module.kind, module.name)
            for module in module_map
            for name in (module.name, *module.aliases)
        }
        # The first module with the same weight and the same bias, whose variant is theirs too.
        self.firsts = {
            name: self._first_with_bias(name, (module.name, *module.aliases))
            for module in module_map
            for name in (module.name, *module.aliases)
        }
        super().__init__(teacher, kinds, self.plan)

    def _first_with_bias(self, name: str, sharing: Sequence[str]) -> str:
        """Return the first of some modules that has the bias of the module `name`, or none too."""

        def bias(other: str) -> Tensor | None:
            return getattr(self.teacher.get_submodule(other), "bias", None)

        return next(other for other in sharing if bias(other) is bias(name))

    def ranges(
        self, candidate: Candidate, trained: Trained | None = None
    ) -> dict[str, ActivationRange]:
        """Return the activation range of every tensor under a candidate.

        Args:
            candidate: the configs of the modules; smoothing changes ranges.
            trained: weights and ranges after recovery.

        Returns:
            Ranges by tensor of the graph.
        """
        smoothed = self.smoother.ranges(candidate, self.plan.inputs)
        return {**self.base_ranges, **smoothed, **(trained.ranges if trained else {})}

    def apply(self, candidate: Candidate, trained: Trained | None = None) -> BorrowedModel:
        """Turn the simulated model into a candidate.

        Args:
            candidate: the configs of the modules.
            trained: weights and ranges after recovery; it replaces the library's weights.

        Returns:
            The stitcher's own model, in eval mode: the next `apply` changes it.
        """
        self.masks = masks = trained.masks if trained else self.pruner.masks(candidate)
        self.set_ranges(self.ranges(candidate, trained))
        for module in self.module_map:
            config = candidate.config(module.name)
            block_size = self.plan.block_size(module, config)
            for name in (module.name, *module.aliases):
                variant = (trained.variants.get(name) if trained else None) or self.variant(
                    name, module.name, candidate, masks
                )
                self.set_variant(name, module.name, variant, config, masks, block_size)
        between = self.plan.between(candidate)
        self.round_between({self.plan.places[name]: at for name, at in between.items()})
        smoothed = self.smoother.parameters(candidate)
        if trained is not None:
            self.load({**smoothed, **trained.others}, masks)
            return BorrowedModel(self.model)
        plain = Candidate(candidate.modules)
        self.load({**smoothed, **self._statistics.get(plain, {})}, masks)
        if plain not in self._statistics:
            changed = {name for name, _ in candidate.modules} | {name for name, _ in masks.kept}
            self._statistics[plain] = self.norms.estimate(self.model, changed)
            if len(self._statistics) > REMEMBERED:
                self._statistics.popitem(last=False)
        return BorrowedModel(self.model)

    def statistics(self, candidate: Candidate) -> Mapping[str, Tensor]:
        """Return the statistics of batch normalisations that differ from the float model's.

        Args:
            candidate: the configs of the modules; the model holds it afterwards if they are not
                known yet.

        Returns:
            Means and variances by the name of the buffer.
        """
        plain = Candidate(candidate.modules)
        if plain not in self._statistics:
            self.apply(plain)
        return self._statistics[plain]

    def renew_statistics(self) -> None:
        """Estimate the statistics of batch normalisations for the model's weights of now."""
        for name in self.norms.buffers:
            self.model.get_buffer(name).copy_(self.state[name])
        self.norms.estimate(self.model, self.simulated)

    def variant(
        self, name: str, owner: str, candidate: Candidate, masks: Masks | None = None
    ) -> Variant:
        """Return the library's variant of a module.

        Args:
            name: the module.
            owner: the module itself, or the module with which its weight is tied.
            candidate: the configs of the modules.
            masks: the kept channels of the candidate; None works them out.

        Returns:
            The owner's weights, with the bias of `name`. A bias of the owner is corrected as it is
            there.
        """
        masks = self.pruner.masks(candidate) if masks is None else masks
        variant = self.library.get(
            owner, candidate.config(owner), masks, self.smoother.of(owner, candidate)
        )
        first = self.firsts[name]
        return (
            variant if first == owner else Variant(variant.factors, self.library.bias(first, None))
        )

    def start_training(self, candidate: Candidate, only: Collection[str] | None = None) -> None:
        """Make weights, scales and static ranges of the applied candidate trainable, in place.

        Args:
            candidate: the last applied candidate.
            only: names of modules. The others stay as they are, and so do weights and ranges that
                they share. None for all modules.
        """
        masks = self.masks
        for module in self.module_map:
            names = {module.name, *module.aliases}
            if masks.dropped(module.name) or (only is not None and not names <= set(only)):
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
                self.simulated[alias].trained_bias = self.simulated[self.firsts[alias]].trained_bias
        if only is not None:
            for name, simulated in self.simulated.items():
                if name not in only:
                    simulated.keep_ranges()

    def trained_state(self) -> Trained:
        """Return the trained state of the applied candidate; nobody may write to its tensors."""
        variants = {name: module.trained_variant() for name, module in self.simulated.items()}
        others = {
            name: value.cpu().clone()
            for name, value in named_state(self.model).items()
            if name in self.state
        }
        ranges = {
            tensor: q.learned() for tensor, q in self.quantizers.items() if q.factor is not None
        }
        return Trained(variants, others, ranges, self.masks)
