"""Answers that are spans of a text: spans, answers that are cut, and their metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_folders import bert, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.huggingface.models.spans import LOGITS
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.prepare import prepared
from autocompress.task.outputs import IGNORED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = transformers.BertForQuestionAnswering(bert())
    return save(tmp_path_factory.mktemp("folders") / "answers", model, tokenizer())


def best_span(folder: Path, question: str, context: str) -> tuple[str, int]:
    """Return the best span by the plain model, and its first character, one question at a time."""
    model = transformers.BertForQuestionAnswering.from_pretrained(folder)
    inputs = tokenizer()(question, context, return_tensors="pt")
    with torch.no_grad():
        result = model(**inputs)
    words = context.split()
    first = len(question.split()) + 2  # [CLS] question [SEP]
    start, end = (
        logits[0, first : first + len(words)] for logits in (result.start_logits, result.end_logits)
    )
    spans = [
        (float(start[i] + end[j]), i, j) for i in range(len(words)) for j in range(i, len(words))
    ]
    _, i, j = max(spans)
    return " ".join(words[i : j + 1]), len(" ".join([*words[:i], ""]))


def score(task: ac.Task) -> tuple[float, dict[str, float]]:
    ready = prepared(task)
    found, _ = evaluate_model(ready, ready.model, ready.validation, torch.device("cpu"))
    return found.accuracy, dict(found.metrics)


def test_exact_match_and_f1(folder: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for question, context in zip(texts(12, 2, 5), texts(12, 6, 20, seed=1), strict=True):
        answer, start = best_span(folder, question, context)
        answers = {"text": [answer], "answer_start": [start]}
        rows.append({"question": question, "context": context, "answers": answers})
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, data=data, validation=data, test=data, batch_size=5)
    assert score(task) == (1.0, {"exact_match": 1.0})
    assert prepared(task).has_labels
    inputs, target = next(iter(task.train))
    for ids, (first, last), answer in zip(
        inputs["input_ids"], target[LOGITS], target["answers"], strict=True
    ):
        assert tokenizer().decode(ids[first : last + 1]) == answer.texts[0]
    rows[0]["answers"] = {"text": ["nothing like this"], "answer_start": [0]}
    plain = [{**row, "answers": row["answers"]["text"]} for row in rows]  # without their starts
    data = write_jsonl(tmp_path / "dev.jsonl", plain)
    task = ac.from_pretrained(folder, validation=data, test=data)
    accuracy, metrics = score(task)
    assert metrics["exact_match"] == pytest.approx(11 / 12)
    assert accuracy == pytest.approx(11 / 12)
    assert any(
        note.startswith("data: 1 of 12 answers of validation are not") for note in task.notes
    )


def test_answers_behind_the_limit(folder: Path, tmp_path: Path) -> None:
    context = " ".join(["w1"] * 80 + ["w2"])
    rows = [{"question": "w3", "context": context, "answers": "w2"}] * 3
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data)
    (_, target), *_ = task.validation
    assert target[LOGITS].tolist() == [[IGNORED, IGNORED]] * 3
    assert "data: 3 of 3 texts of validation are cut to 64 tokens" in task.notes


def test_answers_in_cells_and_wrong_starts(folder: Path, tmp_path: Path) -> None:
    context = "w1 w2 w3 w1 w2"  # "w2" begins at 3 and 12
    cells = ("{'text': ['w2'], 'answer_start': [3]}", "{'text': array(['w2'], dtype=object)}", "w2")
    rows = [f'w9,{context},"{cell}"' for cell in cells]
    table = tmp_path / "dev.csv"
    table.write_text("\n".join(["question,context,answers", *rows]) + "\n")
    task = ac.from_pretrained(folder, validation=table, test=table)
    ((_, target),) = task.validation
    assert target[LOGITS].tolist() == [[4, 4]] * 3
    assert {answer.texts for answer in target["answers"]} == {("w2",)}
    assert not any("answer_start" in note for note in task.notes)
    places = {}
    for start in (3, 4, 10):
        answers = {"text": ["w2"], "answer_start": [start]}
        row = {"question": "w9", "context": context, "answers": answers}
        data = write_jsonl(tmp_path / "dev.jsonl", [row])
        moved = ac.from_pretrained(folder, validation=data, test=data)
        ((_, target),) = moved.validation
        note = "data: 1 of 1 answers of validation do not begin at answer_start; the nearest place "
        places[start] = (target[LOGITS].tolist(), any(n.startswith(note) for n in moved.notes))
    assert places == {3: ([[4, 4]], False), 4: ([[4, 4]], True), 10: ([[7, 7]], True)}


def test_without_answers_the_float_model_answers(folder: Path, tmp_path: Path) -> None:
    pairs = zip(texts(12, 2, 5), texts(12, seed=1), strict=True)
    data = write_jsonl(tmp_path / "dev.jsonl", [{"question": q, "context": c} for q, c in pairs])
    assert score(ac.from_pretrained(folder, validation=data, test=data)) == (1.0, {})


def test_answers_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    for answers, error in (
        (3, r"column 'answers' must be a text, a list of texts, or .*, got '3'$"),
        ({"text": ["a"], "answer_start": [1, 2]}, r"column 'answers' has 1 answers and 2 starts$"),
    ):
        row = {"question": "w1", "context": "w2", "answers": answers}
        data = write_jsonl(tmp_path / "dev.jsonl", [row] * 3)
        with pytest.raises(TaskError, match=error):
            ac.from_pretrained(folder, validation=data, test=data)
