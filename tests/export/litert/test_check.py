"""Builders of .tflite files are compared with their graph first."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("ai_edge_litert")

import autocompress as ac
from autocompress.candidate import Candidate, ModuleConfig
from autocompress.errors import ExportError
from autocompress.export.compressor import Compressor
from autocompress.export.litert import check
from autocompress.export.litert.check import (
    check_operators,
    flat_outputs,
    flat_samples,
    with_flat_files,
)
from autocompress.export.litert.parts import flat_bytes_by_module
from autocompress.export.litert.translate import owners_of, translated
from autocompress.export.subject import builder_for, layout_of
from autocompress.model.modules import find_modules
from autocompress.targets.device.litert.operators import flat_graph
from autocompress.targets.target import find_target


def small_task() -> ac.Task:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    ).eval()
    images = torch.randn(24, 3, 6, 6)
    batches = [(part, model(part).argmax(1)) for part in images.split(8)]
    return ac.Task(
        "small",
        model,
        example_inputs=images[:1],
        validation=batches[:2],
        metric=lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean()),
        test=batches[2:],
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        task = small_task()
        modules = find_modules(task.model, task.example_inputs)
        yield task, builder_for(task, modules, find_target("litert-cpu"))


def test_files_take_the_shapes_of_the_example(built: Any) -> None:
    task, builder = built
    assert [*builder.flat_shapes.values()] == [(1, 3, 6, 6)]
    assert builder.file_name == "model.tflite"
    (output,) = flat_outputs(builder, builder.float_file.whole(), task.example_inputs)
    wanted = task.model(task.example_inputs).detach().numpy()
    assert abs(output - wanted).max() < 1e-5


@pytest.mark.parametrize(
    "config",
    [
        ModuleConfig(weight_bits=8),
        ModuleConfig(weight_bits=4),
        ModuleConfig(weight_bits=16),
        ModuleConfig(weight_bits=4, pruning_ratio=0.5),
        ModuleConfig(weight_bits=8, rank_ratio=0.5),
    ],
)
def test_sizes_are_exact_before_a_weight_is_compressed(built: Any, config: ModuleConfig) -> None:
    task, builder = built
    linear = replace(config, pruning_ratio=0.0)
    candidate = Candidate.of({"0": config, "4": replace(config, activation_bits=8), "6": linear})
    compressor = Compressor.of(builder)
    content = builder.content(compressor.graph(candidate))
    assert builder.size_bytes(candidate) == len(content)
    assert len(content) < builder.float_bytes
    simulated = compressor.module(candidate)(task.example_inputs).detach().numpy()
    (output,) = flat_outputs(builder, compressor.graph(candidate), task.example_inputs)
    assert abs(output - simulated).max() < 1e-2 * abs(simulated).max()


def test_weights_of_4_bits_that_are_unpacked_are_a_form_of_their_own(built: Any) -> None:
    _, builder = built
    layout = layout_of(builder)
    modules = {module.name: module for module in builder.module_map}
    forms = {}
    for name in ("0", "4"):
        for bits, inputs in ((8, 32), (4, 32), (8, 8), (4, 8)):
            config = ModuleConfig(weight_bits=bits, activation_bits=inputs)
            forms[name, bits, inputs] = layout.form(modules[name], config)
    assert forms == {
        ("0", 8, 32): "float",
        ("0", 4, 32): "nbits4-0",
        ("0", 8, 8): "int8",
        ("0", 4, 8): "int8-nbits4",
        ("4", 8, 32): "float",
        ("4", 4, 32): "nbits4-0",
        ("4", 8, 8): "int8",
        ("4", 4, 8): "int8",
    }
    whole = ModuleConfig(weight_bits=4, activation_bits=8)
    assert all(layout.computes_integers(modules[name], whole) for name in ("0", "4"))


def test_operators_that_a_target_does_not_run_are_named_with_their_module(built: Any) -> None:
    _, builder = built
    target = find_target("litert-micro")
    check_operators(builder, target)
    check_operators(builder, find_target("litert-cpu"))
    for code, place in (("FULLY_CONNECTED", "4"), ("CONV_2D", "0"), ("QUANTIZE", "")):
        fewer = replace(target, operators=tuple(c for c in target.operators if c != code))
        with pytest.raises(ExportError) as caught:
            check_operators(builder, fewer)
        text = str(caught.value)
        assert text.startswith(f"export: {code} in {place}")
        assert text.endswith(
            ": target litert-micro runs no such operator; nearest: --target litert-cpu"
        )


def test_modules_have_their_bytes(built: Any) -> None:
    _, builder = built
    candidate = Candidate.of({"4": ModuleConfig(weight_bits=8, activation_bits=8)})
    graph, owners = builder.placeholder_graph(candidate)
    flat = translated(graph, builder.flat_shapes)
    sizes = flat_bytes_by_module(flat.content, owners_of(flat, owners), ["0", "4", "6"])
    assert 288 * 32 < sizes["4"] < 288 * 32 + 500
    assert 4 * 32 * 4 <= sizes["6"] < 4 * 32 * 4 + 200
    assert 3 * 8 * 9 * 4 <= sizes["0"] < 3 * 8 * 9 * 4 + 200
    assert sum(sizes.values()) < len(flat.content)


def test_another_result_is_one_line(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task, builder = built
    right = flat_outputs(builder, builder.float_file.whole(), task.example_inputs)
    monkeypatch.setattr(check, "flat_outputs", lambda *_: [one + 1 for one in right])
    with pytest.raises(ExportError, match="computes something else than the model") as caught:
        with_flat_files(replace(builder, flat_shapes=None), task)
    assert "\n" not in str(caught.value)


def test_what_litert_does_not_run_is_one_line(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task, builder = built

    def refuses(*_: object) -> None:
        raise RuntimeError("node 3 failed\nto prepare")

    monkeypatch.setattr(check, "open_session", refuses)
    with pytest.raises(ExportError, match="LiteRT does not run the file: node 3 failed to prepare"):
        flat_outputs(builder, builder.float_file.whole(), task.example_inputs)


class Sequence(nn.Module):
    """Look words and positions up, and run 1-d convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(64, 16)
        self.first, self.second = nn.Conv1d(16, 32, 3), nn.Conv1d(32, 24, 5)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.words(words) + self.places(torch.arange(words.shape[1]))
        return self.second(torch.relu(self.first(x.transpose(1, 2)))).mean(2)


def test_modules_of_sequences_have_their_bytes_and_read_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    torch.manual_seed(0)
    words, model = torch.randint(0, 50, (8, 12)), Sequence().eval()
    batches = [(words, model(words).argmax(1).detach())]
    task = ac.Task("words", model, words[:2], batches, lambda outputs, targets: 1.0)
    modules = find_modules(task.model, task.example_inputs)
    builder = builder_for(task, modules, find_target("litert-cpu"))
    names = ["words", "places", "first", "second"]
    candidate = Candidate.of({name: ModuleConfig(weight_bits=8) for name in names})
    graph, owners = builder.placeholder_graph(candidate)
    flat = translated(graph, builder.flat_shapes)
    sizes = flat_bytes_by_module(flat.content, owners_of(flat, owners), names)
    assert sizes["words"] >= 50 * 16
    assert 12 * 16 <= sizes["places"] < 64 * 16, "12 rows are read"
    assert (sizes["first"] >= 16 * 32 * 3, sizes["second"] >= 32 * 24 * 5) == (True, True)
    assert len(flat.content) < builder.float_bytes
    compressor = Compressor.of(builder)
    simulated = compressor.module(candidate)(words[:2]).detach().numpy()
    (output,) = flat_outputs(builder, compressor.graph(candidate), words[:2])
    assert abs(output - simulated).max() < 1e-4 * abs(simulated).max()


def test_validation_samples_are_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    task = small_task()
    modules = find_modules(task.model, task.example_inputs)
    builder = builder_for(task, modules, find_target("litert-cpu"))
    example, sample = flat_samples(builder, task)
    assert example is task.example_inputs
    assert torch.equal(sample, task.validation[0][0][:1])


class Residual(nn.Module):
    """Add around convolutions, one of which is called twice with a normalisation each time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8)
        self.same = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped, self.wide = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 16, 1)
        self.pool, self.hidden, self.head = nn.MaxPool2d(2), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.second(self.same(torch.relu(self.first(self.same(x))))))
        x = torch.relu(self.depthwise(x)) + self.grouped(x)
        x = self.pool(nn.functional.relu6(self.wide(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        torch.manual_seed(0)
        model = Residual().eval()
        for norm in (model.norm, model.first, model.second):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight)  # some gains are negative
        images = torch.randn(16, 3, 12, 12)
        batches = [(part, model(part).argmax(1)) for part in images.split(8)]
        task = ac.Task("residual", model, images[:1], batches, lambda outputs, targets: 1.0)
        modules = find_modules(task.model, task.example_inputs)
        yield task, builder_for(task, modules, find_target("litert-cpu"))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"hidden": ModuleConfig(8, 8, activation_mode="static", rank_ratio=0.5)},
        {"wide": ModuleConfig(8, 8, pruning_ratio=0.5), "same": ModuleConfig(8, 32)},
        {"grouped": ModuleConfig(16), "head": ModuleConfig(8, 8)},
    ],
)
def test_files_of_integers_compute_what_is_simulated(
    residual: Any, change: dict[str, ModuleConfig], bits: int
) -> None:
    task, builder = residual
    config = ModuleConfig(bits, 8, activation_mode="static", algorithm="nearest")
    configs = {module.name: config for module in builder.module_map}
    candidate = Candidate.of({**configs, **change})
    compressor = Compressor.of(builder)
    graph = compressor.graph(candidate)
    assert builder.size_bytes(candidate) == len(builder.content(graph))
    with torch.no_grad():
        simulated = compressor.module(candidate)(task.example_inputs).numpy()
    (output,) = flat_outputs(builder, graph, task.example_inputs)
    # Roundings at a tie go either way, and what reads them differs by a step.
    assert np.linalg.norm(output - simulated) < 0.05 * np.linalg.norm(simulated)


def test_integers_flow_through_a_network(residual: Any) -> None:
    _, builder = residual
    config = ModuleConfig(8, 8, activation_mode="static", algorithm="nearest")
    candidate = Candidate.of({module.name: config for module in builder.module_map})
    content = builder.content(Compressor.of(builder).graph(candidate))
    assert [node.operator for node in flat_graph(content).nodes] == [
        *("QUANTIZE", "TRANSPOSE", "PAD", "CONV_2D"),
        *("CONV_2D", "CONV_2D", "ADD"),
        *("DEPTHWISE_CONV_2D", "CONV_2D", "ADD"),
        *("CONV_2D", "MAX_POOL_2D", "MEAN"),
        *("FULLY_CONNECTED", "QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_compute_what_is_simulated(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.memory = nn.Embedding(30, 16), kind(16, 32, batch_first=True)
            self.head = nn.Linear(32, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.memory(self.words(ids))[0][:, -1])

    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model, ids = Words().eval(), torch.randint(0, 30, (8, 6))
    task = ac.Task("words", model, ids[:2], [(ids, ids[:, 0] % 4)], lambda outputs, targets: 1.0)
    modules = find_modules(model, task.example_inputs)
    builder = builder_for(task, modules, find_target("litert-cpu"))
    compressor = Compressor.of(builder)
    recurrent = [module.name for module in builder.module_map if module.kind == "recurrent"]
    assert len(recurrent) == 2, "the weights of the inputs and of the state"
    layout, modules = layout_of(builder), {one.name: one for one in builder.module_map}
    for name in recurrent:
        forms = [layout.form(modules[name], ModuleConfig(weight_bits=bits)) for bits in (8, 4)]
        assert forms == ["float", "nbits4-0"], "as LiteRT computes them"
    graph, owners = builder.placeholder_graph(Candidate())
    flat = builder.flat(graph)
    bytes_of = flat_bytes_by_module(flat.content, owners_of(flat, owners), recurrent)
    for name in recurrent:
        assert bytes_of[name] >= 4 * math.prod(modules[name].weight_shape)
    sizes = [builder.float_bytes]
    for config in (
        ModuleConfig(weight_bits=16),
        ModuleConfig(weight_bits=8),
        ModuleConfig(weight_bits=4),
        ModuleConfig(weight_bits=4, pruning_ratio=0.5),
    ):
        roots = {group.name for group in builder.module_map.groups if group.reason is None}
        plain = replace(config, pruning_ratio=0.0)
        candidate = Candidate.of({n: config if n in roots else plain for n in recurrent})
        graph = compressor.graph(candidate)
        simulated = compressor.module(candidate)(task.example_inputs).detach().numpy()
        (output,) = flat_outputs(builder, graph, task.example_inputs)
        assert abs(output - simulated).max() < 1e-4 * abs(simulated).max()
        sizes.append(len(builder.content(graph)))
        assert builder.size_bytes(candidate) == sizes[-1]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


class Upsampler(nn.Module):
    """Enlarge a picture by an operator that LiteRT lacks."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, **options)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.stem(x).relu()).mean((2, 3)))


@pytest.mark.parametrize("options", [{"groups": 2, "padding": 1}, {"output_padding": 1}])
def test_the_float_file_has_products_where_litert_lacks_an_operator(
    options: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model, images = Upsampler(**options).eval(), torch.randn(4, 1, 6, 6)
    task = ac.Task("t", model, images[:1], [(images, torch.zeros(4))], lambda o, t: 0.0)
    modules = find_modules(model, task.example_inputs)
    builder = builder_for(task, modules, find_target("litert-cpu"))
    assert builder.float_file.proto is builder.lowered.proto
    assert "TRANSPOSE_CONV" not in {node.operator for node in flat_graph(builder.baseline).nodes}
    (output,) = flat_outputs(builder, builder.float_file.whole(), images[1:2])
    assert np.allclose(output, model(images[1:2]).detach().numpy(), atol=1e-5)
