"""Models that are odd in one way each.

Pruned or refused with the reason, and never changed themselves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from family import check, drawn, fixture_of, images, state_hash
from fixture import Fixture
from torch import Tensor, nn

import autocompress
from autocompress import Candidate, ModuleConfig, Task, find_modules
from autocompress.model.float_copy import float_task

pytestmark = pytest.mark.slow


def reasons(fixture: Fixture) -> dict[str, str | None]:
    return {group.name: group.reason for group in fixture.builder.module_map.groups}


def vectors() -> Tensor:
    return torch.randn(24, 6, generator=torch.Generator().manual_seed(1))


def mlp(hidden: int = 12) -> nn.Module:
    return nn.Sequential(nn.Linear(6, hidden), nn.GELU(), nn.Linear(hidden, 3))


def test_a_hidden_layer_of_one_unit_stays() -> None:
    fixture = fixture_of(lambda: mlp(1), vectors())
    assert reasons(fixture)["0"] is None
    assert fixture.builder.module_map.groups[0].kept_units(0.99) == 1
    for seed in range(3):
        check(fixture, drawn(fixture, seed, integer=False), 1e-4)


@pytest.mark.parametrize("ratio", [0.999, 0.9999999])
def test_a_ratio_that_would_empty_a_group_leaves_one_unit(ratio: float) -> None:
    fixture = fixture_of(mlp, vectors())
    candidate = fixture.uniform(pruning_ratio=ratio)
    assert fixture.builder.pruner.masks(candidate).of("0", "out").sum() == 1
    check(fixture, candidate, 1e-4)


def test_groups_that_reach_the_output_are_not_pruned() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + self.second(torch.relu(x))

    fixture = fixture_of(Two, vectors())
    assert set(reasons(fixture).values()) == {"its channels are the model's output"}
    assert not fixture.builder.pruner.masks(
        Candidate.of({"first": ModuleConfig(pruning_ratio=0.5)})
    ).kept


def test_tied_weights_are_not_pruned_but_may_be_factorised() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.inner, self.out = (
                nn.Embedding(30, 8),
                nn.Linear(8, 8),
                nn.Linear(8, 30),
            )
            self.out.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(torch.tanh(self.inner(self.embedding(ids).mean(1))))

    fixture = fixture_of(
        Tied, torch.randint(0, 30, (12, 5), generator=torch.Generator().manual_seed(0))
    )
    assert reasons(fixture) == {"inner": "a tied weight is in the group"}
    candidate = Candidate.of(
        {"embedding": ModuleConfig(4, rank_ratio=0.5, sparsity=0.5), "inner": ModuleConfig(8)}
    )
    check(fixture, candidate, 1e-4)
    for at, shapes in ((candidate, []), (Candidate.of({"embedding": ModuleConfig(8)}), [(30, 8)])):
        stored = [tuple(t.dims) for t in fixture.build(at).graph.initializer]
        assert [shape for shape in stored if shape in ((30, 8), (8, 30))] == shapes, (
            "the table and the head share what is stored"
        )
    ranked = fixture.build(Candidate.of({"embedding": ModuleConfig(rank_ratio=0.5)}))
    assert sorted(tuple(t.dims) for t in ranked.graph.initializer if len(t.dims) == 2) == [
        (4, 8),
        (8, 8),
        (30, 4),
    ]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = (
            nn.Conv2d(3, 12, 3, bias=False),
            nn.BatchNorm2d(12),
            nn.Linear(12, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def frozen() -> nn.Module:
    model = Small()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def test_frozen_parameters_are_pruned_and_stay_frozen() -> None:
    fixture = fixture_of(frozen, images(3, 8))
    assert reasons(fixture)["conv"] is None
    for importance in ("obs", "taylor", "gradient"):
        check(fixture, fixture.uniform(pruning_ratio=0.5, importance=importance), 1e-4)
    assert state_hash(fixture.model) == fixture.before


def test_statistics_of_batch_normalisation_go_with_their_channels() -> None:
    fixture = fixture_of(Small, images(3, 8))
    candidate = fixture.uniform(pruning_ratio=0.5)
    kept = fixture.builder.pruner.masks(candidate).of("norm", "channel")
    stored = {t.name: onnx_array(t) for t in fixture.build(candidate).graph.initializer}
    for name in ("weight", "bias", "running_mean", "running_var"):
        np.testing.assert_array_equal(
            stored[f"norm.{name}"], getattr(fixture.model.norm, name).detach().numpy()[kept]
        )


def onnx_array(tensor: object) -> np.ndarray:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor))


def searched(model: nn.Module, dtype: torch.dtype, folder: Path, device: str = "cpu") -> None:
    """A whole search with the model as it is, and what must hold after it."""
    x = images(3, 8).to(device, dtype)
    batches = [(x, torch.arange(12) % 4), (x.flip(3), torch.arange(12) % 4)]
    before = state_hash(model)
    task = Task(
        "odd",
        model,
        x[:1],
        batches,
        lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean()),
    )
    space = {
        "modules": [
            {
                "match": "*",
                "weight_bits": [4, 8],
                "pruning_ratio": [0.0, 0.5],
                "rank_ratio": [0.5, 1.0],
                "sparsity": [0.0, 0.5],
            }
        ],
        "distillation": {"steps": 2, "schedule": ["one_shot", "cubic"], "rounds": 2},
    }
    result = autocompress.search(task, space, n_trials=6, out=folder, quiet=True)
    assert state_hash(model) == before
    for point in result.front:
        session = onnxruntime.InferenceSession(
            folder / point.artifact / "model.onnx", providers=["CPUExecutionProvider"]
        )
        feed = {session.get_inputs()[0].name: x.float().cpu().numpy()}
        found = session.run(None, feed)[0]
        exported = autocompress.export(result, point, folder / "exported")
        with torch.no_grad():
            expected = autocompress.load(exported, model)(x.float().cpu()).numpy()
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_models_in_bfloat16_are_searched_as_float32_copies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Small().to(torch.bfloat16).eval()
    searched(model, torch.bfloat16, tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    task = Task("half", model, images().bfloat16(), [(images().bfloat16(), None)], lambda o, t: 0.0)
    floats = float_task(task)
    assert {p.dtype for p in floats.model.parameters()} == {torch.float32}
    assert next(iter(floats.validation))[0].dtype == torch.float32
    assert len(list(floats.validation)) == len(list(floats.validation)) == 1, "re-iterable"


def test_models_in_train_mode_are_judged_in_eval_mode_and_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Small(), nn.Dropout(0.5)).train()
    searched(model, torch.float32, tmp_path)
    assert all(module.training for module in model.modules())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_models_on_cuda_stay_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Small().cuda().eval()
    searched(model, torch.float32, tmp_path, "cuda")
    assert {p.device.type for p in model.parameters()} == {"cuda"}


def test_a_model_that_adds_the_state_of_a_recurrent_layer_says_so() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.rnn, self.out = (
                nn.Linear(6, 8),
                nn.GRU(8, 8, batch_first=True),
                nn.Linear(8, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.project(x.unsqueeze(1))
            return self.out((y + self.rnn(y)[0])[:, 0])

    found = {g.name: g.reason for g in find_modules(Added(), vectors()).groups}
    assert found["project"] == "the state of a recurrent layer is added to other channels"
    fixture = fixture_of(Added, vectors())
    check(fixture, fixture.uniform(pruning_ratio=0.5), 1e-4)


def test_experts_that_do_not_end_in_a_linear_module_are_kept() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(6, 2)
            self.experts = nn.ModuleList([nn.Conv1d(1, 1, 3, padding=1) for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            gates = self.router(x).softmax(-1)
            return sum(
                gates[:, i : i + 1] * expert(x.unsqueeze(1))[:, 0]
                for i, expert in enumerate(self.experts)
            )

    found = {g.name: g.reason for g in find_modules(Mixture(), vectors()).groups}
    assert found["router"] == "an expert does not end in a linear module"
