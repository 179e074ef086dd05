"""Lines on sounds: a program makes the inputs with which accuracy was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile
from small_folders import transformers

from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.sounds import SoundReader, filling
from autocompress.huggingface.out.snippets import Facts, optimum_lines, runtime_lines
from autocompress.huggingface.out.sound_words import is_masked, sound_words
from autocompress.targets.device.sessions import SessionSettings

RATE, LENGTH = 16000, 8100
CTC, CLASSES = "automatic-speech-recognition", "audio-classification"
FEATURES = {"input_features": ("batch", 25, 16), "attention_mask": ("batch", 25)}
VALUES = {"input_values": ("batch", 400), "attention_mask": ("batch", 400)}
EXTRACTORS = {
    "waves": lambda: transformers.Wav2Vec2FeatureExtractor(),
    "masked waves": lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
    "masked features": lambda: transformers.SeamlessM4TFeatureExtractor(
        feature_size=8, num_mel_bins=8
    ),
    "own length": lambda: transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=16),
}


# Features are scaled before a program cuts them, so only waves may be longer than the file.
LENGTHS = dict.fromkeys(EXTRACTORS, (5000, LENGTH, 9000)) | {"masked features": (5000, LENGTH)}


@pytest.mark.parametrize(
    ("kind", "length"), [(kind, n) for kind, lengths in LENGTHS.items() for n in lengths]
)
def test_a_program_makes_the_inputs_of_the_file(
    kind: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = EXTRACTORS[kind]()
    raw = (np.random.default_rng(0).uniform(-1, 1, length) * 32767).astype(np.int16)
    wavfile.write(tmp_path / "sound.wav", RATE, raw)
    record = Record({"audio": "sound.wav"}, "line 1", tmp_path)
    expected = SoundReader("audio", extractor, filling(extractor, LENGTH))([record])
    shapes = {name: ("batch", *value.shape[1:]) for name, value in expected.items()}
    facts = Facts(
        CLASSES, shapes, SessionSettings(), processor=json.loads(extractor.to_json_string())
    )
    lines = runtime_lines(facts)
    start, last = (
        next(i for i, line in enumerate(lines) if line.startswith(word))
        for word in ("rate, sound", "inputs = ")
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"np": np, "wavfile": wavfile, "processor": extractor}
    exec("\n".join(lines[start : last + 1]), names)
    for name, value in expected.items():
        found = names["inputs"][name]
        assert found.dtype == value.numpy().dtype
        np.testing.assert_allclose(found, value.numpy(), rtol=1e-3, atol=1e-3)


def test_the_rate_may_be_nested() -> None:
    for config in ({"sampling_rate": 8000}, {"feature_extractor": {"sampling_rate": 8000}}):
        assert sound_words({}, config)["SAMPLING"].startswith("8000 samples per second")
        nested = Facts(CTC, {"input_values": ("batch", 400)}, SessionSettings(), processor=config)
        assert "# 8000 samples per second" in "\n".join(runtime_lines(nested))
    nested = Facts(CTC, FEATURES, SessionSettings(), processor={"feature_extractor": {"stride": 2}})
    assert 'padding="max_length", max_length=50' in "\n".join(runtime_lines(nested))


def test_free_lengths_and_masks_of_texts() -> None:
    free = {name: ("batch", "length", *shape[2:]) for name, shape in (FEATURES | VALUES).items()}
    words = sound_words(free, {"sampling_rate": RATE})
    assert {words[name] for name in ("CUT", "CLIP", "FILL")} == {""}
    assert is_masked(free)
    assert not is_masked({"input_ids": ("batch", 9), "attention_mask": ("batch", 9)})


def test_optimum_passes_few_inputs() -> None:
    def has_lines(task: str, inputs: Any, model_type: str = "") -> bool:
        config = {"model_type": model_type}
        facts = Facts(task, inputs, SessionSettings(), config, {"stride": 2})
        assert runtime_lines(facts)[-1].startswith("print(")
        return bool(optimum_lines(facts))

    assert has_lines(CTC, {"input_values": ("batch", 400)})
    assert not has_lines(CTC, VALUES)
    assert not has_lines(CTC, FEATURES)
    assert has_lines(CLASSES, VALUES)
    assert not has_lines(CLASSES, FEATURES)
    assert has_lines(CLASSES, {"input_features": ("batch", 8, 100)}, "whisper")


def test_features_of_an_unknown_length_have_no_program() -> None:
    lines = runtime_lines(Facts(CTC, FEATURES, SessionSettings()))
    assert lines[-1].startswith("outputs = session.run(None, ")
