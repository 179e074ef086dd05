"""Splits that are given and splits that are cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.splits import Splits, read_splits
from autocompress.huggingface.options import Options


def lines(path: Path, count: int) -> str:
    path.write_text("".join(f"{path.stem} {i}\n" for i in range(count)))
    return str(path)


def texts(splits: Splits) -> dict[str, list[str]]:
    return {name: [r.values["text"] for r in records] for name, records in splits.parts()}


def test_all_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    files = {name: lines(tmp_path / f"{name}.txt", 3) for name in ("data", "validation", "test")}
    splits = read_splits(Options("m", **files))
    assert texts(splits) == {
        "validation": ["validation 0", "validation 1", "validation 2"],
        "train": ["data 0", "data 1", "data 2"],
        "test": ["test 0", "test 1", "test 2"],
    }
    assert splits.notes == ()


def test_missing_splits_are_cut_by_the_seed(tmp_path: Path) -> None:
    options = Options("m", data=lines(tmp_path / "data.txt", 50))
    splits, again = read_splits(options), read_splits(options)
    parts = texts(splits)
    assert {name: len(part) for name, part in parts.items()} == {
        "validation": 10,
        "train": 32,
        "test": 8,
    }
    assert sorted(text for part in parts.values() for text in part) == sorted(
        f"data {i}" for i in range(50)
    )
    assert texts(again) == parts
    assert splits.notes == (
        "data: 10 of 50 samples of the training data are the validation split",
        "data: 8 of 40 samples of the training data are the test split",
    )
    other = texts(read_splits(Options("m", data=options.data, seed=1)))
    assert other["validation"] != parts["validation"]


def test_a_test_split_is_cut_from_validation_data_alone(tmp_path: Path) -> None:
    splits = read_splits(Options("m", validation=lines(tmp_path / "dev.txt", 20)))
    parts = texts(splits)
    assert {name: len(part) for name, part in parts.items()} == {"validation": 16, "test": 4}
    assert splits.notes[-1] == (
        "data: training sees the inputs of the validation split, without labels"
    )
    few = read_splits(Options("m", validation=lines(tmp_path / "few.txt", 9)))
    assert few.test is None
    assert few.notes[0] == "data: 9 samples are too few to cut a test split from"


def test_most_samples(tmp_path: Path) -> None:
    files = {name: lines(tmp_path / f"{name}.txt", 30) for name in ("data", "validation")}
    splits = read_splits(Options("m", **files, samples=5))
    assert {name: len(part) for name, part in texts(splits).items()} == {
        "validation": 5,
        "train": 5,
        "test": 5,
    }
    assert "data: 5 of 30 samples of the validation are used" in splits.notes


def test_data_that_are_missing_or_too_few(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"^m: there is no data; nearest: --data FILE or "):
        read_splits(Options("m"))
    with pytest.raises(
        TaskError, match=r"^few\.txt line 1: 9 samples are too few to cut a validation split from; "
    ):
        read_splits(Options("m", data=lines(tmp_path / "few.txt", 9)))
