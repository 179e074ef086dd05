"""Questions about pictures: our answers are those of the plain ViLT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_folders import (
    SPECIAL,
    WORDS,
    front_of,
    save,
    score,
    texts,
    tokenizer,
    transformers,
    write_jsonl,
)

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.huggingface.data.labels import Labels
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.kinds.pairs.visual_question_answering import _answer, usual_answer
from autocompress.task.outputs import IGNORED

images = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
ANSWERS = {0: "yes", 1: "no", 2: "2", 3: "red", 4: "blue"}
SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    config = transformers.ViltConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        image_size=16,  # position tables are enlarged
        patch_size=8,
        max_image_length=-1,
        id2label=ANSWERS,
        label2id={name: i for i, name in ANSWERS.items()},
    )
    processor = ViltImageProcessorPil(size={"shortest_edge": SIZE}, size_divisor=8)
    place = tmp_path_factory.mktemp("folders") / "vilt"
    model = transformers.ViltForQuestionAnswering(config)
    with torch.no_grad():
        model.vilt.embeddings.position_embeddings.normal_()
    return save(place, model, tokenizer(), processor, spread=5.0)


@pytest.fixture(scope="module")
def rows(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Write pictures, and the answers of the plain model."""
    place = tmp_path_factory.mktemp("pictures")
    model = transformers.ViltForQuestionAnswering.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    draw, found = np.random.default_rng(0), []
    for i, question in enumerate(texts(20, 3, 9)):
        pixels = draw.integers(0, 256, 3) + draw.integers(-60, 60, (SIZE, SIZE, 3))
        picture = images.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(place / f"{i}.png")
        words = tokenizer()(question, return_tensors="pt")
        with torch.no_grad():
            logits = model(**words, **processor(picture, return_tensors="pt")).logits
        answer = ANSWERS[int(logits.argmax())]
        row = {"image": str(place / f"{i}.png"), "question": question, "answers": [answer] * 2}
        found.append(row)
    assert len({row["answers"][0] for row in found}) > 1
    return found


@pytest.mark.slow
def test_answers_of_the_plain_model_are_right(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=3)
    assert score(task) == (1.0, {})
    changed = [dict(row) for row in rows]
    changed[0]["answers"] = ["no such answer", "no such answer", rows[0]["answers"][0]]
    changed[1]["answers"] = [{"answer": rows[1]["answers"][0]}]
    data = write_jsonl(tmp_path / "dev.jsonl", changed)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=3)
    assert score(task)[0] == pytest.approx(19 / 20)
    note = "data: 1 of 20 answers of validation are none of the model's; they count as wrong"
    assert note in task.notes


def test_answers_that_cannot_be_read(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for answers, line in (
        ("none", r"the model has none of the answers of validation \(id2label"),
        (None, r"column 'answers' must be an answer or a list of answers, got 'None'$"),
    ):
        changed = [{**row, "answers": answers} for row in rows[:2]]
        data = write_jsonl(tmp_path / "dev.jsonl", changed)
        with pytest.raises(TaskError, match=rf"^dev\.jsonl line 1: {line}"):
            ac.from_pretrained(folder, validation=data, test=data)


@pytest.mark.slow
@pytest.mark.extensive
def test_a_search_finds_smaller_files(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    baseline, points = front_of(
        ac.from_pretrained(folder, data=data, validation=data, test=data), tmp_path / "run"
    )
    assert baseline.accuracy == 1.0
    assert min(point.measured.size_bytes for point in points) < baseline.size_bytes / 2


def test_an_answer_that_is_a_number_is_no_class_of_that_number(tmp_path: Path) -> None:
    labels = Labels(("no", "yes", "2"))

    def of(answer: Any) -> int:
        record = Record({"answer": answer}, "dev.jsonl line 1", tmp_path)
        return _answer(usual_answer(record, "answer"), labels, record)

    assert (of("1"), of("2"), of("YES"), of(1)) == (IGNORED, 2, 1, 1)
    assert of([{"answer": "1"}, {"answer": "1"}, {"answer": "no"}]) == IGNORED
    assert of("['yes', 'no', 'yes']") == 1  # as pandas writes a list
    assert of(2) == 2  # names come first
