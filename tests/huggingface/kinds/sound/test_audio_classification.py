"""Audio classification: our answers are those of the plain model on the same sounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from small_folders import save, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.prepare import prepared

RATE, LENGTH = 1000, 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        num_labels=2,
        id2label={0: "low", 1: "high"},
        label2id={"low": 0, "high": 1},
    )
    model = transformers.Wav2Vec2ForSequenceClassification(config)
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True)
    place = tmp_path_factory.mktemp("folders") / "sounds"
    save(place, model, extractor, spread=6.0)
    model.eval()
    waves = [torch.tensor(wave) for wave in sounds(tmp_path_factory.mktemp("waves"), 20)]
    with torch.no_grad():  # each class has half of the sounds
        values = torch.stack([(wave - wave.mean()) / wave.std() for wave in waves])
        model.classifier.bias.sub_(model(values).logits.median(0).values)
    model.save_pretrained(place)
    return place


def sounds(place: Path, count: int) -> list[np.ndarray]:
    """Write tones with noise, all of one length, and return them as floats."""
    draw = np.random.default_rng(0)
    waves = []
    for i in range(count):
        times = np.arange(LENGTH) / RATE
        wave = 0.5 * np.sin(2 * np.pi * draw.uniform(20, 400) * times)
        wave = (wave + 0.2 * draw.standard_normal(LENGTH)).clip(-1, 1)
        raw = (wave * 32767).astype(np.int16)
        wavfile.write(place / f"{i}.wav", RATE, raw)
        waves.append(raw.astype(np.float32) / 32767)
    return waves


def test_accuracy_is_the_share_of_the_plain_models_answers(folder: Path, tmp_path: Path) -> None:
    model = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    rows = []
    for i, wave in enumerate(sounds(tmp_path, 20)):
        inputs = extractor([wave], sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            label = int(model(inputs["input_values"]).logits.argmax())
        rows.append({"file": f"{i}.wav", "label": model.config.id2label[label]})
    assert len({row["label"] for row in rows}) == 2
    rows[3]["label"] = {"low": "high", "high": "low"}[rows[3]["label"]]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=6)
    ready = prepared(task)
    scores, _ = evaluate_model(ready, ready.model, ready.validation, torch.device("cpu"))
    assert scores.accuracy == pytest.approx(19 / 20)
    assert task.example_inputs["input_values"].shape == (1, LENGTH)
    assert "data: sounds are filled up to 0.4 s" in task.notes
    longer = np.zeros(2 * LENGTH, np.float32)
    wavfile.write(tmp_path / "long.wav", RATE, longer)
    rows = [{"file": name, "label": 0} for name in ("0.wav", "long.wav", "long.wav")]
    cut = ac.from_pretrained(folder, validation=data, test=write_jsonl(tmp_path / "t.jsonl", rows))
    assert "data: sounds are filled up or cut to 0.4 s; cut: 2 of 3 of test" in cut.notes


def test_extractors_with_a_length_of_their_own_get_sounds_as_they_are(tmp_path: Path) -> None:
    config = transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        max_length=64,
        num_mel_bins=16,
        id2label={0: "low", 1: "high"},
        label2id={"low": 0, "high": 1},
    )
    model = transformers.ASTForAudioClassification(config).eval()
    extractor = transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=16)
    place = save(tmp_path / "model", model, extractor, spread=2.0)
    draw, rows, expected = np.random.default_rng(0), [], []
    for length in (4800, 16000, 7000):
        raw = (0.2 * draw.standard_normal(length) * 32767).astype(np.int16)
        wavfile.write(tmp_path / f"{length}.wav", 16000, raw)
        rows.append({"file": f"{length}.wav", "label": "low"})
        wave = raw.astype(np.float32) / 32767
        with torch.no_grad():
            inputs = extractor(wave, sampling_rate=16000, return_tensors="pt")
            expected.append(model(**inputs).logits[0])
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(place, validation=data, test=data, batch_size=2)
    with torch.no_grad():
        found = [row for inputs, _ in task.validation for row in task.model(**inputs).logits]
    found, expected = [sorted(x, key=lambda row: float(row[0])) for x in (found, expected)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    assert "data: the feature extractor fills up and cuts sounds to its own length" in task.notes


def test_sounds_that_cannot_be_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "soundfile", None)  # the import fails
    for name in ("bad.wav", "other.flac"):
        (tmp_path / name).write_text("no sound")
    for value, error in (
        ("bad.wav", r"bad\.wav: the sound cannot be read: "),
        ("none.wav", r"^dev\.jsonl line 1: no sound .*none\.wav$"),
        ("other.flac", r"files other than wav need soundfile, .*; nearest: pip install soundfile$"),
        (7, r"^dev\.jsonl line 1: column 'audio' must name a sound, got '7'$"),
    ):
        data = write_jsonl(tmp_path / "dev.jsonl", [{"audio": value}] * 3)
        with pytest.raises(TaskError, match=error):
            ac.from_pretrained(folder, validation=data, test=data)
