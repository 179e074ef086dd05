"""An exported folder alone gives the numbers of front.json: ONNX Runtime and the folder's files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from scipy import stats
from scipy.io import wavfile
from small_exports import FURTHER, SAMPLES, SPEECH_RATE, searched
from small_folders import transformers

import autocompress as ac
from autocompress.cli.main import main

pytestmark = pytest.mark.slow


class Folder:
    """An exported folder, as somebody uses it who has only the folder."""

    def __init__(self, place: Path, data: Path) -> None:
        self.place, self.data = place, data
        self.session = onnxruntime.InferenceSession(
            place / "model.onnx", providers=["CPUExecutionProvider"]
        )
        self.labels = json.loads((place / "config.json").read_text()).get("id2label", {})

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.data.read_text().splitlines()]

    @property
    def tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(self.place)

    def picture(self, row: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        processor = transformers.AutoImageProcessor.from_pretrained(self.place)
        image = Image.open(self.data.parent / row["image"]).convert("RGB")
        return dict(processor(images=image, return_tensors="np"))

    def run(self, output: str, inputs: Any) -> Any:
        names = [value.name for value in self.session.get_inputs()]
        return self.session.run([output], {name: inputs[name] for name in names})[0]


def of_texts(folder: Folder) -> float:
    right = []
    for row in folder.rows:
        logits = folder.run("logits", folder.tokenizer(row["text"], return_tensors="np"))
        right.append(folder.labels[str(logits[0].argmax())] == row["label"])
    return float(np.mean(right))


def of_words(folder: Folder) -> float:
    right = []
    for row in folder.rows:
        inputs = folder.tokenizer(row["tokens"], is_split_into_words=True, return_tensors="np")
        best = folder.run("logits", inputs)[0].argmax(-1)[1:-1]  # each word is one token
        right += [folder.labels[str(i)] == tag for i, tag in zip(best, row["tags"], strict=True)]
    return float(np.mean(right))


def of_pictures(folder: Folder) -> float:
    right = []
    for row in folder.rows:
        logits = folder.run("logits", folder.picture(row))
        right.append(folder.labels[str(logits[0].argmax())] == row["label"])
    return float(np.mean(right))


def of_sounds(folder: Folder) -> float:
    processor = transformers.AutoFeatureExtractor.from_pretrained(folder.place)
    right = []
    for row in folder.rows:
        rate, wave = wavfile.read(folder.data.parent / row["audio"])
        assert len(wave) == SAMPLES
        wave = (wave / 32767).astype(np.float32)
        logits = folder.run("logits", processor(wave, sampling_rate=rate, return_tensors="np"))
        right.append(folder.labels[str(logits[0].argmax())] == row["label"])
    return float(np.mean(right))


def of_sentences(folder: Folder) -> float:
    cosines = []
    for row in folder.rows:
        texts = [row["sentence1"], row["sentence2"]]
        inputs = folder.tokenizer(texts, padding=True, return_tensors="np")
        first, second = folder.run("sentence_embedding", inputs)
        cosines.append(first @ second)
    return float(stats.spearmanr(cosines, [row["score"] for row in folder.rows]).statistic)


def of_pairs(folder: Folder) -> float:
    found = []
    for row in folder.rows:
        inputs = dict(folder.tokenizer(row["caption"], return_tensors="np"))
        inputs |= folder.picture(row)
        found.append([folder.run(name, inputs)[0] for name in ("image_embeds", "text_embeds")])
    pictures, texts = np.array(found).transpose(1, 0, 2)
    cosines = pictures @ texts.T
    own = np.diag(cosines)
    by_text, by_picture = (cosines > own[:, None]).sum(1), (cosines > own).sum(0)
    return float(np.concatenate([by_text == 0, by_picture == 0]).mean())


def of_plays(folder: Folder) -> float:
    tokens = folder.tokenizer(folder.data.read_text(), add_special_tokens=False)["input_ids"]
    losses = []
    for start in range(0, len(tokens), 64):  # the longest text of the model
        ids = np.array([tokens[start : start + 64]])
        if ids.size < 32:
            continue
        logits = folder.run("logits", {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        logits = logits[0, :-1].astype(np.float64)
        likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses += [-likely[i, word] for i, word in enumerate(ids[0, 1:])]
    return -math.exp(np.mean(losses))


WAYS: dict[str, Callable[[Folder], float]] = {
    "text-classification": of_texts,
    "token-classification": of_words,
    "image-classification": of_pictures,
    "audio-classification": of_sounds,
    "sentence-similarity": of_sentences,
    "zero-shot-image-classification": of_pairs,
    "text-generation": of_plays,
}


# Each reads words or pictures as another kind does, and its metric is checked in
# tests/huggingface/kinds in every run.
ALIKE = {
    "token-classification",
    "image-classification",
    "sentence-similarity",
    "audio-classification",
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.extensive) if k in ALIKE else k for k in WAYS],
)
def test_the_folder_alone_gives_the_metric(kind: str, tmp_path: Path) -> None:
    task, result = searched(kind, tmp_path)
    more = ["--split-towers"] if kind == "zero-shot-image-classification" else []
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "export",
                str(result.folder),
                "--pick",
                "smallest",
                "--to",
                str(tmp_path / "best"),
                *more,
            ]
        )
    assert caught.value.code == 0
    point = result.front.smallest()
    data = next(path for path in tmp_path.iterdir() if path.suffix in (".jsonl", ".txt"))
    folder = Folder(tmp_path / "best", data)
    shapes = {value.name: value.shape for value in folder.session.get_inputs()}
    for shape in shapes.values():
        assert not isinstance(shape[0], int)
    if "input_ids" in shapes:
        assert not isinstance(shapes["input_ids"][1], int)
    found = WAYS[kind](folder)
    assert found == pytest.approx(point.measured.accuracy, abs=2e-4)
    written = json.loads((result.folder / "front.json").read_text())["points"]
    assert found in [pytest.approx(entry["accuracy"], abs=2e-4) for entry in written]
    again = ac.reproduce(tmp_path / "best", tmp_path / "again", task)
    assert again.read_bytes() == (tmp_path / "best" / "model.onnx").read_bytes()
    ac.load(tmp_path / "best")
    towers = sorted(path.name for path in (tmp_path / "best").glob("*_model.onnx"))
    assert towers == (["text_model.onnx", "vision_model.onnx"] if more else [])


LASTING = [
    pytest.param(kind, marks=() if kind == "text2text-generation" else pytest.mark.extensive)
    for kind in FURTHER
]


@pytest.mark.parametrize("kind", LASTING)
def test_the_program_in_the_card_runs_the_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    _, result = searched(kind, tmp_path)
    to = tmp_path / "best"
    ac.export(result, result.front.smallest(), to)
    card = (to / "README.md").read_text()
    assert "--trials 2" in card
    (program,) = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    Image.new("RGB", (20, 30)).save(to / "picture.png")
    wavfile.write(to / "sound.wav", SPEECH_RATE, np.zeros(SAMPLES, np.int16))
    monkeypatch.chdir(to)
    names: dict[str, Any] = {}
    exec(program, names)
    if "tokens" in names:
        assert names["tokens"].shape[1] > 1
    elif kind == "object-detection":
        assert names["class_logits"].shape[2] == 3
    else:
        assert names["logits"].shape == (1, 2)
