"""Folders of splits: splits are no classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.reading.split_folders import split_folders
from autocompress.huggingface.data.records import read_records
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.options import Options


def touched(place: Path, *names: str) -> Path:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    return place


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("train/cat/1.png validation/cat/2.png test/cat/3.png", "train validation test"),
        ("Train/cat/1.png val/cat/2.png eval/cat/3.png", "Train val eval"),
        ("training/1.wav notes.md", "training"),
        ("train/1.png __MACOSX/train/._1.png .cache/2.png", "train"),
        ("train/1.png plane/2.png", ""),  # classes
        ("test/1.png", ""),
        ("train/1.png dev/2.png metadata.csv", ""),
        ("1.png", ""),
    ],
)
def test_folders_that_are_splits(names: str, splits: str, tmp_path: Path) -> None:
    found = split_folders(touched(tmp_path, *names.split()))
    assert [folder.name for folder in found.values()] == splits.split()


def test_splits_of_a_folder_are_read_as_splits(tmp_path: Path) -> None:
    names = [f"{split}/{c}/{i}.png" for split in ("train", "dev") for c in "ab" for i in range(3)]
    place = touched(tmp_path / "photos", *names, "train/__MACOSX/._1.png")
    splits = read_splits(Options("m", data=str(place)))
    assert splits.train is not None
    assert {r.values["label"] for r in [*splits.train, *splits.validation]} == {"a", "b"}
    assert {r.folder.name for r in splits.validation} == {"dev"}
    assert {r.folder.name for r in splits.train} == {"train"}
    assert len(splits.validation) == 6
    assert f"data: folders of {place} are splits: train is train, validation is dev" in splits.notes
    other = touched(tmp_path / "other", "a/1.png")
    splits = read_splits(Options("m", data=str(place), validation=str(other)))
    assert {r.folder.name for r in splits.validation} == {"other"}
    assert f"data: folders of {place} are splits: train is train" in splits.notes


def test_one_line_for_folders_that_cannot_be_told_apart(tmp_path: Path) -> None:
    place = touched(tmp_path, "train/a/1.png", "dev/a/1.png")
    with pytest.raises(TaskError) as caught:
        read_records(str(place), [])
    assert str(caught.value) == (f"{place}: holds the splits dev, train; name one: {place}/dev")
    touched(tmp_path, "valid/a/1.png")
    with pytest.raises(TaskError) as caught:
        split_folders(place)
    assert str(caught.value) == (
        f"{place}: dev and valid are both validation data; nearest: give each split by itself, as "
        f"--validation {place}/NAME"
    )
