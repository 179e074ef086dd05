"""Name, read and write the files of a run folder.

Neither a crash nor a full disk leaves half of a file.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.errors import RunFolderError

RUN_FILE, JOURNAL_FILE, TRIALS_FILE = "run.json", "study.journal", "trials.csv"
SENSITIVITY_FILE, FRONT_FILE, REPORT_FILE = "sensitivity.csv", "front.json", "report.html"
FRONT_TABLE_FILE = "front.csv"  # the same front in plain numbers
STUDENT_FILE, TABLE_FILE = "student.safetensors", "latency_table.json"
# Files of each exported point.
MODEL_FILE, RECIPE_FILE, WEIGHTS_FILE = "model.onnx", "recipe.yaml", "model.safetensors"
FLOAT_FOLDER = Path("models", "baseline")
FLOAT_FILE = FLOAT_FOLDER / MODEL_FILE
TFLITE_FILE = "model.tflite"  # in the place of model.onnx, for LiteRT
NOTES_FILE = "README.md"
TRIAL_COLUMNS = ("number", "state", "size_bytes", "latency_ms", "accuracy", "seconds", "cause")


def model_path(folder: Path) -> Path:
    """Return the path of the model's file of a point.

    Args:
        folder: of the point.

    Returns:
        model.tflite if it is there, model.onnx otherwise.
    """
    flat = folder / TFLITE_FILE
    return flat if flat.is_file() else folder / MODEL_FILE


def read_json(path: Path) -> Any:
    """Return the parsed content of a JSON file.

    Args:
        path: a file of a run folder.

    Returns:
        Plain types.

    Raises:
        RunFolderError: the file is missing, cannot be read, or is damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunFolderError(
            f"{path}: not found; {path.parent} is not the folder of a finished search"
        ) from None
    except NotADirectoryError as error:
        raise RunFolderError(
            f"{path}: not found; {path.parent} is a file, not the folder of a search"
        ) from error
    except OSError as error:  # the file may be good
        raise RunFolderError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise RunFolderError(
            f"{path}: damaged ({error}); remove it and run the same search again"
        ) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that neither a reader nor a crash ever sees half of it.

    Args:
        path: its folder is made if needed.
        content: text or bytes.

    Raises:
        RunFolderError: the disk is full or a permission is missing.
    """
    write_parts(path, [content.encode() if isinstance(content, str) else content])


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file as `write_atomic` does, one part after another.

    Args:
        path: its folder is made if needed.
        parts: in order; one at a time is in memory.

    Raises:
        RunFolderError: the disk is full or a permission is missing.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise disk_error(path, error) from error


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON as `write_atomic` does.

    Args:
        path: its folder is made if needed.
        data: plain types.

    Raises:
        RunFolderError: the disk is full or a permission is missing.
    """
    write_atomic(path, json.dumps(data, indent=1))


def begin_rows(path: Path, columns: Sequence[str]) -> None:
    """Write the header of a CSV file, unless the file has one.

    Args:
        path: of the file.
        columns: names in their order.

    Raises:
        RunFolderError: the disk is full or a permission is missing.
    """
    if not path.exists() or path.stat().st_size == 0:
        write_atomic(path, ",".join(columns) + "\r\n")  # as the csv module ends lines


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Append one row to a CSV file, with a header if the file is new.

    Processes that share a file call `begin_rows` before, or its header may be written twice.

    Args:
        path: in a folder that exists.
        columns: names in their order.
        row: column -> value; missing ones are empty.

    Raises:
        RunFolderError: the disk is full or a permission is missing.
    """
    try:
        begin_rows(path, columns)
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writerow({column: row.get(column, "") for column in columns})
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> RunFolderError:
    """Return the error of one line for a write that failed.

    Args:
        path: the file.
        error: of the operating system.

    Returns:
        The error, to be raised by the caller.
    """
    reason = error.strerror or error
    if isinstance(error, (FileExistsError, NotADirectoryError, FileNotFoundError)):
        return RunFolderError(f"{path}: cannot be written ({reason}); name another folder")
    return RunFolderError(
        f"{path}: cannot be written ({reason}); results up to here are kept, free the disk or "
        "choose another folder, then run the same command again"
    )
