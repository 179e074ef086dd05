"""The exported graph: outputs by position, free batch and lengths, any names, graphs inside nodes,
groups that do not fit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.trained import Trained
from autocompress.errors import ExportError, TaskError
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.export.float_graph.float_graph import export_float
from autocompress.export.prepare import prepare
from autocompress.measure.accuracy import evaluate_session
from autocompress.model import dependency_graph as coupling
from autocompress.model.plain.plain import plain_model
from autocompress.targets.device.sessions import open_session
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.runtime import common_shapes, example_sizes
from autocompress.task.batches import Inputs, feed_of
from autocompress.task.calls import primary_output, run_model
from autocompress.task.free_shapes import FreeDimension, free_dimensions
from autocompress.task.task import Task

pytestmark = pytest.mark.slow


def run(proto: onnx.ModelProto, inputs: Inputs) -> list[np.ndarray]:
    session = open_session(proto.SerializeToString())
    return session.run(None, feed_of(inputs, [value.name for value in session.get_inputs()]))


def expected(model: nn.Module, inputs: Inputs) -> np.ndarray:
    with torch.no_grad():
        return primary_output(run_model(model, inputs)).numpy()


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def dims(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values
    }


class ConvClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.body, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.Linear(8, 3),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.head(
            torch.relu(self.body(torch.relu(self.norm(self.stem(image))))).mean((2, 3))
        )


class Encoder(nn.Module):
    """Words and a padding mask; its further outputs are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Parameter(torch.randn(32, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, mask: Tensor) -> dict[str, object]:
        x = self.words(input_ids) + self.places[: input_ids.shape[1]]
        hidden = self.encoder(x, src_key_padding_mask=~mask)
        return {"hidden": hidden, "logits": self.head(hidden.mean(1)), "states": (x, hidden)}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.head = (
            nn.Embedding(20, 8),
            nn.LSTM(8, 12, batch_first=True),
            nn.Linear(12, 3),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.words(ids))[0][:, -1])


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.norm, self.q, self.k, self.v, self.out = (
            nn.LayerNorm(width),
            *(nn.Linear(width, width) for _ in range(4)),
        )
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        y = self.norm(x)
        q, k, v = (
            part(y).view(batch, length, self.num_heads, -1).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        x = x + self.out(
            nn.functional.scaled_dot_product_attention(q, k, v)
            .transpose(1, 2)
            .reshape(batch, length, width)
        )
        return x + self.down(nn.functional.gelu(self.up(x)))


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token, self.layer, self.head = (
            nn.Conv2d(3, 16, 4, 4),
            nn.Parameter(torch.randn(1, 1, 16)),
            Layer(16, 4),
            nn.Linear(16, 3),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        return self.head(self.layer(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eye, self.words, self.read, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.Embedding(20, 8),
            nn.Linear(8, 12),
            nn.Linear(20, 3),
        )

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        return self.head(
            torch.cat(
                [self.eye(image).relu().mean((2, 3)), self.read(self.words(ids)).relu().amax(1)], 1
            )
        )


def images(batch: int, side: int = 16) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))


def words(batch: int, length: int = 7) -> Tensor:
    return torch.randint(
        1, 20, (batch, length), generator=torch.Generator().manual_seed(batch + length)
    )


def masked(batch: int, length: int = 7) -> dict[str, Tensor]:
    return {
        "input_ids": words(batch, length),
        "mask": torch.arange(length) < torch.arange(batch)[:, None] % 3 + length - 2,
    }


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Inputs], tuple[int, ...]]] = {
    "conv": (ConvClassifier, images, ()),
    "encoder": (Encoder, masked, (5, 12)),
    "recurrent": (Recurrent, words, ()),
    "patches": (Patches, images, ()),
    "both": (Both, lambda batch, length=7: (images(batch), words(batch, length)), (5, 12)),
}


def builder_of(model: nn.Module, inputs: Inputs, **more: object) -> Builder:
    task = Task("graph", model, inputs, [(inputs, None)], lambda o, t: 0.0, **more)
    return prepare(task, ac.find_modules(task.model, inputs), KernelChoice())


@pytest.mark.parametrize(
    ("family", "example"), [*((family, 1) for family in FAMILIES), ("patches", 4), ("both", 4)]
)
def test_every_file_computes_the_same_at_other_batches_and_lengths(
    family: str, example: int
) -> None:
    make, inputs_of, lengths = FAMILIES[family]
    torch.manual_seed(0)
    model = make().eval()
    builder = builder_of(model, inputs_of(example))
    compressor = Compressor.of(builder)
    stitcher = compressor.stitcher
    roots = [group.name for group in builder.module_map.groups if group.reason is None]
    assert roots, "something can be pruned"
    pruned = {name: ModuleConfig(pruning_ratio=0.5) for name in roots}
    ranks = {m.name: ModuleConfig(rank_ratio=0.5) for m in builder.module_map if m.factorisable}
    bits = {m.name: ModuleConfig(4) for m in builder.module_map}
    other_inputs = [inputs_of(batch) for batch in (2, 5)] + [
        inputs_of(3, length) for length in lengths
    ]
    for configs in ({}, pruned, {**pruned, **ranks}, bits):
        candidate = Candidate.of(configs)
        proto = compressor.graph(candidate)
        simulated = stitcher.apply(candidate)
        for inputs in other_inputs:
            assert_same(run(proto, inputs)[0], expected(simulated if configs else model, inputs))
    for inputs in other_inputs:
        assert_same(
            run(onnx.load_from_string(builder.baseline), inputs)[0], expected(model, inputs)
        )
    assert bool(builder.lowered.fixed) == (family == "recurrent")


def test_outputs_keep_the_models_names_behind_the_primary_one() -> None:
    graph = export_float(Encoder().eval(), masked(2)).proto.graph
    assert dims(graph.input) == {"input_ids": ["batch", "sequence"], "mask": ["batch", "sequence"]}
    hidden = ["batch", "sequence", 16]
    assert dims(graph.output) == {
        "logits": ["batch", 3],
        "hidden": hidden,
        "states_0": hidden,
        "states_1": hidden,
    }
    assert graph.output[0].name == "logits"


def test_two_outputs_of_small_values_are_told_apart() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.mean, self.spread = nn.Linear(8, 12), nn.Linear(12, 1), nn.Linear(12, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(self.body(x))
            return self.mean(h) * 1e-7, self.spread(h) * 1e-7

    model, x = Twins().eval(), torch.randn(4, 8)
    for names in ((), ("0", "1")):
        found = run(export_float(model, x, names).proto, x)
        for value, wanted in zip(found, model(x), strict=True):
            np.testing.assert_allclose(value, wanted.detach().numpy(), rtol=1e-3, atol=1e-11)


def test_outputs_that_are_one_tensor_or_an_input_are_kept() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[object, ...]:
            y = self.linear(x)
            return y, y, x, None, 3, self.linear.bias

    model, x = Same().eval(), torch.randn(3, 4)
    graph = export_float(model, x).proto
    assert [value.name for value in graph.graph.output] == [
        "output_0",
        "output_1",
        "output_2",
        "output_5",
    ]
    y, again, given, bias = run(graph, x)
    assert np.array_equal(y, again)
    assert np.array_equal(given, x.numpy())
    assert np.array_equal(bias, model.linear.bias.detach().numpy())


def test_hidden_states_in_the_file_are_not_pruned() -> None:
    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            hidden = torch.relu(self.up(x))
            return {"logits": self.down(hidden), "hidden": hidden}

    builder = builder_of(Shown().eval(), torch.randn(4, 6))
    assert builder.module_map.groups[0].reason is not None
    assert dims(builder.lowered.proto.graph.output)["hidden"] == ["batch", 12]


class Odd(nn.Module):
    """Buffers that are called as the exporter, or a candidate, calls its own values.

    An argument that is called like one of them.
    """

    NAMES: ClassVar = (
        "mean",
        "add",
        "val_3",
        "input",
        "output",
        "linear",
        "t0",
        "t1s",
        "int8zero",
        "middle",
        "shape1x2",
        "relu",
        "x",
    )

    def __init__(self) -> None:
        super().__init__()
        parts = {
            "in[0]": nn.Linear(16, 24),
            "mid/1": nn.Linear(24, 24),
            "a|b c": nn.Linear(24, 24),
            "tête": nn.Linear(24, 3),
        }
        self.parts = nn.ModuleDict(parts)
        for i, name in enumerate(self.NAMES):
            self.register_buffer(name, torch.full((16,), 1 + 0.1 * i))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.NAMES:
            x = x * getattr(self, name) + 0.01
        for name, part in self.parts.items():
            x = part(x) if name == "tête" else torch.relu(part(x))
        return x - x.mean(1, keepdim=True)


@pytest.mark.parametrize("bits", [(32, 32), (4, 8), (3, 32), (6, 8)])
def test_names_may_hold_any_character_and_be_those_of_the_exporter(bits: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model, x = Odd().eval(), torch.randn(8, 16)
    builder = builder_of(model, x)
    assert [m.name for m in builder.module_map] == [
        "parts.in[0]",
        "parts.mid/1",
        "parts.a|b c",
        "parts.tête",
    ]
    assert set(Odd.NAMES) <= {tensor.name for tensor in builder.lowered.proto.graph.initializer}
    compressor = Compressor.of(builder)
    stitcher = compressor.stitcher
    candidate = Candidate.of(
        {
            m.name: ModuleConfig(*bits, pruning_ratio=0.25 if m.name != "parts.tête" else 0.0)
            for m in builder.module_map
        }
    )
    proto = compressor.graph(candidate)
    onnx.checker.check_model(proto)
    wanted = expected(stitcher.apply(candidate), x)
    np.testing.assert_allclose(run(proto, x)[0], wanted, atol=0.03 * np.abs(wanted).max())
    assert proto.ByteSize() == builder.size_bytes(candidate)


def test_trained_weights_of_any_name_come_back() -> None:
    torch.manual_seed(0)
    builder = builder_of(Odd().eval(), torch.randn(8, 16))
    compressor = Compressor.of(builder)
    stitcher = compressor.stitcher
    candidate = Candidate.of(
        {m.name: ModuleConfig(4, 8) for m in builder.module_map}
        | {"parts.mid/1": ModuleConfig(pruning_ratio=0.5)}
    )
    variants = {
        name: stitcher.variant(name, owner, candidate) for name, owner in stitcher.owners.items()
    }
    kept = Trained(
        variants, {"a|b": torch.ones(2)}, dict(builder.ranges), builder.pruner.masks(candidate)
    )
    back = Trained.from_tensors(kept.to_tensors())
    assert back.variants.keys() == kept.variants.keys()
    assert back.others.keys() == kept.others.keys()
    assert back.ranges == kept.ranges
    assert back.masks.kept.keys() == kept.masks.kept.keys()
    assert kept.masks.kept, "something is pruned"


class Bag(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag, self.up, self.down = (
            nn.EmbeddingBag(30, 12, mode=mode, padding_idx=0),
            nn.Linear(12, 24),
            nn.Linear(24, 3),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.bag(ids))))


class Choice(nn.Module):
    """torch.cond: branches that read a tensor of the outer graph and a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.up(x))
        g = torch.cond(x.sum() > 0, lambda a, b: a * b.sum() + 1, lambda a, b: a - b.mean(), (h, x))
        return self.down(g)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_graphs_inside_nodes_keep_what_they_read(mode: str) -> None:
    torch.manual_seed(0)
    inputs = [words(2), words(5)]
    builder = builder_of(Bag(mode).eval(), inputs[0])
    compressor = Compressor.of(builder)
    stitcher = compressor.stitcher
    assert {"up", "down"} <= {m.name for m in builder.module_map}
    for candidate in (
        Candidate(),
        Candidate.of({"up": ModuleConfig(8, pruning_ratio=0.5), "down": ModuleConfig(4)}),
    ):
        proto = compressor.graph(candidate)
        for x in inputs if builder.lowered.dynamic_batch else inputs[:1]:
            assert_same(run(proto, x)[0], expected(stitcher.apply(candidate), x))


def test_branches_of_a_graph_read_what_is_outside_of_them() -> None:
    torch.manual_seed(0)
    model = Choice().eval()
    proto = export_float(model, torch.randn(2, 6)).proto
    assert "If" in {node.op_type for node in proto.graph.node}
    for x in (torch.rand(2, 6), -torch.rand(5, 6)):
        assert_same(run(proto, x)[0], expected(model, x))


class Shuffled(nn.Module):
    def __init__(self, tail: bool) -> None:
        super().__init__()
        self.first, self.second, self.shuffle = (
            nn.Conv2d(1, 16, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.third = nn.Conv2d(4, 1, 3, padding=1) if tail else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.shuffle(self.second(torch.relu(self.first(x)))))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(1, 8, 3),
            nn.Conv2d(4, 8, 3),
            nn.Conv2d(8, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(nn.functional.glu(self.first(x), 1))))


class Unshuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Conv2d(16, 8, 3, padding=1),
            nn.Conv2d(8, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(nn.functional.pixel_unshuffle(self.first(x), 2))))


@pytest.mark.parametrize(
    ("make", "whole", "prunable"),
    [
        (lambda: Shuffled(True), "second", "first"),
        (lambda: Shuffled(False), "second", "first"),
        (Gated, "first", "second"),
        (Unshuffled, "first", "second"),
    ],
    ids=["shuffle", "last", "glu", "unshuffle"],
)
def test_channels_that_become_space_are_not_pruned(
    make: Callable[[], nn.Module], whole: str, prunable: str
) -> None:
    torch.manual_seed(0)
    builder = builder_of(make().eval(), torch.randn(2, 1, 8, 8))
    reasons = {group.name: group.reason for group in builder.module_map.groups}
    assert reasons[whole] is not None
    assert reasons[prunable] is None


def test_the_tracer_has_one_bound_for_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupling, "TRACER_SECONDS", 0.0)
    groups = coupling.find_channel_groups(ConvClassifier().eval(), images(2), ["stem", "body"])
    assert len(groups) == 2
    assert all(group.reason for group in groups)


def varying(lengths: tuple[int, ...], model: nn.Module, example: Inputs, **more: object) -> Task:
    data = [(words(8, length), torch.zeros(8, dtype=torch.long)) for length in lengths]
    return Task(
        "varying",
        model,
        example,
        data,
        lambda o, t: float((o.argmax(1) == t).float().mean()),
        **more,
    )


def test_batches_of_different_lengths_are_evaluated_in_one_file() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.conv, self.head = (
                nn.Embedding(20, 8),
                nn.Conv1d(8, 12, 3, padding=1),
                nn.Linear(12, 3),
            )

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.relu(self.conv(self.words(ids).transpose(1, 2))).amax(2))

    torch.manual_seed(0)
    task = varying((8, 20, 5), Text().eval(), words(1, 8))
    builder = prepare(task, ac.find_modules(task.model, task.example_inputs), KernelChoice())
    judged: list[Tensor] = []

    def metric(outputs: Tensor, targets: Tensor) -> float:
        judged.append(outputs)
        return 0.0

    task = replace(task, metric=metric)
    evaluate_session(task, open_session(builder.baseline), ("ids",), task.validation)
    assert_same(
        judged[0].numpy(),
        np.concatenate([expected(task.model, inputs) for inputs, _ in task.validation]),
    )


def test_a_length_that_cannot_be_free_is_an_error_where_the_batches_need_it() -> None:
    task = varying((8, 20), Recurrent().eval(), words(1, 8))
    with pytest.raises(
        ExportError,
        match=r"ids: dimension 1 is fixed at 8 .*LSTM.*, but validation has batches of 20 there; "
        r"pad all batches to 8",
    ):
        prepare(task, ac.find_modules(task.model, task.example_inputs), KernelChoice())


def test_a_batch_that_does_not_fit_a_file_is_named() -> None:
    task = varying((8, 20), Recurrent().eval(), words(1, 8))
    proto = export_float(task.model, task.example_inputs).proto
    with pytest.raises(
        TaskError, match=r"a batch has ids of shape \(8, 20\), the file takes \('batch', 8\)"
    ):
        evaluate_session(task, open_session(proto.SerializeToString()), ("ids",), task.validation)


def test_dimensions_that_the_task_names_are_free() -> None:
    model, x = ConvClassifier().eval(), images(1)
    builder = builder_of(model, x, dynamic={"image": {2: "height", 3: "width"}})
    assert dims(builder.lowered.proto.graph.input) == {"image": ["batch", 3, "height", "width"]}
    other = torch.randn(2, 3, 20, 24)
    assert_same(run(builder.lowered.proto, other)[0], expected(model, other))
    inputs = open_session(builder.baseline).get_inputs()
    shapes = common_shapes({"file": inputs}, [example_sizes(builder.baseline)])
    assert shapes == {"image": (1, 3, 16, 16)}


class Windows(nn.Module):
    """Attention in windows.

    Batch and windows are one dimension, which leaves several computed sizes in one target.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.layer, self.head = nn.Conv2d(3, 16, 4, 4), Layer(16, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        parts = (
            x.view(batch, height // 2, 2, width // 2, 2, channels)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(-1, 4, channels)
        )
        whole = (
            self.layer(parts)
            .view(batch, height // 2, width // 2, 2, 2, channels)
            .permute(0, 1, 3, 2, 4, 5)
        )
        return self.head(whole.reshape(batch, height * width, channels).mean(1))


class Queries(nn.Module):
    """A small detector: learned queries look at an image."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.queries = nn.Conv2d(3, 16, 4, 4), nn.Embedding(5, 16)
        self.attention, self.kinds, self.boxes = (
            nn.MultiheadAttention(16, 4, batch_first=True),
            nn.Linear(16, 3),
            nn.Linear(16, 4),
        )

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        image = self.patch(pixel_values).flatten(2).transpose(1, 2)
        hidden, _ = self.attention(
            self.queries.weight[None].expand(image.shape[0], -1, -1), image, image
        )
        return {
            "logits": self.kinds(hidden),
            "pred_boxes": self.boxes(hidden).sigmoid(),
            "last_hidden_state": hidden,
        }


@pytest.mark.parametrize("make", [Windows, Queries])
def test_height_and_width_are_free_where_the_task_names_them(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    builder = builder_of(model, images(1), dynamic={"0": {2: "height", 3: "width"}})
    assert builder.lowered.fixed == ()
    for inputs in (images(3), images(2, 24), torch.randn(2, 3, 16, 32)):
        assert_same(run(builder.lowered.proto, inputs)[0], expected(model, inputs))


def test_what_cannot_be_free_is_said_with_its_reason() -> None:
    builder = builder_of(Patches().eval(), images(2), dynamic={"0": {1: "channels"}})
    (words_of_it,) = builder.lowered.fixed
    assert words_of_it.startswith("pixels: dimension 1 (channels) is fixed: ")


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"images": {2: "h"}}, "no input; nearest: image"),
        ({"image": {4: "h"}}, r"names dimension 4; image has 0 to 3"),
    ],
)
def test_a_wrong_name_of_a_dimension_is_one_line(
    dynamic: dict[str, dict[int, str]], message: str
) -> None:
    x = images(1)
    with pytest.raises(TaskError, match=message):
        free_dimensions(
            Task("t", ConvClassifier(), x, [(x, None)], lambda o, t: 0.0, dynamic=dynamic)
        )


def test_the_sizes_of_all_splits_are_looked_at() -> None:
    x = words(1, 8)
    task = Task(
        "t",
        Recurrent(),
        x,
        [(x, None)],
        lambda o, t: 0.0,
        train=[(words(2, 8), None)],
        test=[(words(2, 11), None)],
    )
    assert free_dimensions(task)[1] == FreeDimension(0, 1, "ids", "sequence", (11,), "test")


def test_an_error_of_the_exporter_names_its_cause_and_place() -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x @ x.T).abs()

    with pytest.raises(ExportError, match="eig") as caught:
        export_float(Unknown().eval(), torch.randn(3, 3))
    assert "step " not in str(caught.value)

    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(ExportError, match=r"data-dependent.*test_graph\.py:\d+"):
        export_float(Branch().eval(), torch.rand(2, 4))


class Flagged(nn.Module):
    """Asks buffers and a parameter for their values, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("initialized", torch.tensor(1, dtype=torch.uint8))
        self.register_buffer("sizes", torch.tensor([[2, 1], [3, 2]]))
        self.register_buffer("calls", torch.tensor(7))
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        if self.initialized.item() == 0:
            self.layer.weight.data.zero_()
        if self.calls > 5 and self.initialized:
            x = x * 2
        self.calls += 1
        first, second = x.split([int(a * b) for a, b in self.sizes[:1]] + [4], 1)
        for rows, columns in self.sizes.tolist():
            x = torch.cat([second, first], 1) + rows / columns
        return self.layer(x) / self.temperature.item()


def test_values_of_small_buffers_and_parameters_are_known_to_the_tracer() -> None:
    model, x = Flagged().eval(), torch.rand(2, 6)
    graph = export_float(copy.deepcopy(model), x)
    session = open_session(graph.proto.SerializeToString())
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-5)
    plain = plain_model(model, x)
    np.testing.assert_allclose(plain(x).detach().numpy(), expected, atol=1e-5)
    assert int(model.calls) == 8, "only the call above"


def test_a_branch_on_a_number_that_is_an_input_is_an_error() -> None:
    class Late(nn.Module):
        def forward(self, x: Tensor, step: Tensor) -> Tensor:
            return x * 2 if step > 3 else x

    with pytest.raises(ExportError, match="data-dependent"):
        export_float(Late().eval(), (torch.rand(2, 4), torch.tensor(5)))


def test_outputs_of_different_lengths_are_named_where_a_metric_must_see_them_as_one() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.words(ids))

    task = varying((8, 20), Tagger().eval(), words(1, 8))
    proto = export_float(task.model, task.example_inputs).proto
    with pytest.raises(TaskError, match=r"shapes \(8, 3\) and \(20, 3\), which are not one tensor"):
        evaluate_session(task, open_session(proto.SerializeToString()), ("ids",), task.validation)
