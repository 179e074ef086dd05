"""Recognition of speech: our transcripts are those of the pipeline, and error rates are right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.io import wavfile
from small_folders import front_of, save, score, transformers, write_jsonl
from small_tasks import judged

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.sounds import SoundReader, filling
from autocompress.huggingface.kinds.sound.automatic_speech_recognition import _loss
from autocompress.huggingface.models.speech import MaskedSpeech, inside_sounds

RATE, LENGTH = 1000, 800
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.Wav2Vec2Config(
        vocab_size=len(LETTERS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    place = tmp_path_factory.mktemp("folders") / "letters"
    place.mkdir()
    words = {letter: i for i, letter in enumerate(LETTERS)}
    (place / "vocab.json").write_text(json.dumps(words))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(place / "vocab.json")
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True)
    return save(place, transformers.Wav2Vec2ForCTC(config), tokenizer, extractor, spread=6.0)


@pytest.fixture(scope="module")
def rows(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Write sounds, with the pipeline's transcripts of them."""
    place = tmp_path_factory.mktemp("waves")
    recogniser = transformers.pipeline("automatic-speech-recognition", model=str(folder))
    draw = np.random.default_rng(0)
    found = []
    for i in range(16):
        wave = 0.3 * draw.standard_normal(LENGTH) * np.repeat(draw.uniform(0.1, 1, 8), LENGTH // 8)
        raw = (wave.clip(-1, 1) * 32767).astype(np.int16)
        wavfile.write(place / f"{i}.wav", RATE, raw)
        text = recogniser(raw.astype(np.float32) / 32767)["text"]
        found.append({"audio": str(place / f"{i}.wav"), "sentence": text})
    assert len({row["sentence"] for row in found}) > 8
    return found


def test_transcripts_are_those_of_the_pipeline(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=5)
    assert score(task) == (0.0, {"cer": 0.0})
    changed = [dict(row) for row in rows]
    changed[0]["sentence"] += " more words"
    data = write_jsonl(tmp_path / "dev.jsonl", changed)
    wer, _ = score(ac.from_pretrained(folder, validation=data, test=data))
    count = sum(len(row["sentence"].split()) for row in changed)
    assert wer == pytest.approx(-2 / count)


def test_the_loss_is_that_of_the_model(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for inputs, target in list(task.validation)[:3]:
        tokens = tokenizer(target["texts"][0], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = task.model(**inputs, labels=tokens)
            loss = task.loss({"logits": expected.logits}, target)
        # transformers sums over the batch unless the config says otherwise
        assert float(loss) == pytest.approx(float(expected.loss) / tokens.numel(), rel=1e-4)


def test_without_transcripts_the_float_model_answers(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"audio": row["audio"]} for row in rows])
    task = ac.from_pretrained(folder, validation=data, test=data)
    agreement, metrics = score(task)
    assert agreement == 1.0
    assert metrics["divergence"] == pytest.approx(0.0, abs=1e-5)


@pytest.fixture(scope="module")
def masked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model that takes a mask, as those of layer normalisation do."""
    config = transformers.AutoConfig.from_pretrained(folder)
    config.feat_extract_norm, config.conv_bias = "layer", True
    config.do_stable_layer_norm, config.mask_time_prob = True, 0.0
    extractor = transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=RATE, do_normalize=True, return_attention_mask=True
    )
    place = tmp_path_factory.mktemp("folders") / "masked"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.Wav2Vec2ForCTC(config).eval()
    return save(place, model, tokenizer, extractor, spread=6.0)


@pytest.fixture(scope="module")
def short_rows(masked: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Write sounds of several lengths, with the pipeline's transcripts of each by itself."""
    place = tmp_path_factory.mktemp("waves")
    recogniser = transformers.pipeline("automatic-speech-recognition", model=str(masked))
    draw, found = np.random.default_rng(0), []
    for i, length in enumerate((200, 350, LENGTH, 270, 500, 620)):
        raw = (0.2 * draw.standard_normal(length) * 32767).astype(np.int16)
        wavfile.write(place / f"{i}.wav", RATE, raw)
        text = recogniser(raw.astype(np.float32) / 32767)["text"]
        found.append({"audio": str(place / f"{i}.wav"), "sentence": text})
    return found


def test_frames_of_filling_give_no_letters(
    masked: Path, short_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", short_rows)
    task = ac.from_pretrained(masked, validation=data, test=data, batch_size=6)
    assert score(task) == (0.0, {"cer": 0.0})
    plain = transformers.Wav2Vec2ForCTC.from_pretrained(masked)
    ((inputs, target),) = task.validation
    labels, counts = target["logits"], (target["logits"] != -100).sum(1)
    with torch.no_grad():
        expected = plain(**inputs, labels=labels)
        outputs = task.model(**inputs)
    blanks = outputs["logits"].argmax(-1) == 0
    frames = plain._get_feat_extract_output_lengths(inputs["attention_mask"].sum(1))
    for blank, own, count in zip(blanks, expected.logits.argmax(-1) == 0, frames, strict=True):
        assert bool(blank[count:].all())
        assert count == len(blank) or not bool(own[count:].all())
    losses = float(expected.loss)  # a sum over the batch, where we take the mean per letter
    plain.config.ctc_loss_reduction = "mean"
    with torch.no_grad():
        mean = float(plain(**inputs, labels=labels).loss)
    assert float(task.loss(outputs, target)) == pytest.approx(mean, rel=1e-4)
    assert losses > mean > 0
    assert bool((counts > 0).all())


def test_frames_of_filling_do_not_diverge(
    masked: Path, short_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = [{"audio": row["audio"]} for row in short_rows]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(masked, validation=data, test=data, batch_size=6)
    agreement, metrics = score(task)
    assert (agreement, metrics["divergence"]) == (1.0, pytest.approx(0.0, abs=1e-5))
    ((inputs, target),) = task.validation
    with torch.no_grad():
        teacher = task.model(**inputs)["logits"]
    other = teacher + torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    frames = task.model.model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(1))
    expected, same, total = [], 0, 0
    for student, own, count in zip(other, teacher, frames, strict=True):
        logs = student[:count].log_softmax(-1), own[:count].log_softmax(-1)
        distance = torch.nn.functional.kl_div(*logs, reduction="batchmean", log_target=True)
        expected.append(float(distance))
        same += int((student[:count].argmax(-1) == own[:count].argmax(-1)).sum())
        total += int(count)
    assert task.divergence(other, teacher).tolist() == pytest.approx(expected, rel=1e-4)
    assert judged(task.metric(), (other, target)) == pytest.approx(same / total)


@pytest.mark.slow
def test_a_file_writes_nothing_behind_a_sound(
    masked: Path, short_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", short_rows)
    task = ac.from_pretrained(masked, validation=data, test=data, batch_size=6)
    ac.export_onnx(task, ac.Candidate.of({}), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for inputs, _ in task.validation:
        feed = {name: value.numpy() for name, value in inputs.items()}
        (logits,) = session.run(None, feed)[:1]
        with torch.no_grad():
            expected = task.model(**inputs)["logits"].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_silence_is_a_part_of_the_sound(
    folder: Path, short_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", short_rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=6)
    plain = transformers.Wav2Vec2ForCTC.from_pretrained(folder)
    plain.config.ctc_loss_reduction = "mean"
    for inputs, target in task.validation:
        with torch.no_grad():
            expected = plain(**inputs, labels=target["logits"])
        found = task.loss({"logits": expected.logits}, target)
        assert float(found) == pytest.approx(float(expected.loss), rel=1e-4)


def test_padding_of_masked_models_is_masked(tmp_path: Path) -> None:
    extractor = transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=RATE, do_normalize=True, return_attention_mask=True
    )
    draw, waves = np.random.default_rng(0), []
    for i, length in enumerate((300, LENGTH)):
        raw = (0.2 * draw.standard_normal(length) * 32767).astype(np.int16)
        wavfile.write(tmp_path / f"{i}.wav", RATE, raw)
        waves.append(raw.astype(np.float32) / 32767)
    expected = extractor(waves, sampling_rate=RATE, padding=True, return_tensors="pt")
    records = [Record({"audio": f"{i}.wav"}, f"line {i}", tmp_path) for i in range(2)]
    found = SoundReader("audio", extractor, filling(extractor, LENGTH))(records)
    assert set(found) == {"input_values", "attention_mask"}
    assert found["attention_mask"].sum(1).tolist() == [300, LENGTH]
    torch.testing.assert_close(found["input_values"], expected["input_values"])
    cut = SoundReader("audio", extractor, filling(extractor, 200))(records[1:])
    assert cut["attention_mask"].sum(1).tolist() == [200]


def test_features_of_masked_models_are_masked(folder: Path, tmp_path: Path) -> None:
    config = transformers.Wav2Vec2BertConfig(
        vocab_size=len(LETTERS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        feature_projection_input_dim=16,
        pad_token_id=0,
    )
    model = transformers.Wav2Vec2BertForCTC(config).eval()
    extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    place = save(tmp_path / "bert", model, tokenizer, extractor, spread=1.0)
    draw, rows, expected = np.random.default_rng(0), [], {}
    for length in (4800, 8100, 6300):
        raw = (0.2 * draw.standard_normal(length) * 32767).astype(np.int16)
        wavfile.write(tmp_path / f"{length}.wav", 16000, raw)
        rows.append({"audio": f"{length}.wav", "sentence": "a bad cab"})
        wave = raw.astype(np.float32) / 32767
        inputs = extractor(wave, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            expected[int(inputs["attention_mask"].sum())] = model(**inputs).logits[0]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(place, validation=data, test=data, batch_size=3)
    ((inputs, _),) = task.validation
    assert inputs["input_features"].shape == (3, 25, 16)
    with torch.no_grad():
        logits = task.model(**inputs)["logits"]
    for mask, found in zip(inputs["attention_mask"], logits, strict=True):
        frames = int(mask.sum())
        torch.testing.assert_close(found[:frames], expected.pop(frames)[:frames])
    assert not expected


def test_frames_are_counted_as_the_model_counts_them() -> None:
    encoder = transformers.ParakeetEncoderConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_mel_bins=16,
        subsampling_conv_channels=8,
        dropout=0.0,
    )
    torch.manual_seed(0)
    config = transformers.ParakeetCTCConfig(
        vocab_size=13, encoder_config=encoder, pad_token_id=12, ctc_loss_reduction="mean"
    )
    plain = transformers.ParakeetForCTC(config).eval()
    inputs = {"input_features": torch.randn(2, 90, 16), "attention_mask": torch.ones(2, 90).long()}
    inputs["attention_mask"][1, 47:] = 0
    labels = torch.tensor([[1, 2, 3], [1, 2, -100]])
    with torch.no_grad():
        outputs = MaskedSpeech(plain, 12)(**inputs)
        expected = plain(**inputs, labels=labels).loss
    assert inside_sounds(outputs["logits"]).sum(1).tolist() == [12, 6]
    assert float(_loss(12, outputs, {"logits": labels})) == pytest.approx(float(expected), rel=1e-5)


def test_texts_that_are_missing(folder: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [*rows[:3], {"audio": rows[0]["audio"]}])
    with pytest.raises(
        TaskError, match=r"^dev\.jsonl line 4: column 'sentence' must be a text, got nothing$"
    ):
        ac.from_pretrained(folder, validation=data, test=data)


def test_tokens_that_no_transcript_has_need_no_letter(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["é", "ß"])
    place = Path(shutil.copytree(folder, tmp_path / "more"))
    tokenizer.save_pretrained(place)
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(place, validation=data, test=data, batch_size=5)
    assert score(task) == (0.0, {"cer": 0.0})
    data = write_jsonl(tmp_path / "dev.jsonl", [*rows[:3], {**rows[3], "sentence": "caß"}])
    with pytest.raises(TaskError) as caught:
        ac.from_pretrained(place, validation=data, test=data)
    assert str(caught.value) == (
        f"{place}: the tokenizer has 15 tokens, the model 13, and transcripts of validation have "
        "'ß', token 14; nearest: the tokenizer that the model was trained with"
    )


@pytest.mark.slow
def test_a_search_finds_smaller_files(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    baseline, points = front_of(
        ac.from_pretrained(folder, data=data, validation=data, test=data), tmp_path / "run"
    )
    assert baseline.accuracy == 0.0
    assert min(point.measured.size_bytes for point in points) < baseline.size_bytes / 2


@pytest.mark.extensive
def test_a_search_of_a_model_with_a_mask(
    masked: Path, short_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", short_rows)
    task = ac.from_pretrained(masked, data=data, validation=data, test=data)
    baseline, points = front_of(task, tmp_path / "run")
    assert baseline.accuracy == 0.0
    assert min(point.measured.size_bytes for point in points) < baseline.size_bytes / 2
