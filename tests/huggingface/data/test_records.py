"""Records of data files, and one line for each file that cannot be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.records import read_records as read_with_notes


def read_records(path: str) -> list[Record]:
    return read_with_notes(path, [])


def written(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"text": "one", "label": 1}\n\n{"text": "two, three", "label": 0}\n'),
        ("a.json", '[{"text": "one", "label": 1}, {"text": "two, three", "label": 0}]'),
        ("b.json", '{"text": "one", "label": 1}\n{"text": "two, three", "label": 0}\n'),
        ("a.csv", 'text,label\none,1\n"two, three",0\n'),
        ("a.tsv", "text\tlabel\none\t1\ntwo, three\t0\n"),
        ("bom.csv", '\ufefftext,label\none,1\n"two, three",0\n'),
    ],
)
def test_files_with_the_same_content(tmp_path: Path, name: str, text: str) -> None:
    records = read_records(written(tmp_path, name, text))
    assert [record.values["text"] for record in records] == ["one", "two, three"]
    assert [int(record.values["label"]) for record in records] == [1, 0]
    assert records[1].place.startswith(name)
    assert records[1].folder == tmp_path


def test_places_count_empty_lines(tmp_path: Path) -> None:
    records = read_records(written(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": 2}\n'))
    assert [record.place for record in records] == ["a.jsonl line 1", "a.jsonl line 3"]
    records = read_records(written(tmp_path, "a.txt", "first\n\n second\n"))
    assert [record.values["text"] for record in records] == ["first", " second"]


@pytest.mark.parametrize("separator", ["\u2028", "\x0c", "\x85", "\x1e"])
def test_only_line_breaks_end_a_line(tmp_path: Path, separator: str) -> None:
    text = f"one{separator}two"
    line = json.dumps({"text": text, "label": 1}, ensure_ascii=False)
    contents = {"a.jsonl": line, "a.csv": f"text,label\n{text},1", "a.txt": text}
    contents["a.tsv"] = f"text\tlabel\n{text}\t1"
    for name, content in contents.items():
        if name == "a.jsonl" and separator not in content:
            continue  # JSON writes it as an escape
        records = read_records(written(tmp_path, name, f"{content}\n{content}\n"))
        assert sum(record.values["text"] == text for record in records) == 2, name


def test_folders_of_files(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.JPG", "dog/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    records = read_records(str(tmp_path))
    assert [dict(record.values) for record in records] == [
        {"file_name": "cat/1.png", "label": "cat"},
        {"file_name": "dog/2.JPG", "label": "dog"},
    ]
    written(tmp_path, "metadata.csv", "file_name,label\ncat/1.png,7\n")
    (record,) = read_records(str(tmp_path))
    assert dict(record.values) == {"file_name": "cat/1.png", "label": "7"}


def test_arrow_and_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install pyarrow")
    from pyarrow import parquet

    table = arrow.table({"text": ["one", "two"], "label": [1, 0]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with (
        arrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        arrow.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        records = read_records(str(tmp_path / name))
        assert [dict(record.values) for record in records] == table.to_pylist()


def test_saved_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install datasets")
    rows = datasets.Dataset.from_dict({"text": ["one", "two"]})
    rows.save_to_disk(str(tmp_path / "rows"))
    assert [r.values["text"] for r in read_records(str(tmp_path / "rows"))] == ["one", "two"]
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(TaskError, match=r"holds the splits train; name one: .*splits/train$"):
        read_records(str(tmp_path / "splits"))


def test_libraries_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)  # the import fails
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(TaskError, match=rf"{name}: .* need pyarrow.*pip install pyarrow$"):
            read_records(written(tmp_path, name, ""))


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.jsonl", "", "a.jsonl: holds no sample"),
        ("a.csv", "text,label\n", "a.csv: holds no sample"),
        ("a.txt", "\n\n", "a.txt: holds no sample"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl line 2: is no JSON (Expecting value)"),
        (
            "a.jsonl",
            "[1, 2]\n",
            'a.jsonl line 1: expected an object such as {"text": ...}, got list',
        ),
        ("a.json", '{"a": 1}', "a.json: expected a list of objects, got dict"),
        ("a.json", "[1]", 'a.json entry 1: expected an object such as {"text": ...}, got int'),
        ("a.csv", "a,b\n1,2,3\n", "a.csv line 2: has more fields than the 2 columns"),
        ("a.csv", "a,b\n1\n", "a.csv line 2: has fewer fields than the 2 columns"),
        ("a.jsonlines", "", "a.jsonlines: unknown kind of data file '.jsonlines'; nearest: .jsonl"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, error: str) -> None:
    with pytest.raises(TaskError, match=re.escape(error)) as caught:
        read_records(written(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_places_without_data(tmp_path: Path) -> None:
    written(tmp_path, "train.jsonl", json.dumps({"a": 1}))
    with pytest.raises(TaskError, match=r"trian\.jsonl: no such data file; nearest: train\.jsonl$"):
        read_records(str(tmp_path / "trian.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match=r"empty: holds no image and no sound; expected .*LABEL"):
        read_records(str(tmp_path / "empty"))
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(TaskError, match=r"latin\.txt: is no text in UTF-8 \(byte 3\)$"):
        read_records(str(tmp_path / "latin.txt"))


def test_a_column_for_each_language_of_a_translation(tmp_path: Path) -> None:
    row = {"id": 3, "translation": {"en": "one", "de": "eins"}}
    text = json.dumps(row) + "\n" + json.dumps({"translation": "a text"})
    first, second = read_records(written(tmp_path, "a.jsonl", text))
    assert first.values == {"id": 3, "translation.en": "one", "translation.de": "eins"}
    assert second.values == {"translation": "a text"}
