"""Tokens that onnxruntime-genai generates from a package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from small_decoders import TARGET, decoder_task

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.errors import NotComputableError
from autocompress.export.artifact import write_model
from autocompress.export.compressor import Compressor
from autocompress.export.genai.generation import LEAD, LENGTH, check_generation, greedy_tokens
from autocompress.export.genai.package import write_package
from autocompress.export.subject import builder_for
from autocompress.measure.prepare import prepared
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.target import find_target
from autocompress.task.batches import Inputs, batch_size, map_inputs, take_samples
from autocompress.task.task import Task

CONFIG = ModuleConfig(weight_bits=4, group_size=32, symmetric=False)
IN_INTEGERS = {
    "linear": ModuleConfig(weight_bits=8, activation_bits=8),
    "embedding": ModuleConfig(weight_bits=8),
}
OWN_OPTIONS = {
    "do_sample": True,
    "num_beams": 2,
    "repetition_penalty": 100.0,
    "no_repeat_ngram_size": 1,
    "num_return_sequences": 2,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Compressor, Candidate]:
    task = prepared(decoder_task(tmp_path_factory.mktemp("decoders")))
    modules = find_modules(task.model, task.example_inputs)
    builder = builder_for(task, modules, find_target(TARGET))
    candidate = Candidate.of({module.name: CONFIG for module in builder.module_map})
    return task, Compressor.of(builder), candidate


def package(place: Path, made: tuple[Task, Compressor, Candidate]) -> Any:
    """Write the package of the candidate; return a session of its file."""
    task, compressor, candidate = made
    write_model(place, compressor.graph(candidate))
    papers = compressor.builder.lowered.papers
    write_package(place, papers, task.pretrained, SessionSettings())
    return open_session(str(place / "model.onnx"))


def test_tokens_are_those_of_the_simulation(
    made: tuple[Task, Compressor, Candidate], tmp_path: Path
) -> None:
    task, compressor, candidate = made
    session = package(tmp_path, made)
    parts = (compressor.module(candidate), task.first_batch[0], compressor.builder.lowered.feed)
    generated = check_generation(tmp_path, session, *parts)
    assert 0 < generated.tokens <= LENGTH
    assert generated.equal >= generated.tokens - 1
    prompt = task.first_batch[0]["input_ids"][0].tolist()  # type: ignore[index,call-overload]
    tokens = greedy_tokens(tmp_path, prompt, 4)
    text = torch.tensor([prompt])
    for token in tokens:
        with torch.no_grad():
            best = compressor.module(candidate)(input_ids=text).logits[0, -1]
        assert best[token] >= best.max() - 0.05 * best.std()
        text = torch.cat([text, torch.tensor([[token]])], 1)


def test_ranges_of_each_token_are_those_of_the_file(
    made: tuple[Task, Compressor, Candidate], tmp_path: Path
) -> None:
    task, compressor, _ = made
    modules = compressor.builder.module_map
    candidate = Candidate.of({m.name: IN_INTEGERS[m.kind] for m in modules})
    session = package(tmp_path, (task, compressor, candidate))
    model, feed = compressor.module(candidate), compressor.builder.lowered.feed
    checked = [check_generation(tmp_path, session, model, x, feed) for x in prompts(task, 12)]
    assert min(one.equal for one in checked) < LENGTH, "no prompt shows a range of its own"
    assert max(one.lead for one in checked) <= LEAD


@pytest.mark.parametrize("configs", [{}, IN_INTEGERS], ids=["4 bits", "8-bit inputs"])
def test_a_package_with_damaged_weights_is_refused(
    made: tuple[Task, Compressor, Candidate], tmp_path: Path, configs: dict[str, ModuleConfig]
) -> None:
    task, compressor, _ = made
    modules = compressor.builder.module_map
    candidate = Candidate.of({m.name: configs.get(m.kind, CONFIG) for m in modules})
    session = package(tmp_path, (task, compressor, candidate))
    proto = onnx.load(tmp_path / "model.onnx")
    (norm,) = [t for t in proto.graph.initializer if t.name == "model.norm.weight"]
    norm.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(norm), norm.name))
    onnx.save(proto, tmp_path / "model.onnx")
    parts = (compressor.module(candidate), task.first_batch[0], compressor.builder.lowered.feed)
    with pytest.raises(NotComputableError, match="onnxruntime-genai generates token"):
        check_generation(tmp_path, session, *parts)


def test_options_of_the_model_change_no_token(
    made: tuple[Task, Compressor, Candidate], tmp_path: Path
) -> None:
    package(tmp_path, made)
    prompt = made[0].first_batch[0]["input_ids"][0].tolist()  # type: ignore[index,call-overload]
    plain = greedy_tokens(tmp_path, prompt)
    path = tmp_path / "genai_config.json"
    for option, value in OWN_OPTIONS.items():
        config = json.loads(path.read_text())
        kept = json.dumps(config)
        config["search"][option] = value
        path.write_text(json.dumps(config))
        assert greedy_tokens(tmp_path, prompt) == plain, option
        path.write_text(kept)


def prompts(task: Task, count: int) -> list[Inputs]:
    """Return single samples of the validation split."""
    batches = [inputs for inputs, _ in take_samples(task.validation, count)]
    sizes = [batch_size(inputs) for inputs in batches]
    return [
        map_inputs(inputs, lambda tensor, i=i: tensor[i : i + 1])  # type: ignore[misc]
        for inputs, size in zip(batches, sizes, strict=True)
        for i in range(size)
    ]
