"""Float graphs of onnxruntime-genai's model builder."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from small_decoders import FAMILIES, TARGET, decoder, decoder_task
from small_folders import texts
from torch import nn

import autocompress as ac
from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.errors import ExportError, TaskError
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.export.genai import source
from autocompress.export.genai.builder import Built
from autocompress.export.genai.source import DecoderSource, decoder_source
from autocompress.export.identity import check_identity
from autocompress.export.subject import builder_for
from autocompress.measure.prepare import prepared
from autocompress.model.plain.plain import plain_model
from autocompress.targets.device.sessions import open_session
from autocompress.targets.target import find_target
from autocompress.task.calls import call_model
from autocompress.task.task import Pretrained, Task

CONFIG = ModuleConfig(weight_bits=4, group_size=32, symmetric=False)


def opened(task: Task) -> Builder:
    modules = find_modules(task.model, task.example_inputs)
    return builder_for(task, modules, find_target(TARGET))


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "llama"]


@pytest.fixture(scope="module", params=["llama", *OTHERS])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:  # type: ignore[type-arg]
    task = prepared(decoder_task(tmp_path_factory.mktemp("decoders"), request.param))
    return task, opened(task)


def test_every_product_and_table_is_a_module(made: tuple[Task, Builder]) -> None:
    task, builder = made
    owners = find_modules(task.model, task.example_inputs)
    assert {m.name for m in builder.module_map} == {m.name for m in owners}
    biases = [site.bias for uses in builder.lowered.sites.values() for site in uses if site.bias]
    assert all(bias.endswith(".bias") for bias in biases)
    assert builder.lowered.input_names == ("input_ids", "attention_mask")
    assert len(builder.lowered.caches) == 4, "keys and values of two layers"


def test_files_compute_what_is_simulated(made: tuple[Task, Builder]) -> None:
    task, builder = made
    identity = check_identity(Compressor.of(builder), find_target(TARGET), task)
    assert identity.float_file < 1e-4


@pytest.mark.parametrize("symmetric", [False, True])
def test_four_bits_stay_packed_and_compute_what_is_simulated(
    made: tuple[Task, Builder], symmetric: bool
) -> None:
    task, builder = made
    compressor, config = Compressor.of(builder), replace(CONFIG, symmetric=symmetric)
    candidate = Candidate.of({module.name: config for module in builder.module_map})
    graph = compressor.graph(candidate)
    inputs = task.example_inputs
    with torch.no_grad():
        simulated = call_model(compressor.module(candidate), inputs).numpy()
    output = open_session(graph.SerializeToString()).run(None, builder.lowered.feed(inputs))[0]
    assert np.linalg.norm(output - simulated) <= 0.02 * np.linalg.norm(simulated)


def test_a_tied_head_and_the_lookup_read_one_packed_table(tmp_path: Path) -> None:
    task = prepared(decoder_task(tmp_path))
    builder = opened(task)
    graph = Compressor.of(builder).graph(Candidate.of({"model.embed_tokens": CONFIG}))
    (lookup,) = [n for n in graph.graph.node if n.op_type == "GatherBlockQuantized"]
    (product,) = [n for n in graph.graph.node if n.op_type == "MatMulNBits"]
    (flat,) = [n for n in graph.graph.node if lookup.input[0] in n.output]
    assert flat.input[0] == product.input[1]
    assert list(lookup.input[2:]) == list(product.input[2:]), "scales and zero points"
    assert not any(tuple(t.dims) == (320, 64) for t in graph.graph.initializer), "no float table"


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    target, task = find_target(TARGET), decoder_task(tmp_path)
    assert decoder_source(task, find_target("onnxruntime-cpu")) is None
    tasks = "text-generation, image-text-to-text and automatic-speech-recognition"
    with pytest.raises(ExportError, match=f"of the tasks {tasks}, got no"):
        decoder_source(replace(task, pretrained=None), target)
    further = {"mine": task.example_inputs}
    assert decoder_source(replace(task, latency_inputs=further), target) is not None


@pytest.mark.parametrize("name", ["decode", "prefill", "mix:0.3"])
def test_further_inputs_may_not_have_the_name_of_a_latency(tmp_path: Path, name: str) -> None:
    task = decoder_task(tmp_path)
    named = replace(task, latency_inputs={name: task.example_inputs})
    target = find_target(TARGET, phase="mix:.3")
    with pytest.raises(TaskError, match=f"{name}'. has the name of a latency of target"):
        decoder_source(named, target)
    with pytest.raises(TaskError, match="has the name of a latency"):
        ac.search(named, target=TARGET, latency="mix:.3", out=str(tmp_path / "r"), quiet=True)


@pytest.mark.parametrize("padded", [1, 2], ids=["one sample", "all samples"])
def test_padding_in_calibration_keeps_groups_prunable(tmp_path: Path, padded: int) -> None:
    task = prepared(decoder_task(tmp_path))
    rows = task.example_inputs["input_ids"][:1].repeat(2, 1)  # type: ignore[index,call-overload]
    mask = torch.ones_like(rows)
    mask[:padded, :5] = 0  # before the text, as tokenizers of decoders pad
    batch = {"input_ids": rows * mask, "attention_mask": mask}
    task = replace(task, calibration=[(batch, rows)])
    groups = opened(task).module_map.groups
    assert sum(group.reason is None for group in groups) == 2, "the MLPs of two layers"


def test_graphs_with_further_inputs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("input_ids", "attention_mask", "position_ids", "past_key_values.0.key")
    values = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"]) for n in names]
    proto = ModelProto(graph=helper.make_graph([], "decoder", values, []))
    made = Built(proto, {}, {}, tmp_path)
    monkeypatch.setattr(source, "built", lambda model, known, config: contextlib.nullcontext(made))
    ids = torch.ones(1, 4, dtype=torch.int64)
    known = Pretrained("", "text-generation", "perplexity", (), {})
    decoder = DecoderSource(known, {"input_ids": ids, "attention_mask": ids})
    with pytest.raises(ExportError, match="got the input position_ids; nearest"):
        decoder.graph(nn.Linear(2, 2))


def without(folder: Path, name: str) -> Any:
    """Take an entry out of the config of a folder, and return it."""
    place = folder / "config.json"
    content = json.loads(place.read_text())
    value = content.pop(name)
    place.write_text(json.dumps(content))
    return value


def test_a_window_that_a_config_leaves_out_is_that_of_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = prepared(decoder_task(tmp_path, "mistral, window"))
    assert task.pretrained is not None
    window = without(Path(task.pretrained.folder), "sliding_window")
    asked: list[dict[str, Any]] = []

    def built(model: nn.Module, known: Pretrained, config: dict[str, Any]) -> Any:
        asked.append(config)
        raise ExportError("enough")

    monkeypatch.setattr(source, "built", built)
    made = decoder_source(task, find_target(TARGET))
    assert made is not None
    with pytest.raises(ExportError, match="enough"):
        made.graph(plain_model(task.model, task.example_inputs))
    assert asked[0]["sliding_window"] == window, "the model has it"
    assert asked[0]["layer_types"] == 2 * ["sliding_attention"]


@pytest.mark.slow
def test_a_width_of_heads_that_a_config_leaves_out_is_that_of_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, model, more = FAMILIES["gemma3"]
    monkeypatch.setitem(FAMILIES, "gemma3", (config, model, {**more, "head_dim": 256}))
    folder = decoder(tmp_path / "gemma3", "gemma3")
    assert without(folder, "head_dim") == 256
    data = tmp_path / "words.txt"
    data.write_text("\n".join(texts(60)))
    options = {"validation": str(data), "test": str(data), "max_length": 16}
    task = prepared(ac.from_pretrained(folder, **options))
    builder = opened(task)
    check_identity(Compressor.of(builder), find_target(TARGET), task)
