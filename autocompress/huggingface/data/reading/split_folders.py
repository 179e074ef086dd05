"""Find the splits of a folder that has one folder per split."""

from __future__ import annotations

from pathlib import Path

from autocompress.errors import TaskError

SAVED = "dataset_dict.json"  # lists the splits of a folder that `datasets` saved
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def is_hidden(name: str) -> bool:
    """Return True for files and folders that systems put beside the data, such as "__MACOSX".

    Args:
        name: of a file or folder.
    """
    return name.startswith((".", "__"))


def split_folders(path: Path) -> dict[str, Path]:
    """Return the folders of the splits.

    Args:
        path: of a file or folder.

    Returns:
        By "train", "validation" and "test", those that are there. Empty if the folder has a
        metadata file, a folder that is no split, or neither training nor validation data.

    Raises:
        TaskError: two folders are the same split.
    """
    if not path.is_dir() or any(path.glob("metadata.*")):
        return {}
    inner = sorted(p for p in path.iterdir() if p.is_dir() and not is_hidden(p.name))
    found: dict[str, Path] = {}
    for folder in inner:
        split = next((s for s, names in NAMES.items() if folder.name.lower() in names), None)
        if split is None:
            return {}
        if split in found:
            raise TaskError(
                f"{path}: {found[split].name} and {folder.name} are both {split} data; "
                f"nearest: give each split by itself, as --validation {path}/NAME"
            )
        found[split] = folder
    if not found.keys() & {"train", "validation"}:
        return {}
    return {split: found[split] for split in NAMES if split in found}
