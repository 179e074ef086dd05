"""Compressed weights of one module under one config, made once and kept by content."""

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
from autocompress.compress.calibrate.evidence import Evidence, Gradients
from autocompress.compress.calibrate.statistics import LayerStatistics
from autocompress.compress.factorise.low_rank import compose, factor_statistics, factorise
from autocompress.compress.prune.masks import Mask, Masks, reconstructed
from autocompress.compress.prune.sparsify import NEEDS_GRADIENTS
from autocompress.compress.quantize.affine import PARTS, StoredTensor
from autocompress.compress.quantize.rounding import store
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import kind_of
from autocompress.model.weights import weight_of
from autocompress.results.tensor_files import read_tensors, tensor_bytes

DISK_BYTES = 2 << 30
LIBRARY_BYTES = 512_000_000
MOST_FACTORS = 3
FORMAT = "6"  # part of every key; raised when the arithmetic of a variant changes


@dataclass(frozen=True, eq=False)
class Variant:
    """The shrunk weights of one module: one tensor, or factors of which the first is applied first; and the bias.

    A module that is removed as a whole has no factors.
    """

    factors: tuple[StoredTensor, ...]
    bias: Tensor | None

    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(factor.nbytes() for factor in self.factors)


def shrink(weight: Tensor, out: Mask | None, into: Mask | None) -> Tensor:
    """The rows of mask `out` and, in dimension 1, the channels of mask `into`; None keeps all."""
    if out is not None:
        weight = weight[torch.from_numpy(out).to(weight.device)]
    if into is not None:
        weight = weight[:, torch.from_numpy(into).to(weight.device)]
    return weight


@dataclass(frozen=True, eq=False)
class FloatWeight:
    """The pruned (and smoothed) weight of one module, its float factors, what each of them reads, and the bias."""

    whole: Tensor
    factors: tuple[Tensor, ...]
    seen: LayerStatistics | None
    bias: Tensor | None


def _exact_everywhere(name: str) -> IntegerForm:
    return IntegerForm.REDUCED


@dataclass
class VariantLibrary:
    """Variants of the modules of `evidence.model` (on one device, never changed), on disk by content hash and in memory by last use.

    Statistics of the layers' inputs let pruning, factors, zeros, rounding and the bias make up for errors; without them weights
    are cut and rounded to nearest. `integer_form` says which integers the kernel of a module may hold. `made` counts
    compressions, `reused` answers from memory or disk.
    """

    evidence: Evidence
    folder: Path | None = None
    integer_form: Callable[[str], IntegerForm] = _exact_everywhere
    memory_bytes: int = LIBRARY_BYTES
    made: int = 0
    reused: int = 0
    _memory: OrderedDict[str, Variant] = field(default_factory=OrderedDict)
    _held: int = 0
    _hashes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._disk = Cache(self.folder, DISK_BYTES)

    @property
    def model(self) -> nn.Module:
        """The model whose modules are compressed."""
        return self.evidence.model

    def get(
        self, name: str, config: ModuleConfig, masks: Masks, factors: Tensor | None = None
    ) -> Variant:
        """The variant of module `name`: pruned by `masks` (which are part of its key), factorised and quantised by `config`.

        `factors` (input channels,) multiply its columns, since a normalisation in front was divided by them.
        """
        if masks.dropped(name):
            return Variant((), None)
        out, into = masks.of(name, "out"), masks.of(name, "in")
        key = self._key(name, config, out, into, factors)
        variant = self._memory.get(key)
        if variant is None:
            variant = self._disk.read(_file_name(key), _read_variant)
        if variant is not None:
            self.reused += 1
        else:
            self.made += 1
            variant = self._make(name, config, masks, factors)
            if self.folder is not None:
                self._disk.write(_file_name(key), tensor_bytes(variant_to_tensors(variant, "")))
        self._remember(key, variant)
        return variant

    def _make(
        self, name: str, config: ModuleConfig, masks: Masks, factors: Tensor | None
    ) -> Variant:
        weight = self.float_weight(name, config, masks, factors)
        seen = factor_statistics(weight.seen, weight.factors)
        gradients = self._gradients(name, config, masks) if len(weight.factors) == 1 else None
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
        wanted, given = weight.whole.cpu(), compose([factor.dequantized() for factor in stored])
        mean = weight.seen.mean
        mean = mean.repeat_interleave(len(wanted) // len(mean), 0) if len(mean) > 1 else mean[0]
        return Variant(
            stored, corrected_bias(weight.bias, wanted.flatten(1), given.flatten(1), mean)
        )

    def _integers(self, name: str, config: ModuleConfig) -> tuple[ModuleConfig, int]:
        """Return the config that the module's kernel can hold, and the largest integer that it may multiply: 0 for float kernels."""
        kind = kind_of(self.model.get_submodule(name)) or ""
        if not config.integer(kind):
            return config, 0
        form = self.integer_form(name)
        return config.for_kernel(kind, form), form.largest

    def float_weight(
        self, name: str, config: ModuleConfig, masks: Masks, factors: Tensor | None = None
    ) -> FloatWeight:
        """The pruned and factorised weight before it is quantised."""
        module = self.model.get_submodule(name)
        weight, bias = weight_of(module).detach(), self.bias(name, masks.of(name, "out"))
        if factors is not None:
            weight = weight * factors.to(weight.device)
        out, into = masks.of(name, "out"), masks.of(name, "in")
        seen = self.evidence.statistics.get(name)
        if seen is not None and (factors is not None or len(seen.gram) > 1):
            seen = seen.of(None, factors).of_groups(out)
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

    def _gradients(self, name: str, config: ModuleConfig, masks: Masks) -> Gradients | None:
        """Of the elements that are left, where the config's zeros are chosen by them."""
        if (
            config.sparsity <= 0
            or config.sparsity_criterion not in NEEDS_GRADIENTS
            or name not in self.evidence.gradients
        ):
            return None
        found = self.evidence.gradients[name]
        out, into = masks.of(name, "out"), masks.of(name, "in")
        return replace(
            found, mean=shrink(found.mean, out, into), square=shrink(found.square, out, into)
        )

    def bias(self, name: str, out: Mask | None) -> Tensor | None:
        """The kept part of the module's bias."""
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
            if name in self.evidence.statistics:
                digest.update(self.evidence.statistics[name].digest.encode())
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


def variant_to_tensors(variant: Variant, prefix: str) -> dict[str, Tensor]:
    """Flat tensors for a safetensors file; `variant_from_tensors` reverses it."""
    tensors = {} if variant.bias is None else {f"{prefix}bias": variant.bias.cpu().contiguous()}
    if not variant.factors:
        tensors[f"{prefix}removed"] = torch.ones(1, dtype=torch.bool)
    for i, factor in enumerate(variant.factors):
        tensors[f"{prefix}factor{i}.bits{factor.weight_bits}.group{factor.group_size}"] = (
            factor.values.cpu().contiguous()
        )
        for part in PARTS:
            tensor = getattr(factor, part)
            if tensor is not None:
                tensors[f"{prefix}factor{i}.{part}"] = tensor.cpu().contiguous()
    return tensors


def variant_from_tensors(tensors: dict[str, Tensor], prefix: str) -> Variant:
    """Reverse of `variant_to_tensors`."""
    factors = []
    for i in range(MOST_FACTORS):
        found = [key for key in tensors if key.startswith(f"{prefix}factor{i}.bits")]
        if found:
            bits, _, group = found[0].rpartition("bits")[2].partition(".group")
            parts = {part: tensors.get(f"{prefix}factor{i}.{part}") for part in PARTS}
            factors.append(
                StoredTensor(tensors[found[0]], int(bits), group_size=int(group), **parts)
            )
    if not factors and f"{prefix}removed" not in tensors:
        raise KeyError(f"no factors under {prefix!r}")
    return Variant(tuple(factors), tensors.get(f"{prefix}bias"))
