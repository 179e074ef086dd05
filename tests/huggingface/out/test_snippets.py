"""Programs that run an exported folder: what they take from the folder."""

from __future__ import annotations

import re
from typing import Any

import pytest

from autocompress.huggingface.folder import NAMES
from autocompress.huggingface.out.lines import DECODED, LINES, WRITTEN
from autocompress.huggingface.out.snippets import QUESTIONS, Facts, optimum_lines, runtime_lines
from autocompress.targets.device.sessions import SessionSettings

WORDS = re.compile("ARRAYS|MODE|PADDING|CUT|CLIP|FILL|SQUARE|PROMPT|START|ENDS|RUN|SAMPLING|ASKED")
INPUTS = {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}


def facts(task: str, inputs: Any = INPUTS, **others: Any) -> Facts:
    return Facts(task, inputs, SessionSettings(threads=3), **others)


def test_lines_are_of_tasks_that_there_are() -> None:
    assert {*LINES, *DECODED} == set(NAMES)


@pytest.mark.parametrize("task", LINES)
def test_programs_can_be_compiled_and_have_few_lines(task: str) -> None:
    inputs = {**INPUTS, "pixel_values": ("batch", 3, 8, 8)}
    for lines in (runtime_lines(facts(task, inputs)), optimum_lines(facts(task, inputs))):
        compile("\n".join(lines), task, "exec")
        assert len(lines) <= 20
        assert not WORDS.search("\n".join(lines))


def test_labels_follow_the_config() -> None:
    one = facts("text-classification", config={"id2label": {"0": "LABEL_0"}})
    assert runtime_lines(one)[-1] == "print(logits[0])"
    numbers = {"problem_type": "regression", "id2label": {"0": "a", "1": "b"}}
    assert runtime_lines(facts("text-classification", config=numbers))[-1] == "print(logits[0])"
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
    assert runtime_lines(facts("image-to-text"))[-1] == (
        'outputs = session.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})'
    )
    assert optimum_lines(facts("image-to-text")) == []
    written = {"input_features": ("batch", 80, 30), "decoder_input_ids": ("batch", "written")}
    assert "session.run(None, " in runtime_lines(facts("automatic-speech-recognition", written))[-1]


def test_texts_have_the_length_and_the_number_of_a_file_for_litert() -> None:
    inputs = {"input_ids": (1, 12), "attention_mask": (1, 12)}
    filled = 'padding="max_length", max_length=12, truncation=True'
    for task in ("text-classification", "feature-extraction", "fill-mask"):
        lines = runtime_lines(Facts(task, inputs, SessionSettings("litert", "XNNPACK", 1)))
        text = "\n".join(lines)
        compile(text, task, "exec")
        assert filled in text
        assert "session.invoke()" in lines
        assert not WORDS.search(text)
    given = Facts("feature-extraction", inputs, SessionSettings("litert", "XNNPACK", 1))
    assert 'texts = ["A text."]' in runtime_lines(given)
    given = Facts("image-to-text", inputs, SessionSettings("litert", "XNNPACK", 1))
    assert runtime_lines(given)[-1] == "}"


@pytest.mark.parametrize("task", [task for task in DECODED if task != QUESTIONS])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_decoders_write_token_by_token(task: str, runtime: str) -> None:
    inputs = {"input_ids": INPUTS["input_ids"], WRITTEN: ("batch", "written")}
    settings = SessionSettings(runtime, "CPU", 2)
    config = {"decoder": {"decoder_start_token_id": 7}, "eos_token_id": [2, 3]}
    generation = {"forced_bos_token_id": 9}
    lines = runtime_lines(Facts(task, inputs, settings, config, generation=generation))
    text = "\n".join(lines)
    compile(text, task, "exec")
    assert len(lines) <= 22
    assert not WORDS.search(text)
    assert "tokens = np.array([[7, 9]])" in text
    assert "in (2, 3):" in text
    assert 'feed = {name: inputs[name] for name in ("input_ids",)}' in lines
    lines = runtime_lines(Facts(task, inputs, settings, {"decoder_start_token_id": 0}))
    assert "in (tokenizer.eos_token_id, tokenizer.sep_token_id):" in "\n".join(lines)
    places = {"forced_decoder_ids": [[1, 11], [2, 12]]}
    several = {"forced_decoder_ids": [[1, None], [2, 12]]}
    given = Facts(task, inputs, settings, {**config, **places}, generation=several)
    assert "tokens = np.array([[7, 11, 12]])" in "\n".join(runtime_lines(given))
    given = Facts(task, inputs, settings, {**config, **several}, generation=places)
    assert "tokens = np.array([[7, 11, 12]])" in "\n".join(runtime_lines(given))
    given = Facts(task, inputs, settings, {**config, **several}, generation=generation)
    assert "tokens = np.array([[7, 9]])" in "\n".join(runtime_lines(given))
    fixed = {**inputs, WRITTEN: ("batch", 7)}
    for given in (Facts(task, fixed, settings, config), Facts(task, inputs, settings)):
        assert runtime_lines(given)[-1].startswith("outputs = session")


def test_questions_follow_the_template_and_the_form_of_the_pictures() -> None:
    images = {"image_processor": {"size": {"longest_edge": 64}}}
    cropped = {"image_processor": {"size": {"shortest_edge": 64}, "do_center_crop": True}}
    for shape, processor, has_template, words, other in (
        ((1, 3, 64, 64), images, True, 'convert("RGB").resize((64, 64), 2)', "image_token"),
        ((3, 64, 64), cropped, False, "{processor.image_token}\\nA question?", "resize"),
        ((16, 24), {}, True, 'inputs["pixel_values"][None]', "resize"),
    ):
        inputs = {**INPUTS, "pixel_values": ("batch", *shape), WRITTEN: ("batch", "written")}
        config = {"text_config": {"eos_token_id": 5}}
        papers = {"config": config, "processor": processor, "has_template": has_template}
        given = facts(QUESTIONS, inputs, **papers)
        text = "\n".join(runtime_lines(given))
        compile(text, QUESTIONS, "exec")
        assert len(text.splitlines()) <= 28
        assert not WORDS.search(text)
        assert words in text
        assert other not in text
        assert ("apply_chat_template" in text) == has_template
        assert "in (5,):" in text
        assert optimum_lines(given) == []


def test_prompts_and_pictures_that_become_squares() -> None:
    text = "\n".join(runtime_lines(facts("feature-extraction", prompt='say "A": ')))
    assert r'texts = ["say \"A\": " "A text.", "say \"A\": " "Another one."]' in text
    inputs = {"pixel_values": ("batch", 3, 64, 32)}
    for size, words in (
        ({"shortest_edge": 64}, "images=picture.resize((32, 64), 3)"),
        ({"max_height": 64, "max_width": 32}, "images=picture.resize((32, 64), 3)"),
        ({"height": 64, "width": 32}, "images=picture,"),
    ):
        processor = {"size": size, "resample": 3}
        given = facts("object-detection", inputs, processor=processor)
        assert words in "\n".join(runtime_lines(given))
