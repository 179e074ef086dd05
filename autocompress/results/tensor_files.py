"""Store tensors in safetensors files with a checksum.

A damaged file is never taken for a whole one, and nothing is ever unpickled.
"""

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

from autocompress.errors import DamagedFileError, RunFolderError
from autocompress.results.files import write_atomic

CHECKSUM = "crc32"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a file as `write_atomic` does.

    Args:
        path: its folder is made if needed.
        tensors: name -> tensor on any device.
        notes: texts for the header.

    Raises:
        RunFolderError: the disk is full or a permission is missing.
    """
    write_atomic(path, tensor_bytes(tensors, notes))


def tensor_bytes(tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a file that `read_tensors` reads.

    Args:
        tensors: name -> tensor on any device.
        notes: texts for the header.

    Returns:
        A safetensors file with its checksum.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(stored, {**(notes or {}), CHECKSUM: _checksum(stored)})


def read_tensors(
    path: Path, device: torch.device | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the notes of a file.

    Args:
        path: as `write_tensors` wrote it.
        device: of the tensors; default: the CPU.

    Returns:
        (tensors, notes).

    Raises:
        DamagedFileError: the file is missing or torn, or its content has changed.
        RunFolderError: a permission is missing.
    """
    try:
        with safe_open(path, "pt") as file:
            notes = dict(file.metadata() or {})
        tensors = load_file(path)
    except PermissionError as error:  # the file may be good
        raise RunFolderError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(f"{path}: damaged ({error})") from error
    if notes.pop(CHECKSUM, None) != _checksum(tensors):
        raise DamagedFileError(f"{path}: damaged (its checksum is another one)")
    return {name: tensor.to(device or "cpu") for name, tensor in tensors.items()}, notes


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(name.encode(), checksum)
        if tensors[name].numel():
            content = tensors[name].flatten().view(torch.uint8).numpy().data
            checksum = zlib.crc32(content, checksum)
    return f"{checksum:08x}"


def write_state(path: Path, state: Any) -> None:
    """Write nested dicts and lists of tensors, numbers and texts, such as an optimizer's state.

    Args:
        path: its folder is made if needed.
        state: the nested value.

    Raises:
        RunFolderError: the disk is full or a permission is missing.
    """
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
    """Return the state that `write_state` wrote.

    Args:
        path: the file.
        device: of the tensors.

    Returns:
        The nested value; tuples come back as lists.

    Raises:
        DamagedFileError: the file is missing or torn, or its content has changed.
    """
    tensors, notes = read_tensors(path, device)

    def unpacked(value: Any) -> Any:
        if isinstance(value, list):
            return [unpacked(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            return tensors[str(value["tensor"])]
        return {key: unpacked(item) for key, item in value["items"]}

    return unpacked(json.loads(notes["state"]))
