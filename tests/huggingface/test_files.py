"""Files of tasks whose model is wrapped: names of inputs and outputs, free lengths, values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from small_folders import bert, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac

pytestmark = pytest.mark.slow


def rows_of(kind: str) -> list[dict[str, Any]]:
    if kind == "embeddings":
        return [{"text": text} for text in texts(12)]
    return [{"question": "w1 w2", "context": text, "answers": "w1"} for text in texts(12)]


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("embeddings", ["sentence_embedding", "last_hidden_state"]),
        ("answers", ["logits", "start_logits", "end_logits"]),
    ],
)
def test_files_of_wrapped_models(kind: str, outputs: list[str], tmp_path: Path) -> None:
    model = {
        "embeddings": transformers.BertModel,
        "answers": transformers.BertForQuestionAnswering,
    }[kind]
    folder = save(tmp_path / "model", model(bert()), tokenizer())
    data = write_jsonl(tmp_path / "dev.jsonl", rows_of(kind))
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=5)
    path = ac.export_onnx(task, {}, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [value.name for value in session.get_outputs()] == outputs
    for inputs, _ in task.validation:
        feed = {name: tensor.numpy() for name, tensor in inputs.items()}
        with torch.no_grad():
            expected = task.model(**inputs)
        for name, value in zip(outputs, session.run(outputs, feed), strict=True):
            np.testing.assert_allclose(value, expected[name].numpy(), atol=1e-4)
