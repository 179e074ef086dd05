"""Choose the kernel of each module of a candidate.

A choice covers the integers that an 8-bit kernel multiplies, the accuracy level of a weight-only
product, and the block size of a packed embedding. `targets/kernels.py` times the kernels of one
shape; this file looks up the shapes of a model's modules. The files of `build.py` and their
simulation follow the same choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.variant import Variant
from autocompress.export.lowering.lower import LoweredModel
from autocompress.export.lowering.operators import gather_block
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.targets.kernel_timing import FOLDED
from autocompress.targets.kernels import KernelChoice

WEIGHT_ONLY_BITS = (2, 4, 8)


@dataclass(frozen=True)
class ModuleKernels:
    """Choose kernels for the modules of one exported model.

    Attributes:
        lowered: the exported graph.
        choice: the timed kernels of the target.
        forms: integer forms by module name; they take precedence over `choice`.
    """

    lowered: LoweredModel
    choice: KernelChoice
    forms: Mapping[str, IntegerForm] = field(default_factory=dict)

    def integer_form(self, module: CompressibleModule) -> IntegerForm:
        """Return the integer form of a module's 8-bit kernel.

        Args:
            module: a module of the exported model.

        Returns:
            The form in `forms`, else the fastest exact one.
        """
        if module.name in self.forms:
            return self.forms[module.name]
        return self.choice.integer_form(
            self._product_shape(module) if module.kind == "linear" else None
        )

    def integer_forms(
        self, module_map: ModuleMap, candidate: Candidate, variants: Mapping[str, Variant]
    ) -> dict[str, IntegerForm]:
        """Return the integer forms of all modules on integer kernels.

        Trained weights keep a wider form than the chosen one, so the file states the truth.

        Args:
            module_map: the modules of the model.
            candidate: decides which modules run on integer kernels.
            variants: compressed weights by module name; modules may be missing.

        Returns:
            Forms by module name.
        """
        forms = {}
        for module in module_map:
            if not candidate.config(module.name).integer(module.kind):
                continue
            form = self.integer_form(module)
            factors = variants[module.name].factors if module.name in variants else ()
            if form is IntegerForm.REDUCED and not all(
                form.holds(factor.int8()) for factor in factors
            ):
                form = IntegerForm.UNSIGNED if module.kind == "linear" else IntegerForm.SIGNED
            forms[module.name] = form
        return forms

    def weight_only_level(self, module: CompressibleModule, config: ModuleConfig) -> int | None:
        """Return the accuracy level of the weight-only product (MatMulNBits) of a module.

        Args:
            module: a module of the exported model.
            config: its config; the kernel takes float inputs and dense weights in groups.

        Returns:
            The level, or None if another kernel is faster or the config does not fit.
        """
        fits = (
            config.activation_bits == 32
            and config.group_size > 0
            and config.weight_bits in WEIGHT_ONLY_BITS
        )
        if not fits or config.sparsity > 0:
            return None
        if module.kind != "linear" and not self._shares_packed(module, config):
            return None
        level = self.choice.matmul_level(
            *self._product_shape(module), config.weight_bits, config.group_size
        )
        return None if level == FOLDED else level

    def rounds_blocks(self, module: CompressibleModule, config: ModuleConfig) -> bool:
        """Return True if the weight-only kernel of a module rounds its inputs to 8 bits per block.

        Args:
            module: a module of the exported model.
            config: its config.
        """
        level = self.weight_only_level(module, config)
        shape = self._product_shape(module)
        return level is not None and self.choice.matmul_rounds_inputs(
            *shape, config.weight_bits, config.group_size, level
        )

    def table_block(self, module: CompressibleModule, config: ModuleConfig) -> int | None:
        """Return the block size of an embedding if it stays packed at run time.

        Args:
            module: a module of the exported model.
            config: its config.

        Returns:
            Weights per scale, or None if the lookup in the unpacked table is faster or the
            config does not fit.
        """
        whole = config.rank_ratio >= 1 and config.sparsity == 0
        if module.kind != "embedding" or config.weight_bits not in WEIGHT_ONLY_BITS or not whole:
            return None
        # A head that shares the weight reads it unpacked; the file would hold it twice.
        if any(site.kind == "linear" for site in self.lowered.sites[module.name]):
            level = self.weight_only_level(module, config)
            return None if level is None else config.group_size
        entries, width = module.weight_shape
        block = gather_block(width, config)
        if block is None:
            return None
        packed = self.choice.gather_stays_packed(
            self._rows(module), entries, width, config.weight_bits, block
        )
        return block if packed else None

    def _shares_packed(self, module: CompressibleModule, config: ModuleConfig) -> bool:
        """Return True if lookups and products of a module may read one packed table."""
        kinds = {site.kind for site in self.lowered.sites[module.name]}
        fits = config.rank_ratio >= 1 and module.weight_shape[1] % config.group_size == 0
        return self.choice.packed and fits and kinds == {"linear", "embedding"}

    def levels(self, module_map: ModuleMap, candidate: Candidate) -> dict[str, int]:
        """Return the accuracy levels of all modules on the weight-only product.

        Args:
            module_map: the modules of the model.
            candidate: their configs.

        Returns:
            Levels by module name.
        """
        levels = {}
        for module in module_map:
            level = self.weight_only_level(module, candidate.config(module.name))
            if level is not None:
                levels[module.name] = level
        return levels

    def blocks(self, module_map: ModuleMap, candidate: Candidate) -> dict[str, int]:
        """Return the block sizes of all packed embeddings.

        Args:
            module_map: the modules of the model.
            candidate: their configs.

        Returns:
            Weights per scale by module name.
        """
        blocks = {}
        for module in module_map:
            block = self.table_block(module, candidate.config(module.name))
            if block is not None:
                blocks[module.name] = block
        return blocks

    def _rows(self, module: CompressibleModule) -> int:
        """Return the rows (or lookups) of one call on the example inputs."""
        return max(1, module.positions // len(self.lowered.sites[module.name]))

    def _product_shape(self, module: CompressibleModule) -> tuple[int, int, int]:
        """Return (rows, columns, outputs) of one call on the example inputs."""
        return self._rows(module), module.weight_shape[1], module.weight_shape[0]
