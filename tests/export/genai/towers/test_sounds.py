"""Graphs and packages of models that hear: an encoder, a decoder, and what it reads of a sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixture import relative_difference
from onnx import TensorProto, helper
from small_decoders import TARGET, genai
from small_hearers import hearer_task

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.errors import ExportError
from autocompress.export.artifact import write_model
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.export.genai.generation import LENGTH, check_generation
from autocompress.export.genai.package import write_package
from autocompress.export.genai.phases import at_phase, phase_feed
from autocompress.export.genai.source import check_folder_kind
from autocompress.export.genai.towers.sounds import join_sounds
from autocompress.export.identity import check_identity
from autocompress.export.subject import builder_for
from autocompress.measure.prepare import prepared
from autocompress.targets.device.sessions import SessionSettings, open_session, size_of
from autocompress.targets.target import find_target
from autocompress.task.calls import call_model
from autocompress.task.task import Task

CONFIGS = {
    "linear": ModuleConfig(weight_bits=4, group_size=16, symmetric=False),
    "embedding": ModuleConfig(weight_bits=8, group_size=16),
    "conv": ModuleConfig(weight_bits=8),
}
OF_SOUNDS = "automatic-speech-recognition"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Builder]:
    task = prepared(hearer_task(tmp_path_factory.mktemp("hearers")))
    modules = find_modules(task.model, task.example_inputs, task.towers)
    return task, builder_for(task, modules, find_target(TARGET))


@pytest.fixture(scope="module")
def written(
    made: tuple[Task, Builder], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Candidate, Path]:
    """Write the files of a candidate with all kinds of modules compressed."""
    builder, place = made[1], tmp_path_factory.mktemp("package")
    candidate = Candidate.of({one.name: CONFIGS[one.kind] for one in builder.module_map})
    size = write_model(place, Compressor.of(builder).graph(candidate))
    files = {file.name: file.stat().st_size for file in place.iterdir()}
    towers = {"model.encoder.onnx", "model.decoder.onnx"}
    assert files.keys() == {"model.onnx", "model.onnx.data"} | towers
    assert sum(files.values()) == size == size_of(str(place / "model.onnx"))
    assert size == builder.size_bytes(candidate)
    return candidate, place


def test_the_float_graph_computes_what_the_model_does_in_batches(
    made: tuple[Task, Builder],
) -> None:
    task, builder = made
    modules = {module.name for module in builder.module_map}
    assert modules == {
        module.name for module in find_modules(task.model, task.example_inputs, task.towers)
    }
    towers = {module.tower for module in builder.module_map}
    assert towers == {"audio", "projector", "embedding", "language"}
    assert check_identity(Compressor.of(builder), find_target(TARGET), task).float_file < 1e-4
    session = open_session(builder.baseline)
    for inputs, _ in task.validation:
        with torch.no_grad():
            expected = call_model(task.model, inputs).numpy()
        output = session.run(None, builder.lowered.feed(inputs))[0]
        assert relative_difference(output, expected) < 1e-4


def test_a_token_behind_its_sound_reads_no_sound(made: tuple[Task, Builder]) -> None:
    task, builder = made
    feed = phase_feed(builder.lowered, task.example_inputs, "decode")
    assert len(feed["input_features"]) == 0
    assert feed["decoder_input_ids"].shape == (1, 1)
    first = phase_feed(builder.lowered, task.example_inputs, "prefill")
    for name, cache in feed.items():
        if ".encoder." in name:
            assert (len(first[name]), cache.shape[0], cache.shape[2]) == (0, 1, 1500)
    modules = at_phase(builder.module_map, task.example_inputs, "decode")
    work = {module.tower: module.macs for module in modules}
    assert work["audio"] == work["projector"] == 0 < work["language"]


def test_tokens_behind_a_cache_have_the_logits_of_the_whole_text(
    made: tuple[Task, Builder], written: tuple[Candidate, Path]
) -> None:
    task, builder = made
    session: Any = open_session(str(written[1] / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    whole = builder.lowered.feed(task.example_inputs)
    expected = session.run(None, dict(whole))[0]
    begin = {**whole, "decoder_input_ids": whole["decoder_input_ids"][:, :2]}
    outputs = dict(zip(names, session.run(None, begin), strict=True))
    for i in range(2, expected.shape[1]):
        token = whole["decoder_input_ids"][:, i : i + 1]
        feed = {"input_features": whole["input_features"][:0], "decoder_input_ids": token}
        for name in builder.lowered.caches:
            feed[name] = outputs[name.replace("past_key_values", "present")]
        outputs = dict(zip(names, session.run(None, feed), strict=True))
        assert relative_difference(outputs["logits"][:, -1], expected[:, i]) < 1e-3


def test_a_package_generates_what_is_simulated(
    made: tuple[Task, Builder], written: tuple[Candidate, Path]
) -> None:
    (task, builder), (candidate, place) = made, written
    compressor = Compressor.of(builder)
    write_package(place, builder.lowered.papers, task.pretrained, SessionSettings())
    assert (place / "preprocessor_config.json").is_file()
    assert genai.Model(str(place)).type == "whisper"
    session = open_session(str(place / "model.onnx"))
    parts = (compressor.module(candidate), task.first_batch[0], builder.lowered.feed)
    config = json.loads((place / "genai_config.json").read_text())
    for end in range(8):  # one of these tokens ends no text so early
        config["model"]["eos_token_id"] = end
        (place / "genai_config.json").write_text(json.dumps(config))
        generated = check_generation(place, session, *parts)
        assert generated.equal >= generated.tokens - 1
        if generated.tokens == LENGTH:
            return
    pytest.fail(f"no text has {LENGTH} tokens")


def test_towers_compute_what_the_whole_file_does(
    made: tuple[Task, Builder], written: tuple[Candidate, Path]
) -> None:
    task, builder = made
    feed = builder.lowered.feed(task.example_inputs)
    encoder: Any = open_session(str(written[1] / "model.encoder.onnx"))
    decoder: Any = open_session(str(written[1] / "model.decoder.onnx"))
    made_of_sound = encoder.run(None, {"audio_features": feed["input_features"]})
    present = [output.name for output in encoder.get_outputs()]
    assert present[0] == "hidden_states"
    heard = dict(zip(present, made_of_sound, strict=True))
    inputs = {"input_ids": feed["decoder_input_ids"].astype(np.int32)}
    for name in builder.lowered.caches:
        inputs[name] = heard.get(name.replace("past_key_values", "present"), feed[name])
    logits = decoder.run(None, inputs)[0]
    expected = open_session(str(written[1] / "model.onnx")).run(None, dict(feed))[0]
    assert relative_difference(logits, expected) < 1e-4


def test_a_decoder_without_keys_of_sounds_is_refused() -> None:
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "m"])
    node = helper.make_node("Identity", ["input_ids"], ["logits"])
    logits = helper.make_tensor_value_info("logits", TensorProto.INT64, ["n", "m"])
    decoder = helper.make_model(helper.make_graph([node], "decoder", [tokens], [logits]))
    with pytest.raises(ExportError, match="takes 0 keys and values of a sound, its encoder"):
        join_sounds(decoder, decoder, ())


def test_other_sounds_are_refused_before_data_are_read() -> None:
    target = find_target(TARGET)
    with pytest.raises(ExportError, match=r"known for Wav2Vec2ForCTC \(of models that hear there"):
        check_folder_kind(target, OF_SOUNDS, {"architectures": ["Wav2Vec2ForCTC"]})
    short = {"architectures": ["WhisperForConditionalGeneration"], "max_source_positions": 50}
    with pytest.raises(ExportError, match=r"max_source_positions 1500 \(30 s\), got 50; nearest"):
        check_folder_kind(target, OF_SOUNDS, short)
    check_folder_kind(target, OF_SOUNDS, {**short, "max_source_positions": 1500})
