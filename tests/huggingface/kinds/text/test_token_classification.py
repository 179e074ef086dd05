"""Token classification: our answers are those of the pipeline of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_folders import bert, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.prepare import prepared

NAMES = {0: "O", 1: "B-PER", 2: "I-PER"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = bert(id2label=NAMES, label2id={name: i for i, name in NAMES.items()})
    model = transformers.BertForTokenClassification(config)
    return save(tmp_path_factory.mktemp("folders") / "tagger", model, tokenizer())


def test_f1_of_entities_and_accuracy_of_words(folder: Path, tmp_path: Path) -> None:
    pipeline = transformers.pipeline("token-classification", model=str(folder), ignore_labels=[])
    rows = []
    for text in texts(24):
        tags = [entry["entity"] for entry in pipeline(text)]
        rows.append({"tokens": text.split(), "ner_tags": tags})
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = prepared(ac.from_pretrained(folder, validation=data, test=data, batch_size=5))
    scores, _ = evaluate_model(task, task.model, task.validation, torch.device("cpu"))
    assert (scores.accuracy, dict(scores.metrics)) == (1.0, {"accuracy": 1.0})
    words = sum(len(row["tokens"]) for row in rows)
    numbers = {"O": 1, "B-PER": 2, "I-PER": 0}
    rows[0]["ner_tags"] = [numbers[tag] for tag in rows[0]["ner_tags"]]  # all are wrong
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = prepared(ac.from_pretrained(folder, validation=data, test=data, batch_size=5))
    scores, _ = evaluate_model(task, task.model, task.validation, torch.device("cpu"))
    wrong = len(rows[0]["tokens"])
    assert scores.metrics["accuracy"] == pytest.approx(1 - wrong / words)
    assert 0 < scores.accuracy < 1


def test_without_labels_the_float_model_answers(folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"words": t.split()} for t in texts(12)])
    task = prepared(ac.from_pretrained(folder, validation=data, test=data, batch_size=5))
    scores, _ = evaluate_model(task, task.model, task.validation, torch.device("cpu"))
    assert scores.accuracy == 1.0
    assert scores.metrics["divergence"] == pytest.approx(0, abs=1e-6)


def test_lists_in_cells_and_words_without_a_token(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "dev.csv"
    table.write_text("tokens,ner_tags\n\"['w1', ' ', 'w2']\",\"[1, 1, 0]\"\n")
    task = ac.from_pretrained(folder, validation=table, test=table)
    ((inputs, target),) = task.validation
    assert inputs["input_ids"].shape == (1, 4)
    assert target[0, 1:3].tolist() == [1, 0]
    assert (
        "data: 1 of 3 words of validation have no token of the tokenizer; their labels do not count"
    ) in task.notes
    long = {"tokens": ["w1"] * 80, "ner_tags": [1] * 80}
    data = write_jsonl(tmp_path / "dev.jsonl", [long])
    cut = ac.from_pretrained(folder, validation=data, test=data)
    assert not any("have no token" in note for note in cut.notes)


def test_words_and_labels_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    def error(row: dict[str, object]) -> str:
        data = write_jsonl(tmp_path / "dev.jsonl", [row] * 3)
        with pytest.raises(TaskError) as caught:
            ac.from_pretrained(folder, validation=data, test=data)
        return str(caught.value)

    assert error({"tokens": ["w1", "w2"], "tags": [0]}) == (
        "dev.jsonl line 1: column 'tags' must have one label for each of 2 words, got 1"
    )
    assert error({"tokens": [1, 2], "tags": [0, 0]}) == (
        "dev.jsonl line 1: column 'tokens' must be a list of words, got [1, 2]"
    )
    assert "label 'B-LOC' is none of the model's 3 labels" in error(
        {"tokens": ["w1"], "tags": ["B-LOC"]}
    )
