"""Answers in the model's own words: the loss of the plain models, and files of all families."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixture import relative_difference
from small_folders import front_of, score, transformers, write_jsonl
from small_pictures import FAMILIES, picture_rows

import autocompress as ac
from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.errors import TaskError
from autocompress.export.compressor import Compressor
from autocompress.export.prepare import prepare
from autocompress.huggingface.folder import open_folder
from autocompress.huggingface.loading import load_pictures_and_text
from autocompress.huggingface.options import Options
from autocompress.measure.prepare import prepared
from autocompress.targets.device.sessions import open_session
from autocompress.targets.kernels import KernelChoice
from autocompress.task.batches import Inputs, feed_of
from autocompress.task.calls import call_model

images = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
# Models of the other families are built alike.
FIRST, ALIKE = ("llava", "qwen2_5_vl"), ("idefics3", "gemma3", "qwen2_vl")
MARKED = [*FIRST, *(pytest.param(name, marks=pytest.mark.extensive) for name in ALIKE)]


def made(name: str, place: Path) -> tuple[Path, Path, list[dict[str, Any]]]:
    """Return a model folder, its data file and the rows of it."""
    folder = place / "model"
    FAMILIES[name](folder)
    rows = picture_rows(place)
    return folder, write_jsonl(place / "dev.jsonl", rows), rows


def plain_answers(folder: Path, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Return perplexity and exact match of the plain model, one sample at a time."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = load_pictures_and_text(open_folder(Options(str(folder))))
    total, count, right = 0.0, 0, 0
    for row in rows:
        content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
        asked = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
        picture = images.open(folder.parent / row["image"])
        inputs = dict(processor(images=[picture], text=[prompt], return_tensors="pt"))
        answer = f"{row['answer']} </s>"
        written = processor.tokenizer(answer, return_tensors="pt", add_special_tokens=False)
        labels = written["input_ids"]
        read = inputs["input_ids"].shape[1]
        for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                fill = torch.full_like(labels, int(name == "attention_mask"))
                inputs[name] = torch.cat([torch.as_tensor(inputs[name]), fill], 1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], labels], 1)
        with torch.no_grad():
            logits = model(**inputs).logits[0, read - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum"))
        count += labels.numel()
        right += bool((logits.argmax(-1) == labels[0]).all())
    return -math.exp(total / count), right / len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKED)
def test_the_loss_is_that_of_the_plain_model(name: str, tmp_path: Path) -> None:
    folder, data, rows = made(name, tmp_path)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=3)
    perplexity, exact = plain_answers(folder, rows)
    found, further = score(task)
    assert found == pytest.approx(perplexity, rel=1e-4)
    assert further["exact_match"] == exact
    assert "image-text-to-text, accuracy is perplexity" in task.notes[0]
    assert set(task.example_inputs) == {
        *("input_ids", "attention_mask", "pixel_values", "decoder_input_ids")
    }


def run(proto: Any, inputs: Inputs) -> object:
    session = open_session(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return session.run(None, feed_of(inputs, [value.name for value in session.get_inputs()]))[0]


@pytest.mark.parametrize("name", MARKED)
def test_one_mixed_file_computes_what_is_simulated_in_all_batches(
    name: str, tmp_path: Path
) -> None:
    folder, data, _ = made(name, tmp_path)
    task = prepared(ac.from_pretrained(folder, validation=data, test=data, batch_size=3))
    modules = find_modules(task.model, task.example_inputs, task.towers)
    assert {module.tower for module in modules} == {"vision", "projector", "embedding", "language"}
    builder = prepare(task, modules, KernelChoice())
    assert not any("batch" in line for line in builder.lowered.fixed)
    configs = {
        module.name: ModuleConfig(
            (4, 8)[i % 2], rank_ratio=0.5 if i % 3 == 0 and module.factorisable else 1.0
        )
        for i, module in enumerate(builder.module_map)
    }
    candidate = Candidate.of(configs)
    compressor = Compressor.of(builder)
    file = compressor.graph(candidate)
    simulated = compressor.stitcher.apply(candidate)
    assert file.ByteSize() < len(builder.baseline)
    for inputs, _ in task.validation:
        with torch.no_grad():
            original = call_model(task.model, inputs).numpy()
            expected = call_model(simulated, inputs).numpy()
        assert relative_difference(run(builder.baseline, inputs), original) < 1e-4
        assert relative_difference(run(file, inputs), expected) < 1e-4


@pytest.mark.slow
def test_sixteen_greedy_tokens_are_those_of_the_simulation(tmp_path: Path) -> None:
    folder, data, _ = made("llava", tmp_path)
    task = prepared(ac.from_pretrained(folder, validation=data, test=data, batch_size=1))
    builder = prepare(
        task, find_modules(task.model, task.example_inputs, task.towers), KernelChoice()
    )
    four = ModuleConfig(4, group_size=16, symmetric=False)
    candidate = Candidate.of(dict.fromkeys((m.name for m in builder.module_map), four))
    compressor = Compressor.of(builder)
    session = open_session(compressor.graph(candidate).SerializeToString())
    names = [value.name for value in session.get_inputs()]
    simulated = compressor.stitcher.apply(candidate)

    def of_file(inputs: Inputs) -> torch.Tensor:
        return torch.from_numpy(session.run(None, feed_of(inputs, names))[0])

    def of_simulation(inputs: Inputs) -> torch.Tensor:
        with torch.no_grad():
            return call_model(simulated, inputs)

    differ = 0
    for inputs, _ in task.validation:
        assert isinstance(inputs, dict)
        written, ours = greedy(of_file, inputs), greedy(of_simulation, inputs)
        assert written == ours
        differ += len(set(written)) > 2
    assert differ > 0, "tokens that repeat show little"


def greedy(answer: Callable[[Inputs], torch.Tensor], inputs: dict[str, torch.Tensor]) -> list[int]:
    """Return 16 tokens behind a prompt, each the most probable one behind those before it."""
    tokens = inputs["decoder_input_ids"][:, :1]
    for _ in range(16):
        logits = answer({**inputs, "decoder_input_ids": tokens})
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    return tokens[0, 1:].tolist()


@pytest.mark.parametrize(
    "name",
    ["llava", *(pytest.param(n, marks=pytest.mark.extensive) for n in FAMILIES if n != "llava")],
)
def test_a_search_finds_smaller_files(name: str, tmp_path: Path) -> None:
    folder, data, _ = made(name, tmp_path)
    task = ac.from_pretrained(folder, data=data, validation=data, test=data)
    baseline, points = front_of(task, tmp_path / "run")
    assert baseline.accuracy == pytest.approx(score(task)[0], rel=1e-3)
    smallest = min(points, key=lambda point: point.measured.size_bytes)
    assert smallest.measured.size_bytes < baseline.size_bytes / 2
    assert set(smallest.tower_losses) == {"vision", "projector", "embedding", "language"}
    assert sum(smallest.tower_losses.values()) != 0


def test_prompts_without_a_template_and_samples_that_are_too_long(tmp_path: Path) -> None:
    folder, data, rows = made("llava", tmp_path)
    (folder / "chat_template.jinja").unlink()
    rows[0]["question"] = "w1 <image> w2"
    rows[1]["question"] = " ".join(["w3"] * 200)
    rows[2]["answer"] = ["w4", "w5", "w5"]
    write_jsonl(data, rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=1)
    assert "data: the folder has no chat template: a prompt is <image>, then the question" in (
        task.notes
    )
    assert any("1 of 8 samples of validation are left out" in note for note in task.notes)
    picture, word = 4, 17
    read = {tuple(inputs["input_ids"][0].tolist()): target for inputs, target in task.validation}
    assert (word + 1, *[picture] * 16) in read
    assert len(read) == 7
    assert any(target.tolist() == [[word + 5, 3]] for target in read.values())


def test_what_cannot_be_read_ends_in_one_line(tmp_path: Path) -> None:
    folder, data, rows = made("llava", tmp_path)
    for change, line in (
        ({"question": None}, "column 'question' must be a text, got nothing"),
        ({"answer": None}, "column 'answer' must be an answer or a list of answers, got 'None'"),
        ({"answer": "w1", "question": "w1 <image> <image>"}, "the processor fails"),
    ):
        write_jsonl(data, [{**row, **change} for row in rows])
        with pytest.raises(TaskError, match=line) as caught:
            ac.from_pretrained(folder, validation=data, test=data)
        assert "\n" not in str(caught.value)


def test_texts_that_see_what_follows_are_refused_in_one_line(tmp_path: Path) -> None:
    folder, data, _ = made("gemma3", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["use_bidirectional_attention"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TaskError, match="gemma3 must read texts from their begin") as caught:
        ac.from_pretrained(folder, validation=data, test=data)
    assert "\n" not in str(caught.value)
