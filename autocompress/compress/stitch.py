"""A compressed model assembled from the library by swapping tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from autocompress.candidate import Candidate
from autocompress.compress.library import Variant, VariantLibrary
from autocompress.compress.prune import Pruner
from autocompress.compress.quantize import ActivationRange
from autocompress.compress.simulate import SimulatedModule
from autocompress.modules import ModuleMap


class Stitcher:
    """One copy of the model whose compressible modules are `SimulatedModule`s; a candidate costs a swap, not a compression.

    The order on one module is prune, factorise, (train,) quantise. `teacher`, the model itself, is never changed.
    """

    def __init__(
        self,
        teacher: nn.Module,
        module_map: ModuleMap,
        library: VariantLibrary,
        input_ranges: Mapping[str, ActivationRange],
    ) -> None:
        self.teacher = teacher
        self.module_map = module_map
        self.library = library
        self.pruner = Pruner(library.model, module_map)
        self.model = copy.deepcopy(teacher).eval()
        self.simulated: dict[str, SimulatedModule] = {}
        for module in module_map:
            for name in (module.name, *module.aliases):
                self.simulated[name] = SimulatedModule(teacher.get_submodule(name), input_ranges.get(module.name))
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, self.simulated[name])
        self._state = {name: value.clone() for name, value in self.model.state_dict().items()}

    def apply(
        self, candidate: Candidate, trained: Mapping[str, Variant] | None = None, others: Mapping[str, Tensor] | None = None
    ) -> nn.Module:
        """The model under `candidate`; `trained` variants and `others` (parameters by name) replace what recovery changed."""
        masks = self.pruner.masks(candidate)
        for module in self.module_map:
            config = candidate.config(module.name)
            for name in (module.name, *module.aliases):
                variant = (trained or {}).get(name) or self.variant(name, module.name, candidate)
                sides = (masks.of(module.name, "out"), masks.of(module.name, "in"))
                self.simulated[name].set_variant(variant, config.activation_bits, sides)
        self.model.load_state_dict({**self._state, **(others or {})}, strict=True)
        return self.model

    def variant(self, name: str, owner: str, candidate: Candidate) -> Variant:
        """The library's variant of `name`, compressed as its owner (another name where weights are tied)."""
        variant = self.library.get(owner, candidate.config(owner), self.pruner.masks(candidate))
        return variant if name == owner else Variant(variant.factors, self.library.bias(name, None))

    def start_training(self, candidate: Candidate) -> None:
        """Make the weights of the applied candidate trainable in place."""
        masks = self.pruner.masks(candidate)
        for module in self.module_map:
            factors = self.library.float_factors(module.name, candidate.config(module.name), masks)
            first = self.simulated[module.name]
            first.start_training(factors, self.library.bias(module.name, masks.of(module.name, "out")))
            for alias in module.aliases:
                self.simulated[alias].start_training(factors, self.library.bias(alias, None))
                self.simulated[alias].trained = first.trained

    def trained_state(self) -> tuple[dict[str, Variant], dict[str, Tensor]]:
        """(variants by module, every other parameter by name) after training."""
        variants = {name: module.trained_variant() for name, module in self.simulated.items()}
        others = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items() if name in self._state}
        return variants, others
