"""Compress the weights of one module under one config, once, and keep them by content hash.

Candidates share modules, so a candidate costs a swap of tensors (OBC, Frantar and Alistarh 2022;
SPDY, Frantar and Alistarh 2022).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.cache import Cache
from autocompress.candidate import UNTOUCHED, ModuleConfig
from autocompress.compress.assemble.bias_correction import corrected_bias
from autocompress.compress.assemble.variant import (
    Variant,
    variant_from_tensors,
    variant_to_tensors,
)
from autocompress.compress.calibrate.evidence import Evidence, Gradients
from autocompress.compress.calibrate.statistics import LayerStatistics
from autocompress.compress.factorise.low_rank import compose, factor_statistics, factorise
from autocompress.compress.prune.masks import Mask, Masks, reconstructed
from autocompress.compress.prune.sparsify import NEEDS_GRADIENTS
from autocompress.compress.quantize.affine import StoredTensor
from autocompress.compress.quantize.rounding import store
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import kind_of
from autocompress.model.weights import weight_of
from autocompress.results.tensor_files import read_tensors, tensor_bytes

DISK_BYTES = 2 << 30
LIBRARY_BYTES = 512_000_000
FORMAT = "10"  # part of every key; raised when the arithmetic of a variant changes


def shrink(weight: Tensor, out: Mask | None, into: Mask | None) -> Tensor:
    """Remove channels of a weight.

    Args:
        weight: (rows, columns, ...).
        out: (rows,) True for kept rows; None keeps all.
        into: (columns,) True for kept columns; None keeps all.

    Returns:
        (kept rows, kept columns, ...).
    """
    if out is not None:
        weight = weight[torch.from_numpy(out).to(weight.device)]
    if into is not None:
        weight = weight[:, torch.from_numpy(into).to(weight.device)]
    return weight


@dataclass(frozen=True, eq=False)
class FloatWeight:
    """Hold the pruned and smoothed weight of one module before it is quantised.

    Attributes:
        whole: (rows, columns, ...) the weight.
        factors: the weight, or its low-rank factors in the order of use.
        seen: statistics of the inputs, or None.
        bias: (rows,), or None.
    """

    whole: Tensor
    factors: tuple[Tensor, ...]
    seen: LayerStatistics | None
    bias: Tensor | None


def _nothing() -> None:
    """Look at nothing: no time limits the work."""


def _exact_everywhere(name: str) -> IntegerForm:
    return IntegerForm.REDUCED


@dataclass
class VariantLibrary:
    """Make and keep the variants of one model's modules.

    Variants are kept on disk by content hash, and in memory by last use. With statistics of the
    layers' inputs, pruning, factors, zeros, rounding and the bias make up for errors; without them
    weights are cut and rounded to nearest.

    Attributes:
        evidence: the float model (never changed) and its calibration statistics.
        folder: cache on disk; None keeps variants in memory only.
        integer_form: returns the integer form of a module's kernel.
        memory_bytes: most bytes of variants in memory.
        made: number of compressions.
        reused: number of answers from memory or disk.
        look: called before each compression; what it raises ends the work between two modules.
    """

    evidence: Evidence
    folder: Path | None = None
    integer_form: Callable[[str], IntegerForm] = _exact_everywhere
    memory_bytes: int = LIBRARY_BYTES
    made: int = 0
    reused: int = 0
    look: Callable[[], None] = _nothing
    _memory: OrderedDict[str, Variant] = field(default_factory=OrderedDict)
    _held: int = 0
    _hashes: dict[str, str] = field(default_factory=dict)
    _plain: dict[str, Variant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._disk = Cache(self.folder, DISK_BYTES)

    @property
    def model(self) -> nn.Module:
        """Return the float model."""
        return self.evidence.model

    def get(
        self, name: str, config: ModuleConfig, masks: Masks, factors: Tensor | None = None
    ) -> Variant:
        """Return the variant of a module: pruned, smoothed, factorised and quantised.

        Args:
            name: the module.
            config: how it is compressed.
            masks: the kept channels; they are part of the cache key.
            factors: (input channels,) smoothing factors that multiply the columns, since the
                normalisation in front is divided by them; None for 1.
        """
        if masks.dropped(name):
            return Variant((), None)
        out, into = masks.of(name, "out"), masks.of(name, "in")
        plain = (config.weight_bits, config.rank_ratio, config.sparsity) == (32, 1.0, 0.0)
        if plain and out is None and into is None and factors is None:
            return self._plain_variant(name)
        key = self._key(name, config, out, into, factors)
        variant = self._memory.get(key)
        if variant is None:
            variant = self._disk.read(_file_name(key), _read_variant)
        if variant is not None:
            self.reused += 1
        else:
            self.look()
            self.made += 1
            variant = self._make(name, config, masks, factors)
            if self.folder is not None:
                self._disk.write(_file_name(key), tensor_bytes(variant_to_tensors(variant, "")))
        self._remember(key, variant)
        return variant

    def _plain_variant(self, name: str) -> Variant:
        """Return the float weight of a module: the model's own on a CPU, else a copy."""
        if name not in self._plain:
            weight = weight_of(self.model.get_submodule(name)).detach().float()
            factor = StoredTensor(weight.contiguous().cpu(), 32)
            self._plain[name] = Variant((factor,), self.bias(name, None))
        return self._plain[name]

    def _make(
        self, name: str, config: ModuleConfig, masks: Masks, factors: Tensor | None
    ) -> Variant:
        weight = self.float_weight(name, config, masks, factors)
        seen = factor_statistics(weight.seen, weight.factors)
        is_whole = len(weight.factors) == 1
        gradients = self._gradients(name, config, masks, factors) if is_whole else None
        config, largest = self._integers(name, config)
        last = len(weight.factors) - 1
        stored = tuple(
            store(
                factor,
                config,
                largest,
                of_factor,
                has_bias=i == last and weight.bias is not None,
                gradients=gradients,
            )
            for i, (factor, of_factor) in enumerate(zip(weight.factors, seen, strict=True))
        )
        exact = config.weight_bits >= 16 and last == 0 and config.sparsity == 0
        if weight.seen is None or weight.bias is None or exact:
            return Variant(stored, weight.bias)
        exact_weight = weight.whole.cpu()
        compressed = compose([factor.dequantized() for factor in stored])
        mean = weight.seen.mean
        rows_per_group = len(exact_weight) // len(mean)
        mean = mean.repeat_interleave(rows_per_group, 0) if len(mean) > 1 else mean[0]
        bias = corrected_bias(weight.bias, exact_weight.flatten(1), compressed.flatten(1), mean)
        return Variant(stored, bias)

    def _integers(self, name: str, config: ModuleConfig) -> tuple[ModuleConfig, int]:
        """Return the config after the limits of the module's kernel, and the largest integer.

        The largest integer is 0 for float kernels.
        """
        kind = kind_of(self.model.get_submodule(name)) or ""
        if not config.integer(kind):
            return config, 0
        form = self.integer_form(name)
        return config.for_kernel(kind, form), form.largest

    def float_weight(
        self, name: str, config: ModuleConfig, masks: Masks, factors: Tensor | None = None
    ) -> FloatWeight:
        """Return the pruned, smoothed and factorised weight before it is quantised.

        Args:
            name: the module.
            config: how it is compressed.
            masks: the kept channels.
            factors: (input channels,) smoothing factors, or None.
        """
        module = self.model.get_submodule(name)
        weight, bias = weight_of(module).detach(), self.bias(name, masks.of(name, "out"))
        if factors is not None:
            weight = weight * factors.to(weight.device)
        out, into = masks.of(name, "out"), masks.of(name, "in")
        # What is looked up must not make up for columns that a head loses.
        seen = self._seen(name) if into is None else self.evidence.statistics.get(name)
        if seen is not None and factors is not None:
            seen = seen.of(None, factors)
        if seen is not None and len(seen.gram) > 1:  # a pruned row takes its group with it
            seen = seen.of_groups(out)
        weight = shrink(weight, out, None)
        if into is not None:
            columns = torch.from_numpy(into).repeat_interleave(weight[0, 0].numel())
            if config.reconstruction and seen is not None:
                flat, shift = reconstructed(
                    weight.flatten(1), columns.to(weight.device), seen, bias is not None
                )
                weight = flat.reshape(len(weight), -1, *weight.shape[2:])
                bias = None if bias is None else bias + shift.cpu().float()
            else:
                weight = shrink(weight, None, into)
            seen = None if seen is None else seen.of(columns, None)
        return FloatWeight(
            weight, factorise(weight, config.rank_ratio, config.decomposition, seen), seen, bias
        )

    def _seen(self, name: str) -> LayerStatistics | None:
        """Return the statistics of what a module's weight multiplies, or a head that shares it."""
        statistics = self.evidence.statistics
        if name in statistics:
            return statistics[name]
        module = self.model.get_submodule(name)
        if isinstance(module, nn.Embedding):
            for other in statistics:
                if getattr(self.model.get_submodule(other), "weight", None) is module.weight:
                    return statistics[other].with_lookups()
        return None

    def _gradients(
        self, name: str, config: ModuleConfig, masks: Masks, factors: Tensor | None
    ) -> Gradients | None:
        """Return gradients of the elements that are left, if the config's zeros need them.

        A weight that smoothing multiplies by a factor has the gradient divided by it.
        """
        if (
            config.sparsity <= 0
            or config.sparsity_criterion not in NEEDS_GRADIENTS
            or name not in self.evidence.gradients
        ):
            return None
        whole = self.evidence.gradients[name]
        mean, square = whole.mean, whole.square
        if factors is not None:
            mean, square = mean / factors, square / factors.square()
        out, into = masks.of(name, "out"), masks.of(name, "in")
        return replace(whole, mean=shrink(mean, out, into), square=shrink(square, out, into))

    def bias(self, name: str, out: Mask | None) -> Tensor | None:
        """Return the kept part of a module's bias.

        Args:
            name: the module.
            out: (rows,) True for kept rows; None keeps all.

        Returns:
            (kept rows,) float32 on the CPU, or None.
        """
        bias = getattr(self.model.get_submodule(name), "bias", None)
        return None if bias is None else shrink(bias.detach(), out, None).float().cpu()

    def _key(
        self,
        name: str,
        config: ModuleConfig,
        out: Mask | None,
        into: Mask | None,
        factors: Tensor | None,
    ) -> str:
        if name not in self._hashes:
            module = self.model.get_submodule(name)
            digest = hashlib.sha256(FORMAT.encode())
            for parameter in module.parameters(recurse=False):
                digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
            seen = self._seen(name)
            if seen is not None:
                digest.update(seen.digest.encode())
            self._hashes[name] = digest.hexdigest()
        made, largest = self._integers(name, config)
        made_of = replace(
            made,
            activation_bits=32,
            pruning_ratio=0.0,
            importance=UNTOUCHED.importance,
            smoothing=0.0,
            activation_mode="auto",
            reconstruction=config.reconstruction or into is None,
        )
        digest = hashlib.sha256(
            f"{self._hashes[name]} {made_of} {largest if made.group_size > 0 else 0}".encode()
        )
        if config.sparsity > 0 and config.sparsity_criterion in NEEDS_GRADIENTS:
            digest.update(self.evidence.gradient_digest.encode())
        for mask in (out, into):
            digest.update(b"all" if mask is None else np.packbits(mask).tobytes() + b"|")
        if factors is not None:
            digest.update(factors.numpy().tobytes())
        return digest.hexdigest()

    def _remember(self, key: str, variant: Variant) -> None:
        if key not in self._memory:
            self._held += variant.nbytes()
        self._memory[key] = variant
        self._memory.move_to_end(key)
        while self._held > self.memory_bytes and len(self._memory) > 1:
            self._held -= self._memory.popitem(last=False)[1].nbytes()


def _file_name(key: str) -> str:
    return f"{key[:2]}/{key}.safetensors"


def _read_variant(path: Path) -> Variant:
    return variant_from_tensors(read_tensors(path)[0], "")
