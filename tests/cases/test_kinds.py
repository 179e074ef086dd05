"""Further kinds of models as their authors write them.

How they are called, copied, and what is pruned in them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from fixture import Fixture, relative_difference
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, parametrize

from autocompress import Task, find_modules
from autocompress.errors import AutocompressError
from autocompress.measure.accuracy import evaluate_session
from autocompress.measure.prepare import prepared
from autocompress.model.plain.plain import plain_model
from autocompress.targets.device.sessions import open_session
from autocompress.task.calls import call_model


def rows(*shape: int) -> Tensor:
    return torch.randn(6, *shape)


def task_of(model: nn.Module, inputs: Any) -> Task:
    with torch.no_grad():
        target = call_model(model.eval(), inputs).argmax(1)
    return Task(
        "kinds",
        model,
        inputs,
        [(inputs, target)],
        lambda o, t: float((o.argmax(1) == t).float().mean()),
    )


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Call(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = Doubled(8, 12), nn.Linear(12, 4)

    def after(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.first(x).relu())
        return found


class AnyNumber(Call):
    def forward(self, *inputs: Tensor, **more: Any) -> Tensor:
        return self.after(sum(inputs, torch.zeros(())))


class Wrapped(Call):
    def forward(self, x: Tensor, *rest: Tensor, scale: float = 1.0) -> Tensor:
        return self.after((x + sum(rest, torch.zeros(()))) * scale)


class Nested(Call):
    def forward(
        self, parts: Any, mask: Tensor | None = None, *, more: Any = None, double: bool = False
    ) -> Tensor:
        x = parts[0] + parts[1]["k"] + more["b"][0]
        return self.after(x * 2 if double else x)


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (AnyNumber, rows(8)),
        (AnyNumber, (rows(8), rows(8), rows(8))),
        (Wrapped, (rows(8), rows(8))),
        (Wrapped, {"x": rows(8), "scale": 3.0}),
        (
            Nested,
            {
                "more": {"b": [rows(8)], "c": 3},
                "parts": [rows(8), {"k": rows(8)}],
                "mask": None,
                "double": True,
            },
        ),
    ],
)
def test_a_model_becomes_plain_however_it_is_called(kind: type[nn.Module], inputs: Any) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    plain = plain_model(model, inputs)
    assert isinstance(plain, fx.GraphModule)
    with torch.no_grad():
        assert torch.allclose(call_model(plain, inputs), call_model(model, inputs), atol=1e-5)
    assert {"first", "head"} <= {module.name for module in find_modules(model, inputs)}


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_layers_with_parametrizations_are_copied(kind: Any, weight: str) -> None:
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = kind(5, 6, batch_first=True), nn.Linear(6, 3)
            parametrizations.weight_norm(self.recurrent, weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(x)[0][:, -1])

    task = prepared(task_of(Last(), rows(4, 5)))
    assert {"recurrent.ih_l0", "recurrent.hh_l0", "head"} <= {
        m.name for m in find_modules(task.model, task.example_inputs)
    }


class Split(nn.Module):
    """Its width is split into two parts and joined again, which a width that two does not divide
    cannot be.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).unflatten(-1, (2, -1)).relu()
        return self.head(self.last(h.flatten(1)))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4, 0.5, 0.7])
def test_what_can_be_pruned_can_be_at_every_ratio(ratio: float) -> None:
    torch.manual_seed(0)
    fixture = Fixture(task_of(Split(), rows(8)))
    assert fixture.difference(fixture.uniform(weight_bits=32, pruning_ratio=ratio)) < 1e-5


class Reversed(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        count = len(weight)
        return torch.linalg.solve(
            torch.eye(count) + weight.triu(1) - weight.triu(1).T, torch.eye(count) + weight.tril()
        )


def orthogonal(model: nn.Sequential) -> None:
    parametrizations.orthogonal(model[0], orthogonal_map="cayley")


def exponential(model: nn.Sequential) -> None:
    parametrizations.orthogonal(model[0], orthogonal_map="matrix_exp")


def of_their_own(model: nn.Sequential) -> None:
    parametrize.register_parametrization(model[0], "weight", Reversed())


@pytest.mark.slow
@pytest.mark.parametrize("change", [orthogonal, exponential, of_their_own])
def test_weights_that_long_formulas_make_are_covered(change: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    change(model)
    fixture = Fixture(prepared(task_of(model, rows(8))))
    assert {m.name for m in fixture.builder.module_map} == {"0", "2"}
    assert fixture.difference(fixture.uniform(weight_bits=4, pruning_ratio=0.5)) < 1e-5
    with torch.no_grad():
        expected = model(fixture.inputs).numpy()
    assert relative_difference(fixture.run(fixture.builder.lowered.proto), expected) < 1e-5


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x).relu()
        return ({"scores": self.head(hidden), "hidden": (hidden, None)}, [hidden.mean(1)])


@pytest.mark.slow
def test_the_first_tensor_inside_of_what_is_returned_is_the_primary_output() -> None:
    model = Inside().eval()
    task = prepared(task_of(model, rows(8)))
    fixture = Fixture(task)
    with torch.no_grad():
        assert np.allclose(
            fixture.run(fixture.builder.lowered.proto),
            model(fixture.inputs)[0]["scores"].numpy(),
            atol=1e-5,
        )


class ByName(nn.Module):
    """Give layers their inputs by name, as PyTorch calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(8, 6, 3), nn.BatchNorm1d(6)
        self.first, self.head = nn.Linear(24, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(input=self.conv(input=x)).relu()
        return self.head(self.first(input=hidden.flatten(1)).relu())


class WordsByName(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)
        self.recurrent = kind(8, 8, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.recurrent(input=self.table(input=ids), hx=None)
        return self.head(input=states[:, -1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (ByName(), rows(8, 6)),
        (WordsByName(nn.GRU), torch.randint(20, (6, 5))),
        (WordsByName(nn.LSTM), torch.randint(20, (6, 5))),
    ],
    ids=["convolution", "GRU", "LSTM"],
)
def test_modules_that_are_called_by_name_are_compressed(model: nn.Module, inputs: Tensor) -> None:
    fixture = Fixture(prepared(task_of(model, inputs)))
    assert not isinstance(fixture.stitcher.teacher, fx.GraphModule)
    for bits in (8, 32):
        candidate = fixture.uniform(weight_bits=4, activation_bits=bits, algorithm="gptq")
        assert fixture.difference(candidate) < 1e-3


@dataclass(slots=True)
class Slotted:
    scores: Tensor
    hidden: Any = None


class Answering(Inside):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x).relu()
        return self.answer(self.head(hidden), hidden)


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [Slotted, lambda y, h: (Slotted(y), h), lambda y, h: {"answer": Slotted(y, [h])}],
    ids=["alone", "in a tuple", "in a dict"],
)
def test_dataclasses_with_slots_are_exported(answer: Any) -> None:
    fixture = Fixture(prepared(task_of(Answering(answer), rows(8))))
    with torch.no_grad():
        expected = call_model(fixture.task.model, fixture.inputs).numpy()
    assert np.allclose(fixture.run(fixture.builder.lowered.proto), expected, atol=1e-5)
    assert fixture.difference(fixture.uniform(weight_bits=4, pruning_ratio=0.5)) < 1e-3


class Scaled(Inside):
    def forward(self, scale: Tensor, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu()) * scale


@pytest.mark.slow
@pytest.mark.parametrize("batch_first", [None, True])
def test_a_number_may_be_the_first_input(batch_first: bool | None) -> None:
    inputs = (torch.tensor(3.0), rows(8))
    task = prepared(replace(task_of(Scaled(), inputs), batch_first=batch_first))
    fixture = Fixture(task)
    assert fixture.builder.lowered.dynamic_batch is (batch_first is True)
    assert fixture.difference(fixture.uniform(weight_bits=4)) < 1e-3
    session = open_session(fixture.build(fixture.uniform(weight_bits=32)).SerializeToString())
    names = tuple(value.name for value in session.get_inputs())
    scores, _ = evaluate_session(task, session, names, task.validation)
    assert scores.accuracy == 1.0


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(8, 6, proj_size=3, batch_first=True), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Held(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4)
        self.twice = self.first.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x[:, :, 0] > -9).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        return self.head(self.recurrent(packed)[1][-1])


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x.unflatten(1, (2, 4))[..., :2]).flatten(1)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.Sequential(nn.Linear(8, 4)).eval(), rows(8))  # type: ignore[no-any-return,no-untyped-call]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape", "text"),
    [
        (
            lambda: nn.Sequential(scripted(), nn.Linear(4, 4)),
            (8,),
            "model's 0 is a TorchScript module",
        ),
        (scripted, (8,), "the model is a TorchScript module"),
        (Projected, (5, 8), "model's recurrent is an LSTM with proj_size"),
        (Held, (8,), "the model cannot be copied"),
        (Packed, (5, 8), "it packs sequences"),
        (
            lambda: nn.Sequential(nn.Linear(8, 8), Exponential()),
            (8,),
            "no operator for aten.linalg_matrix_exp",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_what_no_file_can_hold_is_one_line_that_names_it(
    make: Any, shape: tuple[int, ...], text: str
) -> None:
    torch.manual_seed(0)
    with pytest.raises(AutocompressError, match=text) as caught:
        Fixture(prepared(task_of(make(), rows(*shape))))
    assert "\n" not in str(caught.value)
