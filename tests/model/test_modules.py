from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autocompress import find_modules
from autocompress.errors import TaskError
from autocompress.model.plain.split import split_modules


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 11)
        self.out.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.encoder(self.embedding(ids)))


def test_shapes_macs_roles_and_groups_of_a_cnn(cnn_task) -> None:
    found = find_modules(cnn_task.model, cnn_task.example_inputs)
    stem = found["stem.0"]
    assert (stem.kind, stem.weight_shape, stem.role, stem.macs) == (
        "conv",
        (16, 1, 3, 3),
        "conv",
        16 * 9 * 64,
    )
    assert found["fc"].role == "head"
    assert found["fc"].macs == 24 * 16 * 4
    groups = {g.name: g for g in found.groups}
    residual = {m.name for m in groups["stem.0"].members if m.side == "out"}
    assert residual == {"stem.0", "body.0.conv2"}, "the residual sum couples both producers"
    assert groups["fc"].reason == "its channels are the model's output"
    flattened = next(m for m in groups["body.2"].members if m.name == "fc")
    assert len(flattened.index) == 24 * 16, "each filter owns sixteen columns of the classifier"


def test_attention_is_split_and_pruned_as_heads() -> None:
    found = find_modules(Tied(), torch.zeros(1, 5, dtype=torch.int64))
    names = [m.name for m in found]
    assert [f"encoder.self_attn.{p}_proj" in names for p in ("q", "k", "v", "out")] == [True] * 4
    heads = next(g for g in found.groups if g.name == "encoder.self_attn.q_proj")
    assert (heads.kind, heads.units, heads.unit_size, heads.reason) == ("heads", 2, 4, None)
    assert found["encoder.self_attn.q_proj"].role == "attention"
    assert found["encoder.linear1"].role == "mlp"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu")])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True, "bias": False},
        {"num_layers": 2, "bidirectional": True, "dropout": 0.3},
    ],
    ids=["one", "first", "deep"],
)
def test_split_recurrent_layers_compute_the_same(kind, options) -> None:
    torch.manual_seed(0)
    layer = kind(6, 5, **options).eval()
    split = split_modules(layer)
    count = 2 if options.get("bidirectional") else 1
    state = torch.randn(options.get("num_layers", 1) * count, 3, 5)
    given = (state, state * 2) if kind is nn.LSTM else state
    x = torch.randn(3, 4, 6) if options.get("batch_first") else torch.randn(4, 3, 6)
    for arguments in ((x,), (x, given)):
        (found, last), (expected, expected_last) = split(*arguments), layer(*arguments)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(last, expected_last)
    torch.testing.assert_close(split(x[0])[0], layer(x[0])[0])
    names = [name for name, _ in split.named_children()]
    assert len(names) == 2 * count * options.get("num_layers", 1)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_weights_are_modules_with_their_work(kind: type[nn.RNNBase], gates: int) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = kind(6, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.rnn(x)[0][:, -1])

    found = find_modules(Reader(), torch.randn(2, 7, 6))
    assert [(m.name, m.kind, m.macs) for m in found][:2] == [
        ("rnn.ih_l0", "recurrent", 14 * 30 * gates),
        ("rnn.hh_l0", "recurrent", 14 * 25 * gates),
    ]
    assert found.total_macs == sum(m.macs for m in found), "each product is counted once"
    assert sum(u.macs_share for u in found.uncovered) == 0
    assert sum(u.parameters_share for u in found.uncovered) == 0


def test_tied_weights_are_one_module() -> None:
    found = find_modules(Tied(), torch.zeros(1, 5, dtype=torch.int64))
    assert found["embedding"].aliases == ("out",)
    assert "out" not in [m.name for m in found]


def test_what_is_not_covered_is_listed_with_its_share() -> None:
    model = Tied()
    found = find_modules(model, torch.zeros(1, 5, dtype=torch.int64))
    total = sum(p.numel() for p in model.parameters())
    covered = sum(m.parameters for m in found)
    assert sum(u.parameters_share for u in found.uncovered) == pytest.approx(1 - covered / total)
    assert any(u.what == "LayerNorm" for u in found.uncovered)
    products = next(u for u in found.uncovered if u.name == "(functional)")
    assert products.macs_share * found.total_macs == pytest.approx(2 * 5 * 5 * 8), (
        "the two products of attention"
    )


@pytest.mark.parametrize("batch_first", [True, False])
def test_split_attention_computes_the_same(batch_first: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=batch_first).eval()
    query, key = torch.rand(3, 5, 8), torch.rand(3, 4, 6)
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    padding = torch.tensor([[False, False, False, True]] * 3)
    for mask, ignored in (
        (None, padding),
        (torch.rand(5, 4) > 0.9, padding),
        (torch.rand(6, 5, 4), None),
    ):
        expected = attention(query, key, key, key_padding_mask=ignored, attn_mask=mask)
        found = split_modules(attention)(query, key, key, key_padding_mask=ignored, attn_mask=mask)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a)


def test_towers_are_guessed_or_given() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
            self.language = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
            self.head = nn.Linear(16, 2)

        def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return self.head(torch.cat([self.vision(image), self.language(text)], 1))

    inputs = {"image": torch.rand(1, 4), "text": torch.rand(1, 4)}
    assert [m.tower for m in find_modules(Pair(), inputs)] == ["vision", "language", "head"]
    given = find_modules(Pair(), inputs, {"eyes": ["vision.*"]})
    assert [m.tower for m in given] == ["eyes", "other", "other"]
    with pytest.raises(
        TaskError,
        match=r"towers\['eyes'\] pattern 'visio\.\*' matches no module; nearest: vision\.0",
    ):
        find_modules(Pair(), inputs, {"eyes": ["visio.*"]})


def test_a_model_without_compressible_modules_is_refused() -> None:
    with pytest.raises(TaskError, match="no Linear, Conv1d"):
        find_modules(nn.Sequential(nn.ReLU()), torch.rand(1, 2))


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (None, torch.zeros(1, 2), "model must be a torch.nn.Module, got None; nearest: torch.nn."),
        ("m", torch.zeros(1, 2), "model must be a torch.nn.Module, got 'm'; nearest: torch.nn.L"),
        (nn.Linear, torch.zeros(1, 2), "model must be a torch.nn.Module, got <class 'torch.nn."),
        (nn.Linear(2, 2), None, "task: example_inputs gives inputs of type NoneType; expected a"),
        (nn.Linear(2, 2), [[1, 2]], "task: example_inputs has no tensor among its inputs "),
        (nn.Linear(2, 2), np.zeros((1, 2)), "task: example_inputs gives inputs of type ndarray"),
    ],
)
def test_what_is_no_model_or_input_is_one_line(model: Any, inputs: Any, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        find_modules(model, inputs)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_tracer_that_never_ends_costs_its_group_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*arguments: object, **options: object) -> None:
        while True:
            pass

    monkeypatch.setattr("torch_pruning.DependencyGraph.get_pruning_group", endless)
    monkeypatch.setattr("autocompress.model.dependency_graph.GROUP_SECONDS", 0.05)
    found = find_modules(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(1, 4)
    )
    assert [g.reason for g in found.groups] == [
        "torch-pruning cannot follow its channels (TimeoutError)"
    ] * 2


def test_a_model_that_cannot_be_traced_is_not_pruned_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise NotImplementedError("some operator")

    monkeypatch.setattr("torch_pruning.DependencyGraph.build_dependency", fails)
    found = find_modules(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(1, 4)
    )
    assert [g.reason for g in found.groups] == [
        "torch-pruning cannot trace the model (NotImplementedError)"
    ] * 2
