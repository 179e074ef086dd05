"""Tensors on disk as safetensors files with a checksum, so that a damaged one is never taken for a whole one; nothing is ever unpickled."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from autocompress.errors import DamagedFileError
from autocompress.results.files import write_atomic

CHECKSUM = "crc32"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None
) -> None:
    """Write a file whole or not at all, with `notes` in its header; RunFolderError when the disk or a permission refuses."""
    write_atomic(path, tensor_bytes(tensors, notes))


def tensor_bytes(tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a file that `read_tensors` reads.

    Args:
        tensors: on any device, by name.
        notes: texts for the header.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(stored, {**(notes or {}), CHECKSUM: _checksum(stored)})


def read_tensors(
    path: Path, device: torch.device | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, notes) of a file; DamagedFileError when it is missing, torn, or a bit of it has changed."""
    try:
        with safe_open(path, "pt") as file:
            notes = dict(file.metadata() or {})
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(f"{path}: damaged ({error})") from error
    if notes.pop(CHECKSUM, None) != _checksum(tensors):
        raise DamagedFileError(f"{path}: damaged (its checksum is another one)")
    return {name: tensor.to(device or "cpu") for name, tensor in tensors.items()}, notes


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(name.encode(), found)
        if tensors[name].numel():
            found = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def write_state(path: Path, state: Any) -> None:
    """Nested dicts and lists of tensors, numbers and texts, as optimizers give them."""
    tensors: dict[str, Tensor] = {}

    def packed(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value
            return {"tensor": len(tensors) - 1}
        if isinstance(value, Mapping):
            return {"items": [[key, packed(item)] for key, item in value.items()]}
        return [packed(item) for item in value] if isinstance(value, (list, tuple)) else value

    notes = {"state": json.dumps(packed(state))}
    write_tensors(path, tensors, notes)


def read_state(path: Path, device: torch.device) -> Any:
    """Reverse of `write_state`; tuples are lists. DamagedFileError as `read_tensors`."""
    tensors, notes = read_tensors(path, device)

    def unpacked(value: Any) -> Any:
        if isinstance(value, list):
            return [unpacked(item) for item in value]
        if not isinstance(value, dict):
            return value
        return (
            tensors[str(value["tensor"])]
            if "tensor" in value
            else {key: unpacked(item) for key, item in value["items"]}
        )

    return unpacked(json.loads(notes["state"]))
