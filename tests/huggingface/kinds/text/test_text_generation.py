"""Language models: windows of text and their perplexity."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from small_folders import SPECIAL, WORDS, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.records import read_records
from autocompress.huggingface.kinds import memory
from autocompress.huggingface.kinds.text import text_generation
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.prepare import prepared
from autocompress.search.opening import check_request
from autocompress.search.problem.options import Settings
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.problem.setup import Setup


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    place = tmp_path_factory.mktemp("folders") / "llama"
    return save(place, transformers.LlamaForCausalLM(config), tokenizer())


def test_perplexity_of_windows(folder: Path, tmp_path: Path) -> None:
    lines = texts(30)
    (tmp_path / "plays.txt").write_text("\n".join(lines))
    data = tmp_path / "plays.txt"
    task = ac.from_pretrained(folder, validation=data, test=data, max_length=16, batch_size=3)
    ids = tokenizer()(" ".join(lines), add_special_tokens=False)["input_ids"]
    windows = [ids[i : i + 16] for i in range(0, len(ids), 16)]
    windows = [window for window in windows if len(window) >= 8]
    found = []
    for inputs, _ in task.validation:
        masks = inputs["attention_mask"].bool()
        found += [row[mask].tolist() for row, mask in zip(inputs["input_ids"], masks, strict=True)]
    assert sorted(found) == sorted(windows)
    total, count = 0.0, 0
    for window in windows:
        tensor = torch.tensor([window])
        with torch.no_grad():
            loss = task.model(input_ids=tensor, labels=tensor).loss
        total += float(loss) * (len(window) - 1)
        count += len(window) - 1
    ready = prepared(task)
    scores, _ = evaluate_model(ready, ready.model, ready.validation, torch.device("cpu"))
    assert scores.accuracy == pytest.approx(-math.exp(total / count), rel=1e-4)
    assert 0 <= scores.metrics["accuracy"] < 1
    both = f"{count} tokens of validation and {count} tokens of test"
    assert f"data: perplexity is of {both}" in task.notes


STEPWISE = {
    "Mamba": {"state_size": 4, "conv_kernel": 3},
    "FalconMamba": {"state_size": 4, "conv_kernel": 3},
    "Rwkv": {"attention_hidden_size": 32, "context_length": 128},
}


@pytest.mark.parametrize("family", STEPWISE)
def test_windows_of_models_that_compute_step_by_step_have_one_length(
    family: str, tmp_path: Path
) -> None:
    """A file of these has one length: a shorter last window would not fit."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        **STEPWISE[family],
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    place = save(tmp_path / "model", model, tokenizer())
    words = " ".join(texts(40)).split()[: 64 * 4 + 60]
    (tmp_path / "plays.txt").write_text(" ".join(words))
    data = tmp_path / "plays.txt"
    name = config.model_type
    for limit, length, count in ((None, 64, 4), (10, 10, 31)):
        task = ac.from_pretrained(place, validation=data, test=data, max_length=limit)
        batches = [inputs["input_ids"] for inputs, _ in task.validation]
        assert {batch.shape[1] for batch in batches} == {length}
        assert sum(map(len, batches)) == count
        (line,) = (note for note in task.notes if "one token after the other" in note)
        assert line.startswith(f"model: {name} computes one token after the other")
        assert line.endswith(f"windows of {length} tokens (--max-length N)")


def test_blank_lines_of_a_plain_file_are_part_of_the_text(tmp_path: Path) -> None:
    lines = texts(8)
    written = "\n".join([lines[0], "", "", *lines[1:4], "", *lines[4:]])
    (tmp_path / "plays.TXT").write_text("\n\n" + written + "\n\n")
    seen = []

    class Reading:
        """Stands in for a tokenizer; remembers the texts."""

        eos_token, bos_token_id = "</s>", None

        def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
            seen.append(text)
            return {"input_ids": [ord(letter) % 7 for letter in text]}

    cut = text_generation._windows(Reading(), Columns("text-generation", {}), 16, 0.5)
    cut(read_records(str(tmp_path / "plays.TXT"), []))
    assert seen[0] == written


def test_windows_begin_as_the_tokenizer_begins_texts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plays.txt").write_text("\n".join(texts(30)))
    data = tmp_path / "plays.txt"
    place = tmp_path / "llama"
    shutil.copytree(folder, place)
    own = tokenizer()  # puts [CLS] in front of texts
    own.bos_token = "[CLS]"
    own.save_pretrained(place)
    first = own.bos_token_id
    task = ac.from_pretrained(place, validation=data, test=data, max_length=16)
    ids = own((tmp_path / "plays.txt").read_text(), add_special_tokens=False)["input_ids"]
    found = []
    for inputs, _ in task.validation:
        masks = inputs["attention_mask"].bool()
        found += [row[mask].tolist() for row, mask in zip(inputs["input_ids"], masks, strict=True)]
    expected = [[first, *ids[at : at + 15]] for at in range(0, len(ids), 15)]
    assert sorted(found) == sorted(row for row in expected if len(row) >= 8)
    assert "data: each window begins with [CLS]" in task.notes


@pytest.mark.parametrize(("space", "where"), [(None, "space language"), ("default", "default")])
def test_a_search_takes_the_space_of_language_models_unless_another_is_given(
    folder: Path, tmp_path: Path, space: str | None, where: str
) -> None:
    (tmp_path / "plays.txt").write_text("\n".join(texts(30)))
    data = tmp_path / "plays.txt"
    task = ac.from_pretrained(folder, validation=data, test=data, max_length=16)
    setup = Setup(None, lambda what, share: None)
    request = check_request(task, Settings(space=space), setup, SearchProgress(quiet=True))
    assert request.space.where == where
    assert set(task.notes) < {*request.notes, "another"}, "for run.json"


def test_splits_of_one_text_are_cut_from_its_end(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "plays.txt"
    data.write_text("\n".join(texts(60)))
    task = ac.from_pretrained(folder, data=data, max_length=16, batch_size=1)
    ids = tokenizer()(data.read_text(), add_special_tokens=False)["input_ids"]
    windows = [ids[at : at + 16] for at in range(0, len(ids), 16)]
    windows = [window for window in windows if len(window) >= 8]
    last = round(0.2 * len(windows))
    found = [inputs["input_ids"][0].tolist() for inputs, _ in task.validation]
    assert sorted(row for row in found if len(row) == 16) == sorted(
        row for row in windows[-last:] if len(row) == 16
    )
    words = f"data: the last {last} of {len(windows)} samples of the training data are the "
    assert f"{words}validation split" in task.notes


def test_windows_that_fit_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": text} for text in texts(60)]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    window = 4 * 45 * 16  # bytes of outputs
    monkeypatch.setattr(memory, "MOST_BYTES", 3.5 * window)
    task = ac.from_pretrained(folder, data=data, validation=data, test=data, max_length=16)
    assert sum(len(inputs["input_ids"]) for inputs, _ in task.validation) == 3
    assert sum(len(inputs["input_ids"]) for inputs, _ in task.train) > 3
    assert any(note.startswith("data: 3 of ") for note in task.notes)
    task = ac.from_pretrained(folder, validation=data, test=data, max_length=16, samples=5)
    assert sum(len(inputs["input_ids"]) for inputs, _ in task.validation) == 5


def test_batches_whose_outputs_fit_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": text} for text in texts(60)])
    words = len(SPECIAL) + len(WORDS)
    monkeypatch.setattr(memory, "MOST_BATCH_BYTES", 2.5 * 4 * words * 16)
    given = {"data": data, "validation": data, "test": data, "max_length": 16}
    task = ac.from_pretrained(folder, **given)
    for split in (task.train, task.validation, task.test):
        assert {len(inputs["input_ids"]) for inputs, _ in split} <= {1, 2}
    assert [
        note
        for note in task.notes
        if note.startswith("data: batches hold 2 samples, in training too")
    ]
    task = ac.from_pretrained(folder, **given, batch_size=3)
    assert max(len(inputs["input_ids"]) for inputs, _ in task.train) == 3
    assert not any("a batch" in note for note in task.notes)


def test_texts_that_are_too_short(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1\n")
    with pytest.raises(TaskError, match=r"^a\.txt line 1: holds fewer than 2 tokens; give more"):
        ac.from_pretrained(folder, validation=tmp_path / "a.txt")


def test_a_text_below_the_only_length_is_refused(tmp_path: Path) -> None:
    config = transformers.FalconMambaConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=16, num_hidden_layers=1, state_size=4
    )
    folder = save(tmp_path / "model", transformers.FalconMambaForCausalLM(config), tokenizer())
    (tmp_path / "long.txt").write_text(" ".join(WORDS))
    (tmp_path / "short.txt").write_text(" ".join(WORDS[:12]))
    data = {"validation": tmp_path / "long.txt", "test": tmp_path / "short.txt"}
    said = r"short\.txt line 1: holds fewer than 20 tokens, .*; nearest: --max-length 12$"
    with pytest.raises(TaskError, match=said):
        ac.from_pretrained(folder, max_length=20, **data)
    task = ac.from_pretrained(folder, max_length=12, **data)
    assert task.example_inputs["input_ids"].shape[1] == 12
