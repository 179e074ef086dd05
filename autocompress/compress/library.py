"""Compressed weights of one module under one config, made once and kept by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autocompress.candidate import ModuleConfig
from autocompress.compress.bias_correction import corrected_bias
from autocompress.compress.low_rank import rank_of, truncated_svd
from autocompress.compress.prune import Mask, Masks, weight_of
from autocompress.compress.quantize import StoredTensor
from autocompress.compress.rounding import store
from autocompress.compress.statistics import LayerStatistics
from autocompress.modules import kind_of

DISK_BYTES = 2 << 30
FORMAT = "3"  # part of every key; raised when the arithmetic of a variant changes
PARTS = ("scale", "zero_point", "multiplier")


@dataclass(frozen=True, eq=False)
class Variant:
    """The shrunk weights of one module: one tensor, or two factors of which the first is applied first; and the bias."""

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


def _kept_columns(module: nn.Module, into: Mask | None) -> Tensor | None:
    """Which columns of the flattened weight are left when only the input channels of mask `into` are."""
    if into is None:
        return None
    return torch.from_numpy(into).repeat_interleave(weight_of(module)[0, 0].numel())


@dataclass
class VariantLibrary:
    """Variants of the modules of `model` (weights on one device, never changed), on disk by content hash and in memory by last use.

    `statistics` of the layers' inputs let the rounding of a weight and its bias make up for errors; without them it is to
    nearest. With `saturates`, integer kernels get 7-bit weights where 8 were asked for. `made` counts compressions, `reused`
    answers from memory or disk.
    """

    model: nn.Module
    folder: Path | None = None
    statistics: Mapping[str, LayerStatistics] = field(default_factory=dict)
    saturates: bool = False
    memory_bytes: int = 512 << 20
    made: int = 0
    reused: int = 0
    _memory: OrderedDict[str, Variant] = field(default_factory=OrderedDict)
    _held: int = 0
    _hashes: dict[str, str] = field(default_factory=dict)

    def get(self, name: str, config: ModuleConfig, masks: Masks, factors: Tensor | None = None) -> Variant:
        """The variant of module `name`: pruned by `masks` (which are part of its key), factorised and quantised by `config`.

        `factors` (input channels,) multiply its columns, since a normalisation in front was divided by them.
        """
        out, into = masks.of(name, "out"), masks.of(name, "in")
        key = self._key(name, config, out, into, factors)
        variant = self._memory.get(key)
        if variant is None:
            variant = self._read(key)
        if variant is not None:
            self.reused += 1
        else:
            self.made += 1
            variant = self._make(name, config, masks, factors)
            self._write(key, variant)
        self._remember(key, variant)
        return variant

    def _make(self, name: str, config: ModuleConfig, masks: Masks, factors: Tensor | None) -> Variant:
        module = self.model.get_submodule(name)
        weights = self.float_factors(name, config, masks, factors)
        bias = self.bias(name, masks.of(name, "out"))
        statistics = self.statistics.get(name)
        if statistics is not None:
            statistics = statistics.of(_kept_columns(module, masks.of(name, "in")), factors)
        kind = kind_of(module) or ""
        config, integer = config.for_kernel(kind, self.saturates), config.integer(kind)
        last = len(weights) - 1
        stored = []
        seen = statistics
        for i, weight in enumerate(weights):
            stored.append(store(weight, config, integer, seen, has_bias=i == last and bias is not None))
            if seen is not None and i < last:
                seen = seen.after(weight.cpu().float())
        variant = Variant(tuple(stored), bias)
        if statistics is None or bias is None or config.weight_bits >= 16:
            return variant
        wanted, given = _product(weights).cpu(), _product([factor.dequantized() for factor in stored])
        mean = statistics.mean.repeat_interleave(len(wanted) // len(statistics.mean), 0) if len(statistics.mean) > 1 else statistics.mean[0]
        return Variant(variant.factors, corrected_bias(bias, wanted.flatten(1), given.flatten(1), mean))

    def float_factors(self, name: str, config: ModuleConfig, masks: Masks, factors: Tensor | None = None) -> tuple[Tensor, ...]:
        """The pruned and factorised weight before it is quantised."""
        weight = weight_of(self.model.get_submodule(name)).detach()
        if factors is not None:
            weight = weight * factors.to(weight.device)
        weight = shrink(weight, masks.of(name, "out"), masks.of(name, "in"))
        if config.rank_ratio >= 1 or not factorisable(self.model.get_submodule(name)):
            return (weight,)
        return truncated_svd(weight, rank_of(weight.shape[0], weight.shape[1], config.rank_ratio))

    def bias(self, name: str, out: Mask | None) -> Tensor | None:
        """The kept part of the module's bias."""
        bias = getattr(self.model.get_submodule(name), "bias", None)
        return None if bias is None else shrink(bias.detach(), out, None).float().cpu()

    def _key(self, name: str, config: ModuleConfig, out: Mask | None, into: Mask | None, factors: Tensor | None) -> str:
        if name not in self._hashes:
            module = self.model.get_submodule(name)
            digest = hashlib.sha256(FORMAT.encode())
            for parameter in module.parameters(recurse=False):
                digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
            if name in self.statistics:
                digest.update(self.statistics[name].digest.encode())
            self._hashes[name] = digest.hexdigest()
        # Whether the kernel is an integer one:
        grid_depends = config.group_size > 0 or not config.symmetric or (self.saturates and config.weight_bits == 8)
        bits = config.activation_bits if grid_depends else 32
        made_of = replace(config, activation_bits=bits, pruning_ratio=0.0, smoothing=0.0, activation_mode="auto")
        digest = hashlib.sha256(f"{self._hashes[name]} {made_of} {self.saturates}".encode())
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

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Variant | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            return variant_from_tensors(load_file(path), "")
        except (SafetensorError, OSError, KeyError):
            path.unlink(missing_ok=True)  # damaged; it is made again
            return None

    def _write(self, key: str, variant: Variant) -> None:
        path = self._path(key)
        if path is None:
            return
        # A cache that cannot be written costs time, never a result.
        with contextlib.suppress(OSError, SafetensorError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            os.close(handle)
            save_file(variant_to_tensors(variant, ""), temporary)
            os.replace(temporary, path)


def trim_folder(folder: Path, limit_bytes: int = DISK_BYTES) -> None:
    """Remove the variants that were read or written longest ago until the folder holds at most `limit_bytes`."""
    files = []
    for path in folder.rglob("*.safetensors"):
        with contextlib.suppress(OSError):  # another process trims as well
            state = path.stat()
            files.append((max(state.st_atime_ns, state.st_mtime_ns), state.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def factorisable(module: nn.Module) -> bool:
    """Whether ranks apply: matrices that multiply activations."""
    return kind_of(module) == "linear"


def _product(weights: Sequence[Tensor]) -> Tensor:
    """One weight, or second @ first."""
    return weights[0] if len(weights) == 1 else weights[1] @ weights[0]


def variant_to_tensors(variant: Variant, prefix: str) -> dict[str, Tensor]:
    """Flat tensors for a safetensors file; `variant_from_tensors` reverses it."""
    tensors = {} if variant.bias is None else {f"{prefix}bias": variant.bias.cpu().contiguous()}
    for i, factor in enumerate(variant.factors):
        tensors[f"{prefix}factor{i}.bits{factor.weight_bits}.group{factor.group_size}"] = factor.values.cpu().contiguous()
        for part in PARTS:
            tensor = getattr(factor, part)
            if tensor is not None:
                tensors[f"{prefix}factor{i}.{part}"] = tensor.cpu().contiguous()
    return tensors


def variant_from_tensors(tensors: dict[str, Tensor], prefix: str) -> Variant:
    """Reverse of `variant_to_tensors`."""
    factors = []
    for i in range(2):
        found = [key for key in tensors if key.startswith(f"{prefix}factor{i}.bits")]
        if found:
            bits, _, group = found[0].rpartition("bits")[2].partition(".group")
            parts = {part: tensors.get(f"{prefix}factor{i}.{part}") for part in PARTS}
            factors.append(StoredTensor(tensors[found[0]], int(bits), group_size=int(group), **parts))
    if not factors:
        raise KeyError(f"no factors under {prefix!r}")
    return Variant(tuple(factors), tensors.get(f"{prefix}bias"))
