"""Model folders on the command line: all options, and a whole search from folder to files."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from small_folders import bert, save, texts, tokenizer, transformers, write_jsonl

from autocompress.cli.arguments import build_parser
from autocompress.cli.folder_options import task_arguments
from autocompress.cli.main import main
from autocompress.cli.parser import UsageError


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a classifier, and texts with its own answers."""
    place = tmp_path_factory.mktemp("folders")
    model = transformers.BertForSequenceClassification(bert(num_labels=2))
    save(place / "model", model, tokenizer())
    pipeline = transformers.pipeline("text-classification", model=str(place / "model"))
    rows = [{"body": text, "label": pipeline(text)[0]["label"]} for text in texts(60)]
    write_jsonl(place / "train.jsonl", rows)
    write_jsonl(place / "dev.jsonl", rows[:30])
    write_jsonl(place / "test.jsonl", rows[30:])
    return place


def test_all_options_become_arguments(place: Path) -> None:
    words = (
        f"inspect {place / 'model'} --data a --validation b --test c --task fill-mask --metric f1 "
        "--metric accuracy --column text=body --column label=y --max-length 9 --batch-size 3 "
        "--batch 2 --length 8 --length 16 --fixed-length 8 --samples 7 "
        "--data-seed 5 --trust-remote-code"
    )
    assert task_arguments(build_parser().parse_args(words.split())) == {
        "data": "a",
        "validation": "b",
        "test": "c",
        "task": "fill-mask",
        "metric": ["f1", "accuracy"],
        "columns": {"text": "body", "label": "y"},
        "max_length": 9,
        "batch_size": 3,
        "batch": 2,
        "length": [8, 16],
        "fixed_length": 8,
        "samples": 7,
        "seed": 5,
        "trust_remote_code": True,
    }
    assert task_arguments(build_parser().parse_args(["inspect", str(place / "model")])) == {}


def test_options_of_folders_belong_to_folders() -> None:
    arguments = build_parser().parse_args(["inspect", "a.py:task", "--length", "8"])
    with pytest.raises(
        UsageError, match=r"^--length: TASK 'a\.py:task' is no model folder; nearest: a folder "
    ):
        task_arguments(arguments)


def test_wrong_columns_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, line = run(capsys, "search", "m", "--column", "text")
    assert code == 2
    assert line.startswith("autocompress search: --column: expected part=column, for example ")
    assert "nearest: text=body" in line


def test_wrong_data_end_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, line = run(capsys, "inspect", place / "model", "--data", place / "trian.jsonl")
    assert (code, line) == (
        1,
        f"autocompress: {place / 'trian.jsonl'}: no such data file; nearest: train.jsonl\n",
    )


@pytest.mark.slow
def test_a_search_from_folder_to_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = [place / name for name in ("train.jsonl", "dev.jsonl", "test.jsonl")]
    (place / "space.yaml").write_text("modules: [{match: '*', weight_bits: [4, 8, 16]}]\n")
    options = ["--column", "text=body", "--length", 12, "--length", 24, "--trials", 2]
    options += ["--space", place / "space.yaml", "--finalize-steps", 0, "--out", place / "run"]
    files = ["--data", splits[0], "--validation", splits[1], "--test", splits[2]]
    code, out, err = run(capsys, "search", place / "model", *files, *options)
    assert code == 0, err
    assert "model folder: text-classification, accuracy is accuracy" in out + err
    front = json.loads((place / "run/front.json").read_text())
    assert front["baseline"]["accuracy"] == front["baseline"]["test_accuracy"] == 1.0
    point = front["points"][0]
    assert point["size_bytes"] < front["baseline"]["size_bytes"]
    assert "latency at 24 tokens (ms)" in point["metrics"]
    file = place / "run" / point["artifact"] / "model.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert session.get_outputs()[0].name == "logits"
    right = 0
    rows = [json.loads(line) for line in splits[2].read_text().splitlines()]
    for row in rows:  # the file alone, one text at a time
        feed = dict(tokenizer()(row["body"], return_tensors="np"))
        names = [value.name for value in session.get_inputs()]
        (logits,) = session.run(["logits"], {name: feed[name] for name in names})
        right += f"LABEL_{logits[0].argmax()}" == row["label"]
    assert right / len(rows) == pytest.approx(point["test_accuracy"], abs=1.5 / len(rows))
    code, out, _ = run(
        capsys,
        "evaluate",
        file,
        place / "model",
        *files,
        "--column",
        "text=body",
        "--split",
        "test",
    )
    assert code == 0
    assert f"{point['test_accuracy']:.4f}" in out
    assert torch.is_grad_enabled()
