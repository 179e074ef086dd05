"""Programs that run an exported folder: what they take from the folder."""

from __future__ import annotations

from typing import Any

import pytest

from autocompress.huggingface.folder import NAMES
from autocompress.huggingface.out.snippets import LINES, Facts, optimum_lines, runtime_lines
from autocompress.targets.device.sessions import SessionSettings

INPUTS = {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}


def facts(task: str, inputs: Any = INPUTS, **others: Any) -> Facts:
    return Facts(task, inputs, SessionSettings(threads=3), **others)


def test_lines_are_of_tasks_that_there_are() -> None:
    assert set(LINES) <= set(NAMES)


@pytest.mark.parametrize("task", LINES)
def test_programs_can_be_compiled_and_have_few_lines(task: str) -> None:
    inputs = {**INPUTS, "pixel_values": ("batch", 3, 8, 8)}
    for lines in (runtime_lines(facts(task, inputs)), optimum_lines(facts(task, inputs))):
        compile("\n".join(lines), task, "exec")
        assert len(lines) <= 16
        assert not any(
            word in "\n".join(lines)
            for word in ("ARRAYS", "MODE", "PADDING", "CUT", "CLIP", "FILL")
        )


def test_labels_follow_the_config() -> None:
    one = facts("text-classification", config={"id2label": {"0": "LABEL_0"}})
    assert runtime_lines(one)[-1] == "print(logits[0])"
    several = facts("text-classification", config={"problem_type": "multi_label_classification"})
    assert "if value > 0" in runtime_lines(several)[-1]
    assert runtime_lines(facts("text-classification"))[-1] == (
        "print(labels[int(logits[0].argmax())])"
    )


def test_padding_and_pictures_follow_the_configs() -> None:
    task, inputs = "zero-shot-image-classification", {**INPUTS, "pixel_values": ("batch", 1, 8, 8)}
    text = "\n".join(runtime_lines(facts(task, inputs)))
    assert "padding=True" in text
    assert 'convert("L")' in text
    config = {"model_type": "siglip", "text_config": {"max_position_embeddings": 16}}
    text = "\n".join(runtime_lines(facts(task, inputs, config=config)))
    assert 'padding="max_length", max_length=16' in text
    lines = runtime_lines(facts("feature-extraction", tokenizer={"eos_token": "</s>"}))
    assert "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token" in lines
    given = facts("feature-extraction", tokenizer={"eos_token": "</s>"}, config={"pad_token_id": 0})
    words = "tokenizer.pad_token = tokenizer.pad_token or tokenizer.convert_ids_to_tokens(0)"
    assert words in runtime_lines(given)
    lines = runtime_lines(facts("feature-extraction", tokenizer={"pad_token": "<pad>"}))
    assert "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token" not in lines


def test_sounds_have_the_length_of_the_file_if_it_is_fixed() -> None:
    inputs = {"input_values": ("batch", 400)}
    given = facts("audio-classification", inputs, processor={"sampling_rate": 16000})
    text = "\n".join(runtime_lines(given))
    assert "# 16000 samples per second" in text
    assert "np.pad(sound, (0, 400))[:400]" in text
    free = facts("audio-classification", {"input_values": ("batch", "samples")})
    assert "np.pad" not in "\n".join(runtime_lines(free))


def test_other_runtimes_and_unknown_tasks() -> None:
    given = Facts("text-classification", INPUTS, SessionSettings("openvino", "CPU", 2))
    text = "\n".join(runtime_lines(given))
    assert "import openvino" in text
    assert 'logits = outputs["logits"]' in text
    assert optimum_lines(given) == []
    assert runtime_lines(facts("object-detection"))[-1] == (
        'outputs = session.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})'
    )
    assert optimum_lines(facts("object-detection")) == []
    written = {"input_features": ("batch", 80, 30), "decoder_input_ids": ("batch", "written")}
    assert "session.run(None, " in runtime_lines(facts("automatic-speech-recognition", written))[-1]
