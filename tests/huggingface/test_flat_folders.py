"""Model folders become .tflite files, whose folders run with their own lines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_folders import bert, save, texts, tokenizer, transformers, write_jsonl

pytest.importorskip("ai_edge_litert")

import autocompress as ac
from autocompress.errors import ExportError, TaskError
from autocompress.export.subject import builder_for
from autocompress.model.modules import find_modules
from autocompress.targets.target import find_target

LENGTH = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("texts")
    save(
        place / "bert", transformers.BertForSequenceClassification(bert(num_labels=2)), tokenizer()
    )
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts(48))]
    write_jsonl(place / "train.jsonl", rows)
    return place


def bert_task(place: Path, **options: Any) -> ac.Task:
    return ac.from_pretrained(place / "bert", data=str(place / "train.jsonl"), **options)


def test_texts_are_filled_up_to_one_length(place: Path) -> None:
    task = bert_task(place, fixed_length=LENGTH)
    for batches in (task.validation, task.train, task.test):
        for inputs, _ in batches:
            assert {tensor.shape[1] for tensor in inputs.values()} == {LENGTH}
            ends = inputs["attention_mask"].sum(1)
            assert (ends < LENGTH).any(), "these texts are shorter"
            assert (inputs["input_ids"][inputs["attention_mask"] == 0] == 0).all()
    assert task.example_inputs["input_ids"].shape == (1, LENGTH)
    short = bert_task(place, fixed_length=6)
    assert {inputs["input_ids"].shape[1] for inputs, _ in short.validation} == {6}
    assert any("are cut to 6 tokens" in note for note in short.notes)


@pytest.mark.parametrize("other", [{"max_length": 9}, {"length": [8, 16]}])
def test_one_length_takes_the_place_of_the_others(place: Path, other: dict[str, Any]) -> None:
    (name,) = other
    with pytest.raises(TaskError, match=f"^from_pretrained: fixed_length 24 is the {name} too"):
        bert_task(place, fixed_length=LENGTH, **other)


def test_texts_of_several_lengths_are_one_line(place: Path) -> None:
    task = bert_task(place)
    longest = max(inputs["input_ids"].shape[1] for inputs, _ in task.validation)
    modules = find_modules(task.model, task.example_inputs)
    with pytest.raises(
        ExportError,
        match=rf"^export: files for litert-cpu take texts of one length, the example has \d+ "
        rf"tokens, batches of the validation split up to {longest}; nearest: --fixed-length "
        rf"{longest}$",
    ):
        builder_for(task, modules, find_target("litert-cpu"))


def code_of(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    return str(code)


def run_code(folder: Path) -> str:
    command = [sys.executable, "-c", code_of(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    return done.stdout


def searched(task: ac.Task, to: Path) -> ac.ParetoFront:
    more: dict[str, Any] = {"finalize_steps": 0, "quiet": True}
    result = ac.search(task, target="litert-cpu", n_trials=2, out=to / "run", **more)
    point = result.front.smallest()
    assert point.measured.size_bytes < result.front.baseline.size_bytes
    assert abs(point.deployed_gap) <= 0.005
    ac.export(result, point, to / "point")
    return result.front


@pytest.mark.slow
def test_a_folder_of_bert(place: Path, tmp_path: Path) -> None:
    task = bert_task(place, fixed_length=LENGTH)
    searched(task, tmp_path)
    folder = tmp_path / "point"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.tflite", "config.json", "tokenizer.json", "README.md"}
    assert not names & {"model.onnx", "ort_config.json"}
    card = (folder / "README.md").read_text()
    assert "as one .tflite file" in card
    assert "library_name: tflite" in card
    assert run_code(folder).strip() in {"LABEL_0", "LABEL_1"}
    session, (inputs, _) = ac.open_session(folder), task.validation[0]
    module = ac.load(folder, task.model)
    for i in range(len(inputs["input_ids"])):
        one = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
        (output,) = session.run(None, {name: tensor.numpy() for name, tensor in one.items()})
        simulated = module(**one).logits.detach().numpy()
        assert np.linalg.norm(output - simulated) <= 0.05 * np.linalg.norm(simulated)
    again = ac.reproduce(folder, tmp_path / "again", task)
    assert again.read_bytes() == (folder / "model.tflite").read_bytes()


@pytest.mark.slow
def test_a_folder_of_vit(tmp_path: Path) -> None:
    from PIL import Image

    config = transformers.ViTConfig(
        **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 64, "image_size": 16, "patch_size": 8, "num_labels": 2},
    )
    size = {"height": 16, "width": 16}
    model = transformers.ViTForImageClassification(config)
    save(tmp_path / "vit", model, transformers.ViTImageProcessor(size=size))
    draw, rows = np.random.default_rng(0), []
    for i in range(32):
        pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "label": i % 2})
    write_jsonl(tmp_path / "train.jsonl", rows)
    task = ac.from_pretrained(tmp_path / "vit", data=str(tmp_path / "train.jsonl"))
    searched(task, tmp_path)
    folder = tmp_path / "point"
    Image.open(tmp_path / "0.png").save(folder / "picture.png")
    assert run_code(folder).strip() in {"LABEL_0", "LABEL_1"}
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == size
