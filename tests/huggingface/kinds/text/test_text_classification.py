"""Text classification: our answers are those of the pipeline of transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from small_folders import bert, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.measure.accumulators import value_of
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.prepare import prepared

NAMES = {0: "bad", 1: "good", 2: "none"}


def scores(task: ac.Task, split: str = "validation") -> dict[str, float]:
    ready = prepared(task)
    found, _ = evaluate_model(ready, ready.model, getattr(ready, split), torch.device("cpu"))
    return {"": found.accuracy, **found.metrics}


def classifier(folder: Path, **arguments: Any) -> Path:
    """Write a classifier of three classes."""
    config = bert(**{"id2label": NAMES, "label2id": {v: k for k, v in NAMES.items()}, **arguments})
    return save(folder, transformers.BertForSequenceClassification(config), tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("folders") / "classifier")


def answers(folder: Path, rows: list[Any]) -> list[str]:
    pipeline = transformers.pipeline("text-classification", model=str(folder))
    return [pipeline([row])[0]["label"] for row in rows]


def test_accuracy_is_the_share_of_the_pipelines_answers(folder: Path, tmp_path: Path) -> None:
    rows = texts(40)
    labels: list[Any] = answers(folder, rows)
    assert len(set(labels)) > 1
    wrong = {"bad": "good", "good": 0, "none": "bad"}  # names and numbers
    labels[:10] = [wrong[label] for label in labels[:10]]
    pairs = zip(rows, labels, strict=True)
    data = write_jsonl(tmp_path / "dev.jsonl", [{"body": t, "y": y} for t, y in pairs])
    task = ac.from_pretrained(
        folder, validation=data, test=data, columns={"text": "body", "label": "y"}, batch_size=7
    )
    found = scores(task)
    assert found[""] == pytest.approx(0.75)
    assert set(found) == {"", "f1", "matthews"}
    assert task.notes[0] == "model folder: text-classification, accuracy is accuracy"
    assert task.pretrained.folder == str(folder)
    assert {0, 2, 3} <= set(task.pretrained.special_tokens)
    lengths = [inputs["input_ids"].shape[1] for inputs, _ in task.validation]
    assert len(set(lengths)) > 2  # padded to the longest text of each batch
    assert sum(lengths) < len(lengths) * max(lengths)
    named = ac.from_pretrained(
        folder, validation=data, metric=["f1", "accuracy"], columns={"text": "body", "label": "y"}
    )
    assert set(named.extra_metrics) == {"accuracy"}
    assert named.pretrained.metric == "f1"


def test_pairs_of_texts(folder: Path, tmp_path: Path) -> None:
    pairs = list(zip(texts(30), texts(30, seed=1), strict=True))
    labels = answers(folder, [{"text": a, "text_pair": b} for a, b in pairs])
    rows = [
        {"premise": a, "hypothesis": b, "label": y} for (a, b), y in zip(pairs, labels, strict=True)
    ]
    task = ac.from_pretrained(folder, validation=write_jsonl(tmp_path / "dev.jsonl", rows))
    assert scores(task)[""] == 1.0
    alone = ac.from_pretrained(
        folder,
        validation=write_jsonl(tmp_path / "one.jsonl", [{**r, "hypothesis": "w1"} for r in rows]),
    )
    assert scores(alone)[""] < 1.0


def test_texts_above_the_limit_are_cut_and_counted(folder: Path, tmp_path: Path) -> None:
    rows = [{"text": t, "label": 0} for t in [*texts(8), *texts(4, 70, 90)]]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data)
    assert "data: 4 of 12 texts of validation are cut to 64 tokens" in task.notes
    assert max(inputs["input_ids"].shape[1] for inputs, _ in task.validation) == 64
    shorter = ac.from_pretrained(folder, validation=data, test=data, max_length=10)
    assert max(inputs["input_ids"].shape[1] for inputs, _ in shorter.validation) == 10
    with pytest.raises(TaskError, match=r"max_length 65 is above the model's 64 positions; .* 64$"):
        ac.from_pretrained(folder, validation=data, max_length=65)


def test_example_inputs_have_the_median_length(folder: Path, tmp_path: Path) -> None:
    words = [{"text": " ".join(["w1"] * n), "label": 0} for n in (1, 2, 5, 9, 30)]
    data = write_jsonl(tmp_path / "dev.jsonl", words)
    task = ac.from_pretrained(folder, validation=data, test=data)
    assert task.example_inputs["input_ids"].shape == (1, 7)
    task = ac.from_pretrained(folder, validation=data, test=data, batch=3, length=[20, 40])
    assert task.example_inputs["input_ids"].shape == (3, 20)
    assert task.latency_inputs["40 tokens"]["attention_mask"].shape == (3, 40)
    assert bool(task.example_inputs["attention_mask"].all())


def test_without_labels_the_float_model_answers(folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": t} for t in texts(20)])
    task = ac.from_pretrained(folder, validation=data, test=data)
    assert task.notes[-1].startswith("data: there are no labels: ")
    found = scores(task)
    assert found[""] == 1.0
    assert found["divergence"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        task.model.classifier.weight.mul_(-1)
    other = ac.from_pretrained(folder, validation=data, test=data)
    targets = [target for _, target in other.validation]
    with torch.no_grad():
        outputs = [task.model(**inputs).logits for inputs, _ in other.validation]
    batches = list(zip(outputs, targets, strict=True))
    assert value_of(task.metric, batches) < 1.0
    assert value_of(task.extra_metrics["divergence"], batches) < -0.01
    with pytest.raises(TaskError, match=r"metric 'f1' is none of .*\(agreement, divergence\)"):
        ac.from_pretrained(folder, validation=data, metric="f1")


@pytest.mark.parametrize(
    ("of_config", "of_tokenizer", "taken"),
    [(0, None, "[PAD]"), (0, "[UNK]", "[PAD]"), (None, "[PAD]", "[PAD]"), (-1, None, "[CLS]")],
)
def test_a_model_that_looks_for_padding_finds_that_of_its_config(
    tmp_path: Path, of_config: int | None, of_tokenizer: str | None, taken: str
) -> None:
    words = tokenizer()
    config = transformers.GPT2Config(
        vocab_size=len(words), n_embd=32, n_layer=1, n_head=2, n_positions=64, num_labels=3,
        pad_token_id=of_config, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    words.pad_token, words.eos_token = of_tokenizer, "[SEP]"
    folder = save(tmp_path / "m", transformers.GPT2ForSequenceClassification(config), words)
    model = transformers.GPT2ForSequenceClassification.from_pretrained(folder)
    rows = [{"text": text} for text in texts(32)]
    for row in rows:
        with torch.no_grad():
            logits = model(**tokenizer()(row["text"], return_tensors="pt")).logits
        row["label"] = int(logits.argmax())
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data)
    assert scores(task)[""] == 1.0, "padded in batches as alone"
    said = [line for line in task.notes if f"are padded with {taken}, as config.json" in line]
    assert len(said) == (of_tokenizer == "[UNK]")


def test_regression(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "m", num_labels=1, id2label={0: "s"}, label2id={"s": 0})
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    rows, numbers = texts(30), [i * 0.5 for i in range(30)]
    with torch.no_grad():
        outputs = [model(**tokenizer()(text, return_tensors="pt")).logits.item() for text in rows]
    pairs = zip(rows, numbers, strict=True)
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": t, "score": s} for t, s in pairs])
    found = scores(ac.from_pretrained(folder, validation=data, test=data))
    assert found[""] == pytest.approx(stats.pearsonr(outputs, numbers).statistic, abs=1e-5)
    assert found["spearman"] == pytest.approx(stats.spearmanr(outputs, numbers).statistic)
    error = sum((a - b) ** 2 for a, b in zip(outputs, numbers, strict=True)) / 30
    assert found["squared_error"] == pytest.approx(-error, rel=1e-5)
    assert math.isfinite(error)


def test_several_numbers(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "m", problem_type="regression")
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    rows = texts(30)
    numbers = [[float(i % 7), 1000.0 + i, -0.01 * i] for i in range(30)]
    with torch.no_grad():
        outputs = torch.cat([model(**tokenizer()(t, return_tensors="pt")).logits for t in rows])
    pairs = [{"text": t, "label": n} for t, n in zip(rows, numbers, strict=True)]
    data = write_jsonl(tmp_path / "dev.jsonl", pairs)
    task = ac.from_pretrained(folder, validation=data, test=data)
    found, right = scores(task), torch.tensor(numbers)
    single = [stats.pearsonr(a, b).statistic for a, b in zip(outputs.T, right.T, strict=True)]
    assert found[""] == pytest.approx(sum(single) / 3, abs=1e-5)
    assert found["squared_error"] == pytest.approx(-float((outputs - right).square().mean()))
    loss = model(**tokenizer()(rows[:1], return_tensors="pt"), labels=right[:1]).loss
    assert task.loss is not None
    assert task.loss(outputs[:1], right[:1]).item() == pytest.approx(loss.item())
    pairs[4]["label"] = [1.0, 2.0]
    data = write_jsonl(tmp_path / "dev.jsonl", pairs)
    with pytest.raises(TaskError, match=r"line 5: column 'label' must be a list of 3 numbers"):
        ac.from_pretrained(folder, validation=data)


def test_empty_texts_are_counted_and_one_sided_scores_refused(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "m", num_labels=1, id2label={0: "s"}, label2id={"s": 0})
    rows = [{"text": text, "score": 1.0} for text in ["", *texts(8), ""]]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    with pytest.raises(TaskError, match=r"line 1: all scores are 1 .*nearest: --metric squared"):
        ac.from_pretrained(folder, validation=data, test=data)
    task = ac.from_pretrained(folder, validation=data, test=data, metric="squared_error")
    assert "data: 2 of 10 texts of validation are empty" in task.notes


def test_several_labels(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "m", problem_type="multi_label_classification")
    pipeline = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    rows = []
    for text in texts(30):
        own = [entry["label"] for entry in pipeline([text])[0] if entry["score"] > 0.5]
        rows.append({"text": text, "labels": own})
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    found = scores(ac.from_pretrained(folder, validation=data, test=data))
    assert found["accuracy"] == 1.0
    rows[0]["labels"] = [name for name in NAMES.values() if name not in rows[0]["labels"]]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    found = scores(ac.from_pretrained(folder, validation=data, test=data))
    assert found["accuracy"] == pytest.approx(29 / 30)


def test_lists_of_yes_and_no(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "m", problem_type="multi_label_classification")
    rows = [{"text": "w1", "labels": [0, 0, 1]}, {"text": "w2", "labels": [0.0, 1.0, 0.0]}]
    table = tmp_path / "dev.csv"
    table.write_text('text,labels\nw1,"[0, 0, 1]"\nw2,"[0. 1. 0.]"\n')
    for data in (write_jsonl(tmp_path / "dev.jsonl", rows), table):
        task = ac.from_pretrained(folder, validation=data, test=data)
        ((_, target),) = task.validation
        assert sorted(target.tolist()) == [[0, 0, 1], [0, 1, 0]]
        assert "data: labels are read as yes (1) or no (0) for each of 3 classes" in task.notes
    table.write_text('text,labels\nw1,"[0, 2]"\nw2,"[]"\n')
    ((_, target),) = ac.from_pretrained(folder, validation=table, test=table).validation
    assert sorted(target.tolist()) == [[0, 0, 0], [1, 0, 1]]


def test_texts_without_a_second_one(folder: Path, tmp_path: Path) -> None:
    rows = [{"text": "w1", "text_pair": p, "label": 1} for p in (None, "w2 w3")]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    ((inputs, _),) = ac.from_pretrained(folder, validation=data, test=data).validation
    assert sorted(inputs["attention_mask"].sum(1).tolist()) == [3, 6]
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"text": "w1", "label": 1}, rows[1]])
    with pytest.raises(
        TaskError, match=r"^bare\.jsonl line 1: column 'text_pair' must be a text, "
    ):
        ac.from_pretrained(folder, validation=bare, test=bare)


def test_a_limit_that_leaves_no_word(folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": "w1 w2", "label": 1}] * 3)
    with pytest.raises(TaskError, match=r"max_length 2 leaves no text a token .*; nearest: 3$"):
        ac.from_pretrained(folder, validation=data, test=data, max_length=2)
    ((inputs, _),) = ac.from_pretrained(folder, validation=data, test=data, max_length=3).validation
    assert inputs["input_ids"].shape == (3, 3)


def test_labels_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    rows = [{"text": t, "label": "good"} for t in texts(12)]
    rows[4]["label"] = "goood"
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    with pytest.raises(
        TaskError, match=r"^dev\.jsonl line 5: label 'goood' is none of .*; nearest: good$"
    ):
        ac.from_pretrained(folder, validation=data, test=data)
    good = write_jsonl(tmp_path / "good.jsonl", [{**row, "label": 1} for row in rows])
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"text": row["text"]} for row in rows])
    with pytest.raises(TaskError, match=r"^bare\.jsonl line 1: the test split has no label, "):
        ac.from_pretrained(folder, validation=good, test=bare)
    task = ac.from_pretrained(folder, data=bare, validation=good, test=good)
    assert not prepared(task).has_labels  # training data may lack labels
