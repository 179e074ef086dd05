"""Models that cast to half precision themselves, or mix types.

Searched as float32 copies without the casts, or one line.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import ExportError, TaskError
from autocompress.measure.prepare import prepared
from autocompress.model.float_copy import float_copy
from autocompress.task.user_code import UserCodeError

pytestmark = pytest.mark.slow

SPACE = {"modules": [{"match": "*", "weight_bits": [4, 8]}], "distillation": {"steps": 0}}
HALF, BRAIN, DOUBLE, SINGLE = torch.float16, torch.bfloat16, torch.float64, torch.float32


class Tower(nn.Module):
    """A tower in another precision between modules in float32."""

    def __init__(self, kind: torch.dtype = HALF) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.tower = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)).to(kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tower(torch.relu(self.stem(x)).to(self.kind)).float())


class Called(Tower):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tower(torch.relu(self.stem(x)).half()).to(dtype=torch.float32))


class Typed(Tower):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.tower(torch.relu(self.stem(x)).type("torch.HalfTensor"))
        return self.head(hidden.type(torch.float32))


class Whole(nn.Module):
    """In half precision, its normalisation in float32, as many language models are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3)
        self.half()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.half())
        x = nn.functional.layer_norm(
            x.float(), (16,), self.norm.weight.float(), self.norm.bias.float()
        ).half()
        return self.b(torch.relu(x))


class Convolved(nn.Module):
    """With a buffer, and tensors that forward makes, in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU()
        ).bfloat16()
        self.head = nn.Linear(64, 3)
        self.register_buffer("scale", 2 * torch.ones(1, dtype=BRAIN))

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x[:, None].bfloat16()) * self.scale + torch.full((1, 8, 1), 0.5, dtype=BRAIN)
        return self.head(x.flatten(1).float())


class Attended(nn.Module):
    """Attention in bfloat16 whose softmax is in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.take, self.qkv, self.head = (
            nn.Linear(4, 16),
            nn.Linear(16, 48).bfloat16(),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.take(x.view(-1, 2, 4)).to(BRAIN)).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(1, 2) / 4, -1, dtype=SINGLE).to(BRAIN)
        return self.head((weights @ v).mean(1).to(SINGLE))


def task_of(net: nn.Module) -> ac.Task:
    torch.manual_seed(0)
    net, x = net.eval(), torch.randn(64, 8)
    with torch.no_grad():
        data = [(part, net(part).float().argmax(1)) for part in x.split(16)]
    return ac.Task("mixed", net, x[:1], data, top1, train=data)


def top1(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


def seeded(kind: type[nn.Module], *arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(*arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "modules"),
    [
        (Tower, (HALF,), 4),
        pytest.param(Tower, (BRAIN,), 4, marks=pytest.mark.extensive),
        (Tower, (DOUBLE,), 4),
        (Called, (), 4),
        pytest.param(Typed, (), 4, marks=pytest.mark.extensive),
        (Whole, (), 2),
        (Convolved, (), 2),
        (Attended, (), 3),
    ],
)
def test_casts_inside_a_model_are_float32_in_what_is_searched(
    kind: type[nn.Module], arguments: tuple[object, ...], modules: int, tmp_path: Path
) -> None:
    task = task_of(seeded(kind, *arguments))
    before = {name: (value.dtype, value.clone()) for name, value in task.model.state_dict().items()}
    result = ac.search(task, SPACE, n_trials=2, out=tmp_path / "run", quiet=True)
    assert result.front.baseline.accuracy >= 0.95
    assert len(ac.find_modules(prepared(task).model, task.example_inputs)) == modules
    folder = ac.export(result, result.front.most_accurate(), tmp_path / "best")
    inputs = task.validation[0][0]  # type: ignore[index]
    files = [result.folder / "models" / "baseline" / "model.onnx", folder / "model.onnx"]
    sessions = [
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in files
    ]
    found = [
        session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0] for session in sessions
    ]
    assert all(array.dtype == np.float32 for array in found)
    with torch.no_grad():
        expected, loaded = (
            task.model(inputs).float().numpy(),
            ac.load(folder, task.model)(inputs).numpy(),
        )
    assert np.linalg.norm(found[0] - expected) < 0.03 * np.linalg.norm(expected)
    assert np.linalg.norm(found[1] - loaded) < 0.01 * np.linalg.norm(loaded)
    assert ac.reproduce(folder, tmp_path / "again", task).is_file()
    assert all(
        value.dtype == before[name][0] and torch.equal(value, before[name][1])
        for name, value in task.model.state_dict().items()
    )


def test_a_copy_keeps_its_arguments_and_is_wrapped_only_where_it_must_be() -> None:
    x = torch.randn(2, 8)
    copied = float_copy(Tower(), x)
    assert isinstance(copied, Tower)
    assert list(inspect.signature(copied.forward).parameters) == ["x"]
    assert {value.dtype for value in copied.parameters()} == {SINGLE}
    plain = nn.Sequential(nn.Linear(8, 3)).half()
    assert type(float_copy(plain, x)) is nn.Sequential
    assert float_copy(plain, x)(x).dtype == SINGLE


class Strict(Tower):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).to(self.kind)
        if x.dtype != self.kind:
            raise TypeError("the tower wants half precision")
        return self.head(self.tower(x).float())


class Overflows(Tower):
    """Infinite in half precision, and not in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            self.tower(self.stem(x).to(self.kind)).float()
            + 10 * (1e7 * x[:, :1]).to(self.kind).isinf()
        )


class Autocast(Tower):
    def __init__(self) -> None:
        super().__init__(SINGLE)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=BRAIN):
            return self.head(self.tower(self.stem(x)))


class FunctionalAutocast(Tower):
    """No module is called under autocast."""

    def __init__(self) -> None:
        super().__init__(SINGLE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        with torch.autocast("cpu", dtype=BRAIN):
            x = F.linear(x, self.head.weight, self.head.bias)
        return x.float()


class CastsItself(Tower):
    def __init__(self) -> None:
        super().__init__(SINGLE)

    def forward(self, x: Tensor) -> Tensor:
        self.head.half()
        return self.head(self.stem(x).half()).float()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            Strict,
            "beside its weights in float16 and float32, and its float32 copy fails: TypeError: "
            "the tower wants half precision (",
        ),
        (
            Overflows,
            "beside its weights in float16 and float32, and its float32 copy gives outputs that "
            "are ",
        ),
        (Autocast, "model.forward runs under torch.autocast in bfloat16 ("),
        (FunctionalAutocast, "model.forward runs under torch.autocast in bfloat16 ("),
        (CastsItself, "model.forward casts its own parameters to float16 ("),
    ],
)
def test_types_that_no_copy_follows_are_one_line(kind: type[nn.Module], words: str) -> None:
    with pytest.raises(TaskError) as caught:
        prepared(task_of(seeded(kind)))
    assert words in str(caught.value)
    assert "nearest: model.float(), and no casts" in str(caught.value) or str(
        caught.value
    ).endswith(("nearest: enabled=False", "nearest: cast the model before the task is made"))
    assert "\n" not in str(caught.value)
    if "(" in words[-1]:
        assert f"({__file__}:" in str(caught.value)


class Picky(Tower):
    def forward(self, x: Tensor) -> Tensor:
        if float(x.max()) > 100:
            raise ValueError("too bright")
        return super().forward(x)


def test_what_such_a_model_raises_later_is_told_as_the_users() -> None:
    task = task_of(seeded(Picky))
    task.validation[0][0][5, 0] = 1000.0  # type: ignore[index]
    with pytest.raises(
        UserCodeError,
        match=r"model\.forward fails on validation: ValueError: too bright "
        r"\(.*test_mixed_types\.py:\d+\)",
    ):
        prepared(task)


class Cast(Tower):
    """Weights in float32, which forward casts."""

    def __init__(self) -> None:
        super().__init__(SINGLE)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(
            x.bfloat16(), self.stem.weight.bfloat16(), self.stem.bias.bfloat16()
        )
        return self.head(self.tower(torch.relu(x).float()))


class Activated(Tower):
    def __init__(self) -> None:
        super().__init__(SINGLE)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tower(torch.tanh(2 * self.stem(x).bfloat16()).float()))


@pytest.mark.parametrize("kind", [Cast, Activated])
def test_casts_of_float32_weights_without_a_kernel_are_named(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        ac.search(task_of(seeded(kind)), SPACE, n_trials=2, out=tmp_path, quiet=True)
    assert (
        "the model casts to bfloat16 in forward, for which there is no kernel; nearest: no such "
        "casts" in str(caught.value)
    )
    assert "\n" not in str(caught.value)
