"""Files of a run folder, written so that neither a crash nor a full disk leaves half of one."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.errors import RunFolderError


def read_json(path: Path) -> Any:
    """Parsed content; RunFolderError when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunFolderError(
            f"{path}: not found; {path.parent} is not the folder of a finished search"
        ) from None
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path}: damaged ({error}); remove it and run the same search again"
        ) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader or a crash never sees half of it; RunFolderError when the disk or a permission refuses."""
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise disk_error(path, error) from error


def write_json(path: Path, data: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(data, indent=1))


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Append one CSV row, with a header when the file is new."""
    try:
        new = not path.exists() or path.stat().st_size == 0
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if new:
                writer.writeheader()
            writer.writerow({column: row.get(column, "") for column in columns})
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> RunFolderError:
    """One line for a write that failed."""
    return RunFolderError(
        f"{path}: cannot be written ({error.strerror or error}); results up to here are kept, free the disk or choose another --out, "
        "then run the same command again"
    )
