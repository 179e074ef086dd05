"""Tokens that onnxruntime-genai generates from a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_decoders import TARGET, decoder_task

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.errors import NotComputableError
from autocompress.export.artifact import write_model
from autocompress.export.compressor import Compressor
from autocompress.export.genai.generation import LENGTH, check_generation, greedy_tokens
from autocompress.export.genai.package import write_package
from autocompress.export.subject import builder_for
from autocompress.measure.prepare import prepared
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.target import find_target
from autocompress.task.task import Task

CONFIG = ModuleConfig(weight_bits=4, group_size=32, symmetric=False)


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


def test_another_model_is_noticed(made: tuple[Task, Compressor, Candidate], tmp_path: Path) -> None:
    task, compressor, _ = made
    session = package(tmp_path / "point", made)
    other = prepared(decoder_task(tmp_path, "qwen2")).model
    parts = (task.first_batch[0], compressor.builder.lowered.feed)
    with torch.no_grad():
        other.lm_head.weight.copy_(-task.model.lm_head.weight)
    # The simulation of other weights differs from the file by more than roundings, too.
    session_of_other = _Session(session, other)
    with pytest.raises(NotComputableError, match="onnxruntime-genai generates token"):
        check_generation(tmp_path / "point", session_of_other, other, *parts)


class _Session:
    """Stands in for a file that computes what another model simulates."""

    def __init__(self, session: Any, model: Any) -> None:
        self.session, self.model = session, model

    def get_outputs(self) -> Any:
        return self.session.get_outputs()

    def run(self, names: Any, feed: Any) -> Any:
        with torch.no_grad():
            return [self.model(input_ids=torch.from_numpy(feed["input_ids"])).logits.numpy()]
