"""Models, losses and divergences that give no gradients, by which recovery would train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

import autocompress as ac
from autocompress.errors import AutocompressError
from autocompress.measure.prepare import prepared

LESSON = ac.Candidate.of({"first": ac.ModuleConfig(weight_bits=4)}, ac.Distillation(steps=2))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.first(x).relu())
        return scores


class Ungraded(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Inferring(Net):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


def task_of(model: nn.Module) -> ac.Task:
    torch.manual_seed(0)
    inputs = torch.randn(32, 8)
    with torch.no_grad():
        target = model.eval()(inputs).argmax(1)
    batches = list(zip(inputs.split(8), target.split(8), strict=True))
    return ac.Task("gradients", model, inputs[:1], batches, accuracy, train=batches)


@pytest.mark.parametrize("kind", [Ungraded, Inferring])
def test_a_forward_that_switches_gradients_off_is_trained_as_a_program(kind: type[Net]) -> None:
    said: list[str] = []
    task = prepared(task_of(kind()), said.append)
    assert isinstance(task.model, fx.GraphModule)
    assert (task.no_gradient, said) == ("", [])


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        (Detached(), {}, "the outputs of the model"),
        (
            Net(),
            {"divergence": lambda s, t: (s.argmax(1) != t.argmax(1)).float()},
            "the divergence of the task",
        ),
        (Net(), {"loss": lambda o, t: (o.argmax(1) != t).float().mean()}, "the loss of the task"),
    ],
    ids=["model", "divergence", "loss"],
)
def test_what_has_no_gradient_is_said(model: nn.Module, changes: Any, said: str) -> None:
    lines: list[str] = []
    task = replace(task_of(model), **changes)
    reason = prepared(task, lines.append).no_gradient
    assert reason.startswith(said)
    assert reason.endswith("no gradient")
    assert lines == [f"{reason}: candidates are not trained"]
    with pytest.raises(AutocompressError, match=r"steps 2: .* no gradient; nearest valid value: 0"):
        ac.compress(task, LESSON)


class Overwriting(Net):
    """Writes over an activation that the gradient of sigmoid needs, as heads of detectors do."""

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x).sigmoid()
        scores[:, :2] = scores[:, :2] * 2 - 0.5
        return scores


class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()


class WithoutBackward(Net):
    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = Rounding.apply(super().forward(x))
        return rounded


class ForAnother(Net):
    """Has a primary output without a gradient beside one with a gradient."""

    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        return {"best": scores.detach(), "scores": scores}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Overwriting, "modified by an inplace operation"),
        (WithoutBackward, "custom autograd.Function"),
    ],
)
def test_a_backward_pass_that_fails_is_said(kind: type[Net], said: str) -> None:
    lines: list[str] = []
    reason = prepared(task_of(kind()), lines.append).no_gradient
    assert reason.startswith("the backward pass of the model fails (")
    assert said in reason
    assert "\n" not in reason
    assert lines == [f"{reason}: candidates are not trained"]


class Checkpointed(Net):
    """Runs forward again in the backward pass, in the way that takes no list of inputs."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        scores: Tensor = checkpoint(self._rest, hidden, use_reentrant=True)
        return scores

    def _rest(self, hidden: Tensor) -> Tensor:
        return self.head(hidden.relu())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # without gradients
def test_a_model_that_computes_again_is_trained() -> None:
    model = Checkpointed().eval().requires_grad_(False)
    task = task_of(model)
    assert task.no_gradient == ""
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert prepared(task).no_gradient == ""
    ac.compress(task, LESSON)


SIZES: list[int] = []


class Short(torch.autograd.Function):
    """Lacks memory in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        SIZES.append(len(x))
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")


class Large(Net):
    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = Short.apply(super().forward(x))
        return scores


class Full(Net):
    """Lacks memory in the forward pass, once gradients are kept."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")
        return super().forward(x)


@pytest.mark.parametrize("kind", [Large, Full])
def test_a_lack_of_memory_is_no_finding(kind: type[Net]) -> None:
    task = replace(task_of(kind()), example_inputs=torch.randn(16, 8))
    SIZES.clear()
    assert task.no_gradient == ""
    assert SIZES in ([], [8, 2])  # the training batch, and two samples of the example


def test_a_backward_pass_is_tried_where_the_primary_output_has_a_gradient() -> None:
    weights = {"best": 1.0, "scores": 1.0}
    task = replace(task_of(Net()), model=ForAnother().eval(), output_weights=weights)
    assert task.no_gradient == ""


@pytest.mark.slow
def test_a_search_of_a_model_without_gradients_trains_nothing(tmp_path: Path) -> None:
    space = {
        "modules": [{"match": "*", "weight_bits": [3, 4]}],
        "distillation": {"steps": 4},
    }
    task, options = task_of(Detached()), {"out": tmp_path / "run", "quiet": True}
    with pytest.raises(AutocompressError, match=r"finalize_steps 5: .*; nearest valid value: 0"):
        ac.search(task, space, n_trials=2, finalize_steps=5, **options)
    ac.search(task, space, n_trials=2, **options)
    rows = (tmp_path / "run" / "trials.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["COMPLETE"] * 2
