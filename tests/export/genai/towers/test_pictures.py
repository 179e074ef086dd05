"""Graphs and packages of models that read pictures: one file per tower, and a cache."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fixture import relative_difference
from small_decoders import TARGET, genai
from small_folders import transformers
from small_readers import reader_task

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.errors import ExportError
from autocompress.export.artifact import write_model
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.export.genai.generation import LENGTH, check_generation, greedy_tokens
from autocompress.export.genai.package import write_package
from autocompress.export.genai.phases import phase_feed
from autocompress.export.genai.source import check_folder_kind
from autocompress.export.identity import check_identity
from autocompress.export.subject import builder_for
from autocompress.measure.prepare import prepared
from autocompress.targets.device.sessions import SessionSettings, open_session, size_of
from autocompress.targets.target import find_target
from autocompress.task.calls import call_model
from autocompress.task.task import Task

pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
CONFIGS = (
    ModuleConfig(weight_bits=4, group_size=16, symmetric=False),
    ModuleConfig(weight_bits=8, activation_bits=8),
    ModuleConfig(weight_bits=8, group_size=16),
)
PACKED = CONFIGS[::2]  # 8-bit inputs have the range of the tokens that are read together
TIED = "idefics3, tied head"
# What the library's own code must be told of parts of pictures, by type of the model.
TYPES = {
    "gemma3": ("token_type_ids",),
    "qwen2_vl": ("mm_token_type_ids",),
    "qwen2_5_vl": ("mm_token_type_ids",),
}
ALIKE = ("llava of Qwen2", "llava of Mistral", "qwen2_5_vl")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ALIKE]


@pytest.fixture(scope="module", params=["llava", TIED, "gemma3", "qwen2_vl", *SLOW])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Task, Builder]:
    task = prepared(reader_task(tmp_path_factory.mktemp("readers"), request.param))
    modules = find_modules(task.model, task.example_inputs, task.towers)
    return task, builder_for(task, modules, find_target(TARGET))


def mixed(builder: Builder, forms: tuple[ModuleConfig, ...] = CONFIGS) -> Candidate:
    """Return a candidate with all forms in all towers."""
    configs: dict[str, ModuleConfig] = {}
    for i, module in enumerate(builder.module_map):
        config = forms[i % len(forms)]
        if module.kind != "linear" and config.activation_bits == 8:
            config = ModuleConfig(weight_bits=8)
        configs[module.name] = config
    return Candidate.of(configs)


def test_the_float_graph_computes_what_the_model_does_in_padded_batches(
    made: tuple[Task, Builder],
) -> None:
    task, builder = made
    towers = {module.tower for module in builder.module_map}
    assert towers == {"vision", "projector", "embedding", "language"}
    assert check_identity(Compressor.of(builder), find_target(TARGET), task).float_file < 1e-4
    session, padded = open_session(builder.baseline), 0
    for inputs, _ in task.validation:
        with torch.no_grad():
            expected = call_model(task.model, inputs).numpy()
        output = session.run(None, builder.lowered.feed(inputs))[0]
        assert relative_difference(output, expected) < 1e-4
        padded += int((inputs["attention_mask"] == 0).sum())  # type: ignore[index,call-overload]
    assert padded, "no batch has padding between prompt and answer"


def test_a_token_behind_its_picture_reads_no_picture(made: tuple[Task, Builder]) -> None:
    task, builder = made
    file = Compressor.of(builder).graph(mixed(builder))
    feed = phase_feed(builder.lowered, task.example_inputs, "decode")
    assert len(feed["pixel_values"]) == 0
    assert feed["input_ids"].shape == (1, 0)
    logits = open_session(file.SerializeToString()).run(None, dict(feed))[0]
    assert logits.shape[:2] == (1, 1)
    assert np.isfinite(logits).all()


def test_a_package_has_a_file_per_tower_and_generates_what_is_simulated(
    made: tuple[Task, Builder], tmp_path: Path
) -> None:
    task, builder = made
    compressor, candidate = Compressor.of(builder), mixed(builder, PACKED)
    size = write_model(tmp_path, compressor.graph(candidate))
    files = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    towers = {f"model.{name}.onnx" for name in ("vision", "embedding", "decoder")}
    assert files.keys() == {"model.onnx", "model.onnx.data"} | towers
    assert sum(files.values()) == size == size_of(str(tmp_path / "model.onnx"))
    assert size == builder.size_bytes(candidate)
    write_package(tmp_path, builder.lowered.papers, task.pretrained, SessionSettings())
    assert genai.Model(str(tmp_path)).type == "gemma3"
    session = open_session(str(tmp_path / "model.onnx"))
    parts = (compressor.module(candidate), task.first_batch[0], builder.lowered.feed)
    config = json.loads((tmp_path / "genai_config.json").read_text())
    for end in range(8):  # one of these tokens ends no text so early
        config["model"]["eos_token_id"] = end
        (tmp_path / "genai_config.json").write_text(json.dumps(config))
        generated = check_generation(tmp_path, session, *parts)
        assert generated.equal >= generated.tokens - 1
        if generated.tokens == LENGTH:
            return
    pytest.fail(f"no text has {LENGTH} tokens")


def test_towers_compute_what_the_whole_file_does(
    made: tuple[Task, Builder], tmp_path: Path
) -> None:
    task, builder = made
    write_model(tmp_path, Compressor.of(builder).graph(mixed(builder, PACKED)))
    feed = builder.lowered.feed(task.example_inputs)
    whole: Any = open_session(str(tmp_path / "model.onnx"))
    vision, embedding, decoder = (
        open_session(str(tmp_path / f"model.{name}.onnx"))
        for name in ("vision", "embedding", "decoder")
    )
    (features,) = vision.run(None, {"pixel_values": feed["pixel_values"]})
    tokens = np.concatenate([feed["input_ids"], feed["decoder_input_ids"]], 1)
    texts = {"input_ids": tokens, "image_features": features}
    (embeddings,) = embedding.run(None, texts)
    caches = {name: feed[name] for name in builder.lowered.caches}
    inputs = {"inputs_embeds": embeddings, "attention_mask": np.ones_like(tokens), **caches}
    outputs = decoder.run(None, inputs)
    expected = whole.run(None, dict(feed))
    assert relative_difference(outputs[0][:, -1], expected[0][:, -1]) < 1e-3
    for name, one, other in zip(whole.get_outputs()[1:], outputs[1:], expected[1:], strict=True):
        assert relative_difference(one, other) < 1e-3, name.name


def test_two_pictures_in_a_prompt_are_read_as_the_library_reads_them(
    made: tuple[Task, Builder], tmp_path: Path
) -> None:
    """The search sees one picture per prompt; a package reads several of one size."""
    task, builder = made
    assert task.pretrained is not None
    write_model(tmp_path, Compressor.of(builder).graph(Candidate()))
    write_package(tmp_path, builder.lowered.papers, task.pretrained, SessionSettings())
    config = json.loads((tmp_path / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = config["model"]["vocab_size"] - 1
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    prompt, pixels = list[int](), []
    for inputs, _ in islice(task.validation, 2):
        assert isinstance(inputs, dict)
        read = inputs["input_ids"][0][inputs["attention_mask"][0].bool()]
        prompt += [*read.tolist(), int(inputs["decoder_input_ids"][0, 0])]
        pixels.append(inputs["pixel_values"][:1])
    media = {"pixel_values": torch.cat(pixels)}
    tokens = greedy_tokens(tmp_path, prompt, 8, {k: v.numpy() for k, v in media.items()})
    model = transformers.AutoModelForImageTextToText.from_pretrained(task.pretrained.folder).eval()
    own = inputs_of_library(model, media["pixel_values"])
    written = list[int]()
    for _ in tokens:
        whole = torch.tensor([[*prompt, *written]])
        kinds = (whole == model.config.image_token_id).long()
        types = dict.fromkeys(TYPES.get(model.config.model_type, ()), kinds)
        with torch.no_grad():
            logits = model(input_ids=whole, attention_mask=torch.ones_like(whole), **own, **types)
        written.append(int(logits.logits[0, -1].argmax()))
        if written[-1] == model.config.image_token_id:  # a part of no picture, which none reads
            break
    assert tokens[: len(written)] == written
    assert written


def inputs_of_library(model: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return pictures as the model's own code takes them in one prompt."""
    kind = model.config.model_type
    if kind == "idefics3":
        return {"pixel_values": pixels.flatten(0, 1)[None]}
    if kind in ("qwen2_vl", "qwen2_5_vl"):
        side = int(pixels.shape[1] ** 0.5)
        grid = torch.tensor([[1, side, side]] * len(pixels))
        return {"pixel_values": pixels.flatten(0, 1), "image_grid_thw": grid}
    return {"pixel_values": pixels}


def test_a_tied_table_lies_once_in_the_files_of_a_package(
    made: tuple[Task, Builder], tmp_path: Path
) -> None:
    builder = made[1]
    (table,) = [one for one in builder.module_map if one.tower == "embedding"]
    if not any("lm_head" in name for name in table.aliases):
        pytest.skip("its head has a weight of its own")
    file = Compressor.of(builder).graph(Candidate.of({table.name: CONFIGS[0]}))
    write_model(tmp_path, file)
    places = set()
    for name in ("embedding", "decoder"):
        graph = onnx.load(tmp_path / f"model.{name}.onnx", load_external_data=False).graph
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.UINT8 and tensor.external_data:
                places.add((name, {e.key: e.value for e in tensor.external_data}["offset"]))
    assert {name for name, _ in places} == {"embedding", "decoder"}
    assert len({offset for _, offset in places}) == 1


@pytest.mark.parametrize(
    "name", ["PaliGemmaForConditionalGeneration", "Qwen3VLForConditionalGeneration"]
)
def test_other_families_are_refused_before_data_are_read(name: str) -> None:
    with pytest.raises(ExportError, match=f"no decoder with a cache is known for {name}"):
        check_folder_kind(find_target(TARGET), "image-text-to-text", {"architectures": [name]})


def test_windows_of_qwen2_vl_are_refused_before_data_are_read() -> None:
    config = {"architectures": ["Qwen2VLForConditionalGeneration"], "use_sliding_window": True}
    for place in (config, {**config, "text_config": {"use_sliding_window": True}}):
        with pytest.raises(ExportError, match="take no use_sliding_window, got True; nearest"):
            check_folder_kind(find_target(TARGET), "image-text-to-text", place)
    check_folder_kind(
        find_target(TARGET), "image-text-to-text", {**config, "use_sliding_window": False}
    )
