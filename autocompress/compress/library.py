"""Compressed weights of one module under one config, made once and kept by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autocompress.candidate import ModuleConfig
from autocompress.compress.low_rank import rank_of, truncated_svd
from autocompress.compress.prune import Mask, Masks, weight_of
from autocompress.compress.quantize import quantize_weight

DISK_BYTES = 2 << 30
FORMAT = "2"  # part of every key; raised when the arithmetic of a variant changes


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A weight as the file stores it, on the CPU: int8 values with a scale per row (4 and 8 bits), float16 or float32 values."""

    values: Tensor
    weight_bits: int
    scale: Tensor | None = None

    def dequantized(self) -> Tensor:
        """float32 of the same shape."""
        values = self.values.float()
        return values if self.scale is None else values * self.scale.view(-1, *[1] * (values.dim() - 1))


@dataclass(frozen=True, eq=False)
class Variant:
    """The shrunk weights of one module: one tensor, or two factors of which the first is applied first; and the bias."""

    factors: tuple[StoredTensor, ...]
    bias: Tensor | None

    def nbytes(self) -> int:
        """Bytes in memory."""
        tensors = [factor.values for factor in self.factors] + [f.scale for f in self.factors if f.scale is not None]
        return sum(t.numel() * t.element_size() for t in tensors)


def shrink(weight: Tensor, out: Mask | None, into: Mask | None) -> Tensor:
    """The rows of mask `out` and, in dimension 1, the channels of mask `into`; None keeps all."""
    if out is not None:
        weight = weight[torch.from_numpy(out).to(weight.device)]
    if into is not None:
        weight = weight[:, torch.from_numpy(into).to(weight.device)]
    return weight


def store(weight: Tensor, weight_bits: int) -> StoredTensor:
    """`weight` at `weight_bits`."""
    if weight_bits == 32:
        return StoredTensor(weight.detach().float().contiguous().cpu(), 32)
    if weight_bits == 16:
        return StoredTensor(weight.detach().half().contiguous().cpu(), 16)
    values, scale = quantize_weight(weight, weight_bits)
    return StoredTensor(values.contiguous().cpu(), weight_bits, scale.cpu())


@dataclass
class VariantLibrary:
    """Variants of the modules of `model` (weights on one device, never changed), on disk by content hash and in memory by last use.

    `made` counts compressions, `reused` answers from memory or disk.
    """

    model: nn.Module
    folder: Path | None = None
    memory_bytes: int = 512 << 20
    made: int = 0
    reused: int = 0
    _memory: OrderedDict[str, Variant] = field(default_factory=OrderedDict)
    _held: int = 0
    _hashes: dict[str, str] = field(default_factory=dict)

    def get(self, name: str, config: ModuleConfig, masks: Masks) -> Variant:
        """The variant of module `name`: pruned by `masks` (which are part of its key), factorised and quantised by `config`."""
        out, into = masks.of(name, "out"), masks.of(name, "in")
        key = self._key(name, config, out, into)
        variant = self._memory.get(key)
        if variant is None:
            variant = self._read(key)
        if variant is not None:
            self.reused += 1
        else:
            self.made += 1
            factors = self.float_factors(name, config, masks)
            variant = Variant(tuple(store(factor, config.weight_bits) for factor in factors), self.bias(name, out))
            self._write(key, variant)
        self._remember(key, variant)
        return variant

    def float_factors(self, name: str, config: ModuleConfig, masks: Masks) -> tuple[Tensor, ...]:
        """The pruned and factorised weight before it is quantised."""
        weight = weight_of(self.model.get_submodule(name)).detach()
        weight = shrink(weight, masks.of(name, "out"), masks.of(name, "in"))
        if config.rank_ratio >= 1 or not isinstance(self.model.get_submodule(name), nn.Linear):
            return (weight,)
        return truncated_svd(weight, rank_of(weight.shape[0], weight.shape[1], config.rank_ratio))

    def bias(self, name: str, out: Mask | None) -> Tensor | None:
        """The kept part of the module's bias."""
        bias = getattr(self.model.get_submodule(name), "bias", None)
        return None if bias is None else shrink(bias.detach(), out, None).float().cpu()

    def _key(self, name: str, config: ModuleConfig, out: Mask | None, into: Mask | None) -> str:
        if name not in self._hashes:
            module = self.model.get_submodule(name)
            digest = hashlib.sha256(FORMAT.encode())
            for parameter in module.parameters(recurse=False):
                digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
            self._hashes[name] = digest.hexdigest()
        digest = hashlib.sha256(f"{self._hashes[name]} {config.weight_bits} {config.rank_ratio}".encode())
        for mask in (out, into):
            digest.update(b"all" if mask is None else np.packbits(mask).tobytes() + b"|")
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


def variant_to_tensors(variant: Variant, prefix: str) -> dict[str, Tensor]:
    """Flat tensors for a safetensors file; `variant_from_tensors` reverses it."""
    tensors = {} if variant.bias is None else {f"{prefix}bias": variant.bias.cpu().contiguous()}
    for i, factor in enumerate(variant.factors):
        tensors[f"{prefix}factor{i}.bits{factor.weight_bits}"] = factor.values.cpu().contiguous()
        if factor.scale is not None:
            tensors[f"{prefix}factor{i}.scale"] = factor.scale.cpu().contiguous()
    return tensors


def variant_from_tensors(tensors: dict[str, Tensor], prefix: str) -> Variant:
    """Reverse of `variant_to_tensors`."""
    factors = []
    for i in range(2):
        found = [key for key in tensors if key.startswith(f"{prefix}factor{i}.bits")]
        if found:
            scale = tensors.get(f"{prefix}factor{i}.scale")
            factors.append(StoredTensor(tensors[found[0]], int(found[0].rpartition("bits")[2]), scale))
    if not factors:
        raise KeyError(f"no factors under {prefix!r}")
    return Variant(tuple(factors), tensors.get(f"{prefix}bias"))
