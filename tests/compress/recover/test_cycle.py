"""Training: what learns, what stays, and that interruptions, parts of batches and memory tricks
change nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixture import Fixture, trainer_of
from small_tasks import all_outputs
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from autocompress import Candidate, Distillation, ModuleConfig, Task
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.recover import cycle as module
from autocompress.compress.recover.context import Trainer, parameter_groups
from autocompress.compress.recover.cycle import Cycle
from autocompress.compress.recover.recover import recover
from autocompress.compress.recover.teacher import Teacher
from autocompress.errors import NotComputableError
from autocompress.results.tensor_files import read_state
from autocompress.task.batches import Inputs, map_inputs

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FORMS = {
    "4 bits": {"weight_bits": 4, "activation_bits": 8},
    "3 bits static": {"weight_bits": 3, "activation_bits": 8, "activation_mode": "static"},
    "groups with zero-points": {"weight_bits": 2, "group_size": 16, "symmetric": False},
    "one scale": {"weight_bits": 4, "group_size": -1},
    "float16": {"weight_bits": 16},
    "factors": {"weight_bits": 4, "rank_ratio": 0.5},
    "float factors": {"rank_ratio": 0.5},
    "zeros": {"weight_bits": 4, "sparsity": 0.5},
    "pruned": {"pruning_ratio": 0.5},
    "pruned, factors, zeros, 3 bits": {
        "weight_bits": 3,
        "activation_bits": 8,
        "pruning_ratio": 0.5,
        "rank_ratio": 0.5,
        "sparsity": 0.5,
    },
}


@pytest.fixture(scope="module", params=["cnn", "transformer"])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(request.getfixturevalue(f"{request.param}_task"))


@pytest.fixture
def improving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look finds a better model than the last, so that what training left is what is kept."""
    looks = iter(range(10**6))
    monkeypatch.setattr(Trainer, "divergence", lambda trainer, student: 1.0 / (1 + next(looks)))


def candidate(fixture: Fixture, recovery: Distillation, **axes: object) -> Candidate:
    ratio = axes.pop("pruning_ratio", 0.0)
    rank = axes.pop("rank_ratio", 1.0)
    bits = axes.pop("activation_bits", 32)
    configs = {}
    for m in fixture.builder.module_map:
        configs[m.name] = ModuleConfig(
            activation_bits=bits if m.kind in ("linear", "conv") else 32,
            rank_ratio=rank if m.factorisable else 1.0,
            pruning_ratio=ratio if m.name in fixture.roots else 0.0,
            **axes,
        )
    return Candidate.of(configs, recovery)


def noisy(inputs: Inputs) -> Inputs:
    def view(tensor: Tensor) -> Tensor:
        return tensor + torch.randn_like(tensor) if tensor.is_floating_point() else tensor

    return map_inputs(inputs, view)


def same(a: Trained, b: Trained) -> bool:
    first, second = a.to_tensors(), b.to_tensors()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("form", FORMS)
def test_gradients_flow_through_every_form(fixture: Fixture, form: str) -> None:
    at = candidate(fixture, Distillation(0.5, 2.0, 3), **FORMS[form])
    stitcher = fixture.stitcher
    model = stitcher.apply(at)
    stitcher.start_training(at)
    seen: dict[str, torch.Tensor] = {}
    cycle = Cycle(trainer_of(fixture.task, stitcher), model, at.distillation, 3)
    update = cycle._update

    def recorded(optimizer: torch.optim.Optimizer) -> None:
        for name, parameter in cycle.parameters.items():
            if parameter.grad is not None:
                seen[name] = seen.get(name, 0) + parameter.grad.abs()
        update(optimizer)

    cycle._update = recorded
    groups = parameter_groups(model)
    cycle.run()
    learning = {
        f"{kind}{i}": p
        for kind, group in groups.items()
        for i, p in enumerate(group)
        if p.numel() and kind != "float"
    }
    assert set(learning) <= set(seen)
    dead = [name for name in learning if not seen[name].sum() > 0]
    assert not dead, dead
    assert all(torch.isfinite(gradient).all() for gradient in seen.values())
    assert groups["weights"]
    assert bool(groups["scales"]) == (
        at.modules[0][1].weight_bits < 16 or at.modules[0][1].activation_bits == 8
    )


@pytest.mark.parametrize("form", ["3 bits static", "pruned, factors, zeros, 3 bits"])
def test_a_step_changes_only_what_should_change(
    fixture: Fixture, form: str, improving: None
) -> None:
    at = candidate(fixture, Distillation(0.5, 2.0, 3, learning_rate=1e-2), **FORMS[form])
    stitcher = fixture.stitcher
    original = {name: value.clone() for name, value in fixture.task.model.state_dict().items()}
    teacher = {name: value.clone() for name, value in stitcher.teacher.state_dict().items()}
    model = stitcher.apply(at)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    random = torch.random.get_rng_state()
    trained, steps = recover(trainer_of(fixture.task, stitcher), stitcher, at)
    assert steps == 3
    assert all(
        torch.equal(value, original[name])
        for name, value in fixture.task.model.state_dict().items()
    )
    assert all(
        torch.equal(value, teacher[name]) for name, value in stitcher.teacher.state_dict().items()
    )
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers()), (
        "batch statistics stay"
    )
    assert torch.equal(torch.random.get_rng_state(), random), (
        "the user's random numbers go on as if nothing had been"
    )
    assert all(p.grad is None for p in parameter_groups(model)["weights"])
    changed = 0
    for name, variant in trained.variants.items():
        before = stitcher.variant(name, stitcher.owners[name], at)
        for new, old in zip(variant.factors, before.factors, strict=True):
            assert new.values.shape == old.values.shape
            assert (new.weight_bits, new.group_size) == (old.weight_bits, old.group_size)
            if old.kept is not None:
                assert torch.equal(new.kept, old.kept)
            changed += int(not torch.equal(new.dequantized(), old.dequantized()))
    assert changed > len(trained.variants) / 2
    # The next candidate sees nothing of it.
    with torch.no_grad():
        torch.testing.assert_close(
            stitcher.apply(Candidate())(fixture.inputs), stitcher.teacher(fixture.inputs)
        )


def shuffled(task):
    """The same samples in an order of the global generator, as users' loaders have it."""
    inputs, targets = (torch.cat(parts) for parts in zip(*task.train, strict=True))
    return replace(
        task, train=DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True)
    )


def test_the_same_seed_gives_the_same_weights_and_another_one_others(
    fixture: Fixture, improving: None
) -> None:
    at = candidate(fixture, Distillation(0.5, 2.0, 12), weight_bits=3)
    task = shuffled(fixture.task)
    torch.manual_seed(1)
    first = recover(trainer_of(task, fixture.stitcher, seed=3), fixture.stitcher, at)[0]
    torch.manual_seed(2)
    assert same(first, recover(trainer_of(task, fixture.stitcher, seed=3), fixture.stitcher, at)[0])
    assert not same(
        first, recover(trainer_of(task, fixture.stitcher, seed=4), fixture.stitcher, at)[0]
    )


class Interrupted(Exception):
    pass


ONE_CYCLE = Distillation(0.5, 2.0, 14)
RESTARTS = Distillation(0.5, 2.0, 14, restarts=(5,), batch_norm="train")
ROUNDS = Distillation(0.5, 2.0, 14, "linear", 3)
FEATURES = Distillation(0.5, 2.0, 14, features=1.0, accumulation=2)


@pytest.mark.parametrize(
    ("recovery", "at_step"),
    [
        (ONE_CYCLE, 9),
        (RESTARTS, 3),
        (RESTARTS, 9),
        (RESTARTS, 13),
        (ROUNDS, 3),
        (ROUNDS, 9),
        (FEATURES, 9),
    ],
)
def test_resumed_training_ends_with_the_same_weights(
    fixture: Fixture,
    recovery: Distillation,
    at_step: int,
    tmp_path: Path,
    improving: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SAVE_S", 0.0)
    task = replace(shuffled(fixture.task), augment=noisy)
    at = candidate(fixture, recovery, weight_bits=3, pruning_ratio=0.5)
    expected, _ = recover(
        trainer_of(task, fixture.stitcher), fixture.stitcher, at, tmp_path / "whole"
    )
    update, done = Cycle._update, []

    def dying(cycle: Cycle, optimizer: torch.optim.Optimizer) -> None:
        done.append(1)
        if len(done) == at_step:
            raise Interrupted
        update(cycle, optimizer)

    monkeypatch.setattr(Cycle, "_update", dying)
    with pytest.raises(Interrupted):
        recover(trainer_of(task, fixture.stitcher), fixture.stitcher, at, tmp_path / "cut")
    count = len(done)
    found, _ = recover(trainer_of(task, fixture.stitcher), fixture.stitcher, at, tmp_path / "cut")
    assert same(found, expected)
    assert len(done) - count <= 14 - at_step + 1, "what was done is not done again"


def test_student_and_teacher_see_the_same_view(
    cnn_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = Fixture(cnn_task)
    trainer = trainer_of(replace(cnn_task, augment=noisy), fixture.stitcher)
    learnt: list[Inputs] = []
    taught: list[Inputs] = []
    loss, answers = Cycle._loss, Teacher.outputs
    monkeypatch.setattr(Cycle, "_loss", lambda c, i, *a: (learnt.append(i), loss(c, i, *a))[1])
    monkeypatch.setattr(Teacher, "outputs", lambda t, i: (taught.append(i), answers(t, i))[1])
    recover(trainer, fixture.stitcher, candidate(fixture, Distillation(0.5, 2.0, 3), weight_bits=4))
    assert len(learnt) == len(taught) == 3
    given = [inputs for inputs, _ in cnn_task.training_batches()]
    for own, other in zip(learnt, taught, strict=True):
        assert torch.equal(own, other)
        assert not any(torch.equal(own, inputs) for inputs in given)


def test_loss_or_gradient_that_is_not_finite_is_said(fixture: Fixture) -> None:
    at = candidate(fixture, Distillation(0.5, 2.0, 9), weight_bits=4)
    task = replace(fixture.task, loss=lambda outputs, target: outputs.sum() * float("nan"))
    with pytest.raises(NotComputableError, match="recovery: loss is nan at step 0 of 9"):
        recover(trainer_of(task, fixture.stitcher), fixture.stitcher, at)
    # The root of 0 is 0, its gradient is infinite.
    steep = replace(
        fixture.task, loss=lambda outputs, target: (outputs - outputs.detach()).abs().sum().sqrt()
    )
    with pytest.raises(NotComputableError, match=r"recovery: gradient is (nan|inf) at step 0 of 9"):
        recover(
            trainer_of(steep, fixture.stitcher),
            fixture.stitcher,
            replace(at, distillation=Distillation(1.0, 2.0, 9)),
        )


def close(a: Trained, b: Trained, tolerance: float) -> None:
    for name, value in a.to_tensors().items():
        other = b.to_tensors()[name]
        if value.is_floating_point():
            torch.testing.assert_close(
                value.float(), other.float(), rtol=tolerance, atol=tolerance, msg=name
            )


def test_short_memory_halves_the_batch_and_goes_on(
    fixture: Fixture, improving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = candidate(fixture, Distillation(0.5, 2.0, 4))
    expected, _ = recover(trainer_of(fixture.task, fixture.stitcher), fixture.stitcher, at)
    loss, sizes = Cycle._loss, []

    def narrow(cycle: Cycle, inputs, target, answers):
        sizes.append(len(inputs))
        if len(inputs) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(cycle, inputs, target, answers)

    monkeypatch.setattr(Cycle, "_loss", narrow)
    found, steps = recover(trainer_of(fixture.task, fixture.stitcher), fixture.stitcher, at)
    assert steps == 4
    assert sizes[:3] == [32, 16, 8]
    assert set(sizes[2:]) == {8}
    close(found, expected, 1e-4)

    def none(cycle: Cycle, inputs, target, answers):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )

    monkeypatch.setattr(Cycle, "_loss", none)
    with pytest.raises(
        NotComputableError,
        match=r"out of memory at step 0 with 1 sample at a time; nearest: .*checkpointing: true",
    ):
        recover(trainer_of(fixture.task, fixture.stitcher), fixture.stitcher, at)


def test_accumulated_batches_are_one_large_batch(fixture: Fixture, improving: None) -> None:
    pairs = list(fixture.task.train)[:8]
    joined = [
        (torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]]))
        for a, b in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    at = candidate(fixture, Distillation(0.5, 2.0, 4))
    small, large = (
        trainer_of(replace(fixture.task, train=batches), fixture.stitcher)
        for batches in (pairs, joined)
    )
    expected, _ = recover(large, fixture.stitcher, at)
    found, _ = recover(
        small, fixture.stitcher, replace(at, distillation=replace(at.distillation, accumulation=2))
    )
    close(found, expected, 1e-4)


def test_recomputed_activations_change_nothing(
    fixture: Fixture, improving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autocompress.compress.recover import context as trainer

    calls = []
    recomputed = trainer.recomputed
    monkeypatch.setattr(
        trainer,
        "recomputed",
        lambda *args, **kwargs: calls.append(1) or recomputed(*args, **kwargs),
    )
    at = candidate(fixture, Distillation(0.5, 2.0, 3), weight_bits=4)
    expected, _ = recover(trainer_of(fixture.task, fixture.stitcher), fixture.stitcher, at)
    assert not calls
    less = replace(at, distillation=replace(at.distillation, checkpointing=True))
    found, _ = recover(trainer_of(fixture.task, fixture.stitcher), fixture.stitcher, less)
    lists = any(isinstance(m, torch.nn.ModuleList) for m in fixture.stitcher.teacher.modules())
    assert bool(calls) == lists
    close(found, expected, 1e-5)
    assert not any("forward" in vars(m) for m in fixture.stitcher.model.modules()), (
        "the model is as it was"
    )


def test_training_in_16_bits_recovers_too(fixture: Fixture) -> None:
    # Compressed without any compensation, so that training has much to recover whatever the
    # fixture's own training came to.
    crude = {"weight_range": "min_max", "algorithm": "nearest", "reconstruction": False}
    recovery = Distillation(0.0, 2.0, 40, learning_rate=2e-3)
    at = candidate(fixture, recovery, weight_bits=3, activation_bits=8, pruning_ratio=0.25, **crude)
    task = fixture.task
    before = all_outputs(fixture.stitcher.apply(at), task.validation)
    trained, _ = recover(
        trainer_of(task, fixture.stitcher, dtype=torch.bfloat16), fixture.stitcher, at
    )
    after = all_outputs(fixture.stitcher.apply(at, trained), task.validation)
    reference = all_outputs(fixture.stitcher.teacher, task.validation)
    assert float(task.output_divergence(after, reference).mean()) < 0.3 * float(
        task.output_divergence(before, reference).mean()
    )


def test_the_best_weights_are_kept_and_what_gets_no_better_ends_early(fixture: Fixture) -> None:
    at = candidate(fixture, Distillation(1.0, 2.0, 90, learning_rate=0.3), weight_bits=8)
    stitcher = fixture.stitcher
    trainer = trainer_of(fixture.task, stitcher)
    model = stitcher.apply(at)
    stitcher.start_training(at)
    before = trainer.divergence(model)
    cycle = Cycle(trainer, model, at.distillation, 90)
    assert cycle.run() == 60, "three looks, every twenty steps, without improvement"
    assert trainer.divergence(model) == pytest.approx(before, rel=1e-5), (
        "a rate that wrecks the model leaves it as it was"
    )


def test_a_pure_task_loss_asks_no_teacher_and_a_pure_distillation_no_label(
    fixture: Fixture, improving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = candidate(fixture, Distillation(1.0, 2.0, 4), weight_bits=4)
    trainer: Trainer = trainer_of(fixture.task, fixture.stitcher)
    recover(trainer, fixture.stitcher, at)
    assert trainer.teacher.computed == 0
    pure = replace(at, distillation=Distillation(0.0, 2.0, 4))
    labelled, _ = recover(trainer_of(fixture.task, fixture.stitcher), fixture.stitcher, pure)
    bare = replace(fixture.task, train=[(inputs, None) for inputs, _ in fixture.task.train])
    assert same(labelled, recover(trainer_of(bare, fixture.stitcher), fixture.stitcher, pure)[0])


def test_rates_of_weights_scales_and_float_parts_differ(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCALE_RATE", 3.0)
    monkeypatch.setattr(module, "FLOAT_RATE", 0.5)
    at = candidate(fixture, Distillation(0.5, 2.0, 1, learning_rate=1e-3), weight_bits=4)
    model = fixture.stitcher.apply(at)
    fixture.stitcher.start_training(at)
    groups = parameter_groups(model)
    assert all(groups.values())
    optimizer = Cycle(
        trainer_of(fixture.task, fixture.stitcher), model, at.distillation, 1
    )._optimizer(groups)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 3e-3, 5e-4])
    everything = {id(p) for p in model.parameters() if p.is_floating_point() and p.numel()}
    assert {id(p) for group in groups.values() for p in group} == everything


def test_the_look_at_a_stop_is_no_part_of_the_checkpoint(
    fixture: Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([1.0, 0.0, 0.5])
    monkeypatch.setattr(Trainer, "divergence", lambda trainer, student: next(looks))
    at = candidate(fixture, Distillation(0.5, 2.0, 30), weight_bits=4)
    trainer, stitcher, path = trainer_of(fixture.task, fixture.stitcher), fixture.stitcher, tmp_path
    model = stitcher.apply(at)
    stitcher.start_training(at)
    stops = iter([False, False, True])
    cycle = Cycle(
        trainer, model, at.distillation, 30, checkpoint=path / "c", stop=lambda: next(stops)
    )
    assert cycle.run() == 3
    assert (cycle.best_divergence, cycle.stale) == (0.0, 0), "what is returned is the best"
    assert read_state(path / "c", CPU)["progress"] == [3, 1, 1.0, 0]


def test_a_cycle_that_reached_its_end_does_not_go_on(fixture: Fixture, tmp_path: Path) -> None:
    at = candidate(fixture, Distillation(0.5, 2.0, 30), weight_bits=4)
    trainer, stitcher = trainer_of(fixture.task, fixture.stitcher), fixture.stitcher
    model = stitcher.apply(at)
    stitcher.start_training(at)
    parts = (trainer, model, at.distillation, 30)
    for _ in range(2):
        assert Cycle(*parts, checkpoint=tmp_path / "c", end=4).run() == 4


def test_answers_are_asked_for_where_targets_give_no_loss(cnn_task: Task) -> None:
    fixture = Fixture(cnn_task)
    named = [(inputs, [str(label) for label in target]) for inputs, target in cnn_task.train]
    trainer = trainer_of(replace(cnn_task, train=named), fixture.stitcher)
    at = candidate(fixture, Distillation(1.0, 2.0, 2), weight_bits=4)
    assert recover(trainer, fixture.stitcher, at)[1] == 2
