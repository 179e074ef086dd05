"""Models whose covered modules do more than their classes say.

What is simulated, what is in the file and what the user has agree.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from fixture import relative_difference
from torch import fx, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import autocompress
from autocompress import Task, find_modules
from autocompress.compress.assemble.fake_quant import SimulatedModule
from autocompress.errors import ExportError
from autocompress.export.lowering import operators
from autocompress.export.lowering.lower import LoweredModel
from autocompress.model.plain.plain import is_plain, plain_model, plain_task
from autocompress.task.calls import call_model

pytestmark = pytest.mark.slow

SPACE = {
    "modules": [{"match": "*", "weight_bits": [4, 8], "activation_bits": [8, 32]}],
    "distillation": {"steps": [0, 3]},
}


class Scaled(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * self.embedding_dim**0.5


class Lora(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.A, self.B = (
            nn.Parameter(torch.randn(4, inputs) / inputs**0.5),
            nn.Parameter(torch.randn(outputs, 4)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.A.T @ self.B.T


class Same(nn.Conv2d):
    """Pads as TensorFlow does: more at the end than at the start."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Transposed(nn.Module):
    """A linear layer that keeps its weight the other way round, as GPT-2's Conv1D."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5),
            nn.Parameter(torch.randn(outputs)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Rotated(nn.MultiheadAttention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x + 0.5 * super().forward(x, x, x, need_weights=False)[0]


class Unbatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.att, self.head = nn.MultiheadAttention(16, 2), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x.mean(1)
        return self.head(self.att(q, q, q)[0] + q)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(30, 16), nn.Linear(16, 4)
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = self.enc(self.emb(ids), src_key_padding_mask=mask)
        keep = (~mask[:, : h.shape[1]]).unsqueeze(-1).float()
        return self.head((h * keep).sum(1) / keep.sum(1))


class Shared(nn.Module):
    """One module under several names, and a table that is the head's weight as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table, mix = nn.Embedding(20, 16), nn.Linear(16, 16)
        self.left, self.right = nn.Sequential(self.table, mix), nn.Sequential(self.table, mix)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.left(a).mean(1) + 2 * self.right(b).mean(1)) @ self.table.weight.T


class Recurrent(nn.Module):
    """A hooked LSTM, a GRU and a normalisation around them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = (
            nn.LSTM(8, 12, batch_first=True, bidirectional=True),
            nn.GRU(24, 10, batch_first=True),
        )
        self.norm, self.head = nn.BatchNorm1d(10), nn.Linear(10, 3)
        self.lstm.register_forward_hook(lambda module, inputs, output: (output[0] * 2, output[1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, (hidden, _) = self.lstm(x)
        return self.head(self.norm(self.gru(x)[1][-1])) + hidden[0, :, :3]


class MoreKeys(nn.Module):
    """Attention with a learned key and a key of zeros behind the others."""

    def __init__(self, **options: int) -> None:
        super().__init__()
        self.att = nn.MultiheadAttention(
            16, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True, **options
        )
        self.head = nn.Linear(16, 3)

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        mixed, weights = self.att(q, k, k)
        return self.head(mixed.mean(1)) + weights[:, 0, :3]


class Cells(nn.Module):
    """Two steps of recurrent cells, and a bilinear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm = nn.GRUCell(8, 12), nn.LSTMCell(12, 12, bias=False)
        self.rnn, self.pair = nn.RNNCell(12, 6, nonlinearity="relu"), nn.Bilinear(6, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.gru(x)
        state = self.lstm(self.gru(x, hidden))
        return self.pair(self.rnn(self.lstm(hidden, state)[0]), x)


class Standardised(nn.Module):
    """Weights that forward changes itself, and one that it uses twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("mask", torch.randint(0, 2, (3, 8)).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
        x = nn.functional.conv2d(x, weight, self.conv.bias).relu().mean((2, 3))
        x = nn.functional.linear(self.mix(x).relu(), self.mix.weight)
        return nn.functional.linear(x, self.head.weight * self.mask, self.head.bias)


class Wide(nn.Module):
    """A bilinear layer with too many pairs of inputs to be one product."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.pair = nn.Linear(8, 64), nn.Bilinear(64, 64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.before(x)
        return self.pair(hidden, hidden.relu())


def hooked() -> nn.Module:
    net = nn.Sequential(
        nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)
    )
    net[0].register_forward_pre_hook(lambda module, arguments: (arguments[0].roll(1, -1),))
    net[2].register_forward_hook(lambda module, arguments, output: output.flip(-1) * 3)
    return net


def patched() -> nn.Module:
    net = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))
    plain = net[0].forward
    net[0].forward = lambda x: plain(x) ** 2  # type: ignore[method-assign]
    return net


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def floats(*shape: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: (torch.randn(96, *shape),)


def ids(*widths: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: tuple(torch.randint(0, 20, (96, width)) for width in widths)


def ids_and_mask() -> tuple[torch.Tensor, ...]:
    return torch.randint(0, 30, (96, 9)), torch.arange(9) >= torch.randint(3, 8, (96, 1))


MODELS: dict[
    str, tuple[Callable[[], nn.Module], Callable[[], tuple[torch.Tensor, ...]], set[str]]
] = {
    "embedding subclass": (
        lambda: nn.Sequential(Scaled(20, 16), Mean(), nn.Linear(16, 3)),
        ids(7),
        {"0", "2"},
    ),
    "linear subclass": (
        lambda: nn.Sequential(Lora(16, 24), nn.ReLU(), nn.Linear(24, 3)),
        floats(16),
        {"0", "0_A", "0_B", "2"},
    ),
    "convolution subclass": (
        lambda: nn.Sequential(
            Same(3, 8, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3)
        ),
        floats(3, 8, 8),
        {"0", "4"},
    ),
    "transposed weight": (
        lambda: nn.Sequential(Transposed(16, 24), nn.ReLU(), Lora(24, 3)),
        floats(16),
        {"0", "2", "2_A", "2_B"},
    ),
    "hooks": (hooked, floats(16), {"0", "2", "4"}),
    "forward of an instance": (patched, floats(16), {"0", "2"}),
    "parametrization": (
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(16, 24)),
            nn.ReLU(),
            parametrizations.spectral_norm(nn.Linear(24, 3)),
        ),
        floats(16),
        {"0", "2"},
    ),
    "older parametrization": (
        lambda: nn.Sequential(
            weight_norm(nn.Conv1d(4, 8, 3)),
            nn.ReLU(),
            nn.Flatten(),
            spectral_norm(nn.Linear(48, 3)),
        ),
        floats(4, 8),
        {"0", "3"},
    ),
    "attention subclass": (
        lambda: nn.Sequential(Rotated(16, 2, batch_first=True), Mean(), nn.Linear(16, 3)),
        floats(5, 16),
        {"0.in_proj", "0.out_proj", "2"},
    ),
    "unbatched attention": (
        Unbatched,
        floats(5, 16),
        {"att.in_proj", "att.in_proj_1", "att.in_proj_2", "att.out_proj", "head"},
    ),
    "attention with further keys": (
        MoreKeys,
        lambda: (torch.randn(96, 5, 16), torch.randn(96, 7, 16)),
        {"att.in_proj", "att.in_proj_1", "att.out_proj", "head"},
    ),
    "attention with further keys of another width": (
        lambda: MoreKeys(kdim=10, vdim=10),
        lambda: (torch.randn(96, 5, 16), torch.randn(96, 7, 10)),
        {"att.q_proj", "att.k_proj", "att.v_proj", "att.out_proj", "head"},
    ),
    "recurrent cells": (
        Cells,
        floats(8),
        {"gru.ih", "gru.hh", "lstm.ih", "lstm.hh", "rnn.ih", "rnn.hh", "pair"},
    ),
    "weights of layers that are not called": (Standardised, floats(3, 6, 6), {"conv", "head"}),
    "a single layer": (lambda: nn.Linear(16, 3), floats(16), {"weight_module"}),
    "padding mask": (
        Masked,
        ids_and_mask,
        {"emb", "enc.layers.0.self_attn.in_proj", "enc.layers.0.linear1", "head"},
    ),
    "one module in several places": (Shared, ids(5, 7), {"table", "left.1"}),
    "recurrent": (
        Recurrent,
        floats(6, 8),
        {"lstm.ih_l0", "lstm.hh_l0_reverse", "gru.ih_l0", "head"},
    ),
}


def task_of(name: str) -> Task:
    torch.manual_seed(0)
    make, inputs, _ = MODELS[name]
    model, data = make().eval(), inputs()
    with torch.no_grad():
        labels = model(*data).argmax(1)
    batches = [(tuple(t[i : i + 16] for t in data), labels[i : i + 16]) for i in range(0, 96, 16)]
    example = tuple(t[:1] for t in data) if name != "unbatched attention" else batches[0][0]
    return Task(
        name,
        model,
        example,
        batches[:3],
        lambda o, t: float((o.argmax(1) == t).float().mean()),
        train=batches[3:],
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings(
    "ignore:.*weight_norm.*:FutureWarning",
    "ignore:.*spectral_norm.*:FutureWarning",
    "ignore:.*nested tensors.*",
)
def test_the_plain_model_is_the_model(name: str) -> None:
    task = task_of(name)
    plain = plain_model(task.model, task.example_inputs)
    assert isinstance(plain, fx.GraphModule)
    for inputs, _ in task.validation:
        with torch.no_grad():
            assert (
                relative_difference(
                    call_model(plain, inputs).numpy(), call_model(task.model, inputs).numpy()
                )
                < 1e-5
            )
    found = find_modules(task.model, task.example_inputs)
    assert MODELS[name][2] <= {module.name for module in found}
    again = plain_model(plain, task.example_inputs)
    assert [n for n, _ in again.named_modules()] == [n for n, _ in plain.named_modules()], (
        "a plain model stays as it is"
    )


@pytest.mark.parametrize(
    "name",
    [
        "linear subclass",
        pytest.param("convolution subclass", marks=pytest.mark.extensive),
        "hooks",
        "padding mask",
        "attention with further keys",
        "one module in several places",
        "recurrent",
        "recurrent cells",
        "weights of layers that are not called",
        "a single layer",
    ],
)
@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
def test_search_file_and_loaded_module_agree(name: str, tmp_path: Path) -> None:
    task = task_of(name)
    result = autocompress.search(task, SPACE, n_trials=2, out=tmp_path / "run", quiet=True)
    for point in result.front:
        assert abs(point.predicted.accuracy - point.measured.accuracy) <= 2 / 48, (
            "as far as roundings at a tie go"
        )
    folder = result.folder / result.front.smallest().artifact
    inputs = task.validation[0][0]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    feed = {
        value.name: tensor.numpy()
        for value, tensor in zip(session.get_inputs(), inputs, strict=True)
    }
    with torch.no_grad():
        own = autocompress.load(folder, task.model)(*inputs).numpy()
    assert relative_difference(session.run(None, feed)[0], own) < 0.02
    autocompress.reproduce(folder, tmp_path / "again", task)


def test_a_model_that_is_plain_stays_a_tree(cnn_task: Task) -> None:
    assert not isinstance(plain_model(cnn_task.model, cnn_task.example_inputs), fx.GraphModule)
    assert plain_task(cnn_task).model is cnn_task.model
    assert all(is_plain(module) for module in cnn_task.model.modules())


class OneAtATime(nn.Module):
    """A hooked layer in a model that takes a single sample."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 3)
        self.a.register_forward_hook(lambda module, inputs, output: output * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] != 1:
            raise ValueError("one at a time")
        return self.a(x)


def test_a_model_that_takes_one_sample_at_a_time_becomes_plain() -> None:
    torch.manual_seed(0)
    model, x = OneAtATime().eval(), torch.randn(1, 8)
    plain = plain_model(model, x)
    assert isinstance(plain, fx.GraphModule)
    torch.testing.assert_close(plain(x), model(x))
    assert [module.name for module in find_modules(model, x)] == ["a"]


class Branching(nn.Module):
    """Control flow that depends on data, which no program holds, around a module with a hook and
    one without.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)
        self.a.register_forward_hook(lambda module, inputs, output: output * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(x if float(x.sum()) > 0 else -x)


def test_without_a_program_only_plain_modules_are_covered() -> None:
    torch.manual_seed(0)
    found = find_modules(Branching().eval(), torch.randn(4, 8))
    assert [module.name for module in found] == ["b"]
    assert "a" in {item.name for item in found.uncovered}


def identity_task() -> Task:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    net = nn.Sequential(
        nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)
    ).eval()
    labels = torch.randint(0, 4, (64,))
    return Task(
        "net",
        net,
        x[:1],
        [(x[:32], labels[:32]), (x[32:], labels[32:])],
        lambda o, t: float((o.argmax(1) == t).float().mean()),
    )


def fault_in_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SimulatedModule.forward
    monkeypatch.setattr(
        SimulatedModule,
        "forward",
        lambda self, x: forward(self, x) * (1.1 if self._source[0].in_features == 24 else 1.0),
    )


def fault_in_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = operators._integer_product

    def wrong(graph: Any, name: str, *arguments: Any, **options: Any) -> str:
        output = whole(graph, name, *arguments, **options)
        scale = graph.initializers[f"{graph.short(name)}s"]
        if name.startswith("2."):
            graph.constant(scale.name, graph.array(scale.name) * np.float32(1.2))
        return output

    monkeypatch.setattr(operators, "_integer_product", wrong)


def fault_in_export(monkeypatch: pytest.MonkeyPatch) -> None:
    from autocompress.export import prepare

    lower = prepare.lower

    def wrong(*arguments: Any) -> LoweredModel:
        lowered = lower(*arguments)
        tensor = next(t for t in lowered.proto.graph.initializer if t.name == "2.weight")
        values = np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.1)
        tensor.raw_data = values.tobytes()
        return lowered

    monkeypatch.setattr(prepare, "lower", wrong)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            fault_in_simulation,
            "the simulation of the untouched model differs from the model at module 2;",
        ),
        (fault_in_export, "the float file differs from the model at module 2;"),
        (fault_in_lowering, "the file of 8-bit weights differs from its simulation at module 2;"),
    ],
)
def test_a_fault_ends_the_search_before_its_first_trial(
    fault: Callable[[pytest.MonkeyPatch], None],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    fault(monkeypatch)
    with pytest.raises(ExportError, match=said):
        autocompress.search(identity_task(), SPACE, n_trials=1, out=tmp_path, quiet=True)


def test_bilinear_layers_that_would_fill_the_memory_stay_as_they_are() -> None:
    found = find_modules(Wide().eval(), torch.randn(4, 8))
    assert [(module.name, module.kind) for module in found] == [("before", "linear")]
    assert any(part.name == "pair" for part in found.uncovered)
