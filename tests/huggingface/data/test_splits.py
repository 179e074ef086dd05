"""Splits that are given and splits that are cut."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import Splits, read_splits, shared_value
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


def test_a_test_split_has_labels_where_training_data_have_none(tmp_path: Path) -> None:
    plain, labelled = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    plain.write_text("".join(json.dumps({"text": f"a {i}"}) + "\n" for i in range(20)))
    rows = [{"text": f"b {i}", "sentiment": i} for i in range(20)]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = Options("m", data=str(plain), validation=str(labelled))
    for labels, source in (
        ((), "a"),
        (("mask",), "a"),
        (("label",), "b"),
        (("mask", "label"), "b"),
    ):
        splits = read_splits(options, labels=labels)
        assert splits.test is not None
        assert {record.values["text"][0] for record in splits.test} == {source}
        assert len(splits.validation) == (16 if source == "b" else 20)
    swapped = Options("m", data=str(labelled), validation=str(plain))
    assert len(read_splits(swapped, labels=("label",)).validation) == 20


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


def rows(path: Path, values: list[Any], column: str = "context") -> str:
    records = [{"question": f"q{i}", column: value} for i, value in enumerate(values)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def held(splits: Splits, column: str = "context") -> dict[str, set[Any]]:
    return {name: {r.values[column] for r in records} for name, records in splits.parts()}


def test_samples_that_share_a_text_stay_together(tmp_path: Path) -> None:
    """As the questions about a text of SQuAD, the captions of a picture, the sounds of a file."""
    draw = random.Random(0)
    for part, column in (("context", "passage"), ("image", "image"), ("audio", "file_name")):
        values = [f"value {draw.randrange(60)}" for _ in range(200)]
        options = Options("m", data=rows(tmp_path / "data.jsonl", values, column))
        splits = read_splits(options, together=part)
        parts = held(splits, column)
        names = list(parts)
        assert names == ["validation", "train", "test"]
        for i, name in enumerate(names):
            assert all(not parts[name] & parts[other] for other in names[:i])
        counts = {name: len(records) for name, records in splits.parts()}
        assert sum(counts.values()) == 200
        assert 35 <= counts["validation"] <= 40
        assert splits.notes[0] == (
            f"data: {counts['validation']} of 200 samples of the training data are the validation "
            f"split, which shares no {part} with the others"
        )
        again = read_splits(options, together=part)
        assert [r.place for r in again.validation] == [r.place for r in splits.validation]
    other = read_splits(replace(options, seed=1), together=part)
    assert [r.place for r in other.validation] != [r.place for r in splits.validation]


def test_samples_that_share_nothing_are_drawn_as_before(tmp_path: Path) -> None:
    values = [f"value {i}" for i in range(48)] + [None, ""]
    data = rows(tmp_path / "data.jsonl", values)
    named = {"context": "context"}
    for seed in (0, 3):
        single = read_splits(Options("m", data=data, seed=seed))
        drawn = set(random.Random(seed).sample(range(50), 10))
        for columns in (None, named):
            options = Options("m", data=data, seed=seed, columns=columns)
            splits = read_splits(options, together="context")
            assert splits == single
            assert {int(r.values["question"][1:]) for r in splits.validation} == drawn
    assert read_splits(options, together="image") == single  # there is no such column


def test_pictures_and_sounds_are_compared_by_what_they_are(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
    black, white = (image.new("L", (2, 2), level) for level in (0, 255))
    also = image.new("L", (2, 2), 0)
    values = [black, white, also, {"bytes": b"a", "path": None}, {"bytes": b"a", "path": "b.png"}]
    values += [{"path": "b.png"}, {"path": "b.png"}, np.zeros(3), np.zeros(3), np.ones(3), 7, None]
    found = [shared_value(Record({"x": value}, "here", tmp_path), "x") for value in values]
    assert found[0] == found[2] != found[1]
    assert found[3:7] == [b"a", b"a", "b.png", "b.png"]
    assert found[7] == found[8] != found[9]
    assert found[10:] == [None, None]


def test_few_values_that_are_shared(tmp_path: Path) -> None:
    data = rows(tmp_path / "two.jsonl", list("ab") * 10)
    two = read_splits(Options("m", data=data), together="context")
    assert {name: len(part) for name, part in held(two).items()} == {"validation": 1, "train": 1}
    assert two.notes == (
        "data: 10 of 20 samples of the training data are the validation split, which shares no "
        "context with the others",
        "data: no test split is cut, since all samples have the same context",
    )
    one = rows(tmp_path / "one.jsonl", ["a"] * 12)
    with pytest.raises(
        TaskError,
        match=r"^one\.jsonl line 1: all 12 samples have the same context, which a validation split "
        r"may not share; nearest: --validation FILE$",
    ):
        read_splits(Options("m", data=one), together="context")
    assert read_splits(Options("m", validation=one), together="context").test is None
