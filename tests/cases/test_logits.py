"""The shape of logits: loss and divergence follow from outputs and targets, or it is said before
the search what to give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autocompress as ac
from autocompress import Distillation, Task
from autocompress.candidate import ModuleConfig
from autocompress.compress.recover.distill import distillation_loss, soft_loss
from autocompress.compress.recover.teacher import Teacher, TopLogits
from autocompress.differences import relative_difference
from autocompress.errors import TaskError
from autocompress.measure.checks import check_task
from autocompress.search.problem.scoring import scoring_of
from autocompress.search.propose.sensitivity import check_seen
from autocompress.task.outputs import OutputKind

CPU = torch.device("cpu")
N, C, T = 6, 4, 5
GENERATOR = torch.Generator().manual_seed(0)
BERNOULLI = OutputKind("bernoulli")
LAST, FIRST = OutputKind("softmax", -1), OutputKind("softmax", 1)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def classes(*shape: int, count: int = C) -> Tensor:
    return torch.randint(0, count, shape, generator=GENERATOR)


def task_of(outputs: Tensor, target: Any, model: nn.Module | None = None, **settings: Any) -> Task:
    return Task(
        "t",
        model or nn.Identity(),
        outputs,
        [(outputs, target)],
        lambda o, t: 0.0,
        train=[(outputs, target)],
        **settings,
    )


def bce(outputs: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, target.float().reshape(outputs.shape))


def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs, target.long())


def last(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), target.long().flatten())


YES = torch.tensor([0, 1, 1, 0, 1, 0])
MANY = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]] * 2)
SOFT = random(N, C).softmax(1)
HOLES = torch.tensor([1, -100, 3, 0, -100, 2])
SHAPES: dict[str, tuple[Tensor, Any, OutputKind, Callable[[Tensor, Any], Tensor]]] = {
    "classes": (random(N, C), classes(N), LAST, cross_entropy),
    "classes_kept": (random(N, C), classes(N, 1), LAST, last),
    "classes_int32": (random(N, C), classes(N).int(), LAST, cross_entropy),
    "classes_int16": (random(N, C), classes(N).short(), LAST, cross_entropy),
    "classes_uint8": (random(N, C), classes(N).byte(), LAST, cross_entropy),
    "two_classes_bool": (random(N, 2), YES.bool(), LAST, cross_entropy),
    "classes_list": (
        random(N, C),
        [0, 1, 2, 3, 0, 1],
        LAST,
        lambda o, t: cross_entropy(o, torch.tensor(t)),
    ),
    "classes_numpy": (
        random(N, C),
        np.arange(N) % C,
        LAST,
        lambda o, t: cross_entropy(o, torch.from_numpy(t)),
    ),
    "classes_some_ignored": (random(N, C), HOLES, LAST, cross_entropy),
    "one_image": (random(1, C), classes(1), LAST, cross_entropy),
    "pooled_classes": (
        random(N, C, 1, 1),
        classes(N),
        FIRST,
        lambda o, t: cross_entropy(o[:, :, 0, 0], t),
    ),
    "segmentation": (random(N, C, 8, 7), classes(N, 8, 7), FIRST, cross_entropy),
    "segmentation_masks": (
        random(N, C, 8, 7),
        classes(N, 1, 8, 7),
        FIRST,
        lambda o, t: cross_entropy(o, t[:, 0]),
    ),
    "segmentation_last": (random(N, 8, 7, C), classes(N, 8, 7), LAST, last),
    "volumes": (random(2, C, 5, 3, 6), classes(2, 5, 3, 6), FIRST, cross_entropy),
    "sequences": (random(N, T, C), classes(N, T), LAST, last),
    "sequences_joined": (random(N * T, C), classes(N, T), LAST, last),
    "sequences_class_first": (random(N, C, T), classes(N, T), FIRST, cross_entropy),
    "positions": (random(N, T), classes(N, count=T), LAST, cross_entropy),
    "one_logit": (random(N, 1), YES, BERNOULLI, bce),
    "one_logit_flat": (random(N), YES, BERNOULLI, bce),
    "one_logit_flat_kept": (random(N), YES[:, None], BERNOULLI, bce),
    "one_logit_float": (random(N, 1), YES.float(), BERNOULLI, bce),
    "one_logit_bool": (random(N), YES.bool(), BERNOULLI, bce),
    "one_logit_both": (random(N, 1), YES[:, None], BERNOULLI, bce),
    "one_logit_map": (random(2, 1, 8, 7), classes(2, 8, 7, count=2), BERNOULLI, bce),
    "one_logit_sequence": (random(N, T), classes(N, T, count=2), BERNOULLI, bce),
    "multi_float": (random(N, C), MANY.float(), BERNOULLI, bce),
    "multi_int": (random(N, C), MANY, BERNOULLI, bce),
    "multi_bool": (random(N, C), MANY.bool(), BERNOULLI, bce),
    "multi_uint8": (random(N, C), MANY.byte(), BERNOULLI, bce),
    "soft": (random(N, C), SOFT, LAST, F.cross_entropy),
    "soft_half": (random(N, C), SOFT.half(), LAST, lambda o, t: F.cross_entropy(o, t.float())),
    "one_hot": (
        random(N, C),
        F.one_hot(classes(N), C),
        LAST,
        lambda o, t: F.cross_entropy(o, t.float()),
    ),
    "soft_maps": (random(2, C, 8, 7), random(2, C, 8, 7).softmax(1), FIRST, F.cross_entropy),
    "soft_sequences": (
        random(N, T, C),
        random(N, T, C).softmax(2),
        LAST,
        lambda o, t: F.cross_entropy(o.mT, t.mT),
    ),
    "numbers": (random(N, 1), random(N, 1), OutputKind("values"), F.mse_loss),
    "numbers_flat": (random(N), random(N), OutputKind("values"), F.mse_loss),
    "numbers_kept": (
        random(N, 1),
        random(N),
        OutputKind("values"),
        lambda o, t: F.mse_loss(o[:, 0], t),
    ),
    "vectors": (random(N, C), random(N, C), OutputKind("embedding"), F.mse_loss),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_default_loss_is_pytorchs(shape: str) -> None:
    outputs, target, kind, reference = SHAPES[shape]
    task = task_of(outputs, target)
    check_task(task)
    assert task.kind_of("") == kind
    mine, theirs = (outputs.clone().requires_grad_() for _ in range(2))
    found, expected = task.training_loss({"": mine}, target), reference(theirs, target)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    assert mine.grad is not None
    assert bool((mine.grad != 0).any())
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_divergence_sees_predictions_move(shape: str) -> None:
    outputs, target, kind, _ = SHAPES[shape]
    task = task_of(outputs, target)
    moved = outputs + 0.5 + random(*outputs.shape).abs()
    far, same = task.output_divergence(moved, outputs), task.output_divergence(outputs, outputs)
    assert far.shape == same.shape == (len(outputs),)
    assert float(same.abs().max()) < 1e-6
    assert bool((far > 1e-4).all())
    order = torch.randperm(len(outputs), generator=GENERATOR)
    torch.testing.assert_close(task.output_divergence(moved[order], outputs[order]), far[order])
    if kind.kind == "softmax":
        d = kind.class_dim
        p, q = outputs.softmax(d), moved.softmax(d)
        by_hand = (p * (p / q).log()).sum(d).reshape(len(outputs), -1).mean(1)
    elif kind.kind == "bernoulli":
        p, q = outputs.sigmoid(), moved.sigmoid()
        by_hand = (
            (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
            .reshape(len(outputs), -1)
            .mean(1)
        )
    else:
        return
    torch.testing.assert_close(far, by_hand, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        distillation_loss(task, {"": moved}, {"": outputs}, None, Distillation(0.5, 1.0, 1)),
        by_hand.mean(),
    )


@pytest.mark.parametrize("value", [float("-inf"), torch.finfo(torch.float32).min])
def test_masked_classes_give_no_nan(value: float) -> None:
    outputs, target = random(N, C), torch.tensor([0, 1, 0, 1, 0, 1])
    masked, moved = outputs.clone(), outputs + random(N, C)
    masked[:, 2:], moved[:, 2:] = value, value
    task = task_of(masked, target)
    for student in (masked, moved, outputs):
        student = student.clone().requires_grad_()
        found = task.output_divergence(student, masked)
        assert bool(found.isfinite().all())
        loss = distillation_loss(
            task, {"": student}, {"": masked}, target, Distillation(0.5, 2.0, 1)
        )
        loss.backward()
        assert bool(loss.isfinite())
        assert student.grad is not None
        assert bool(student.grad.isfinite().all())
    without = task.output_divergence(moved[:, :2], masked[:, :2])
    torch.testing.assert_close(task.output_divergence(moved, masked), without)
    yes = torch.full((N, 1), float("inf"))
    assert bool(task_of(random(N, 1), YES).output_divergence(random(N, 1), yes).isfinite().all())


def test_masks_hide_no_difference_of_files() -> None:
    expected = np.array([[1.0, 2.0, -np.inf, -1e9]], dtype=np.float32)
    assert relative_difference(expected, expected, 1.0) == 0.0
    assert relative_difference(
        expected + np.float32([0, 0.5, 0, 0]), expected, 1.0
    ) == pytest.approx(0.25)
    for other in (
        np.array([[1.0, 2.0, 3.0, -1e9]]),
        np.array([[-np.inf, 2.0, -np.inf, -1e9]]),
        expected[:, :3],
    ):
        assert relative_difference(other.astype(np.float32), expected, 1.0) == np.inf


def test_what_is_labelled_minus_100_does_not_count() -> None:
    cases = {
        "segmentation": (random(2, C, 4, 3), classes(2, 4, 3), (0, slice(None), slice(0, 2))),
        "sequence": (random(N, C, T), classes(N, T), (slice(0, 3), slice(None), slice(2, 5))),
        "multi-label": (random(N, C), MANY.clone(), (slice(0, 2), slice(1, 3))),
        "multi-label float": (random(N, C), MANY.float(), (slice(0, 2), slice(1, 3))),
    }
    for what, (outputs, target, where) in cases.items():
        ignored = target.clone()
        ignored[where if "multi" in what else (where[0], *where[2:])] = -100
        task = task_of(outputs, ignored)
        check_task(task)
        student, other = outputs + random(*outputs.shape), outputs.clone()
        other[where] += 7  # changes only what does not count
        for alpha in (0.0, 1.0):
            found = [
                distillation_loss(
                    task, {"": student}, {"": x}, ignored, Distillation(alpha, 1.0, 1)
                )
                for x in (outputs, other)
            ]
            torch.testing.assert_close(found[0], found[1], msg=what)
        changed = student.clone()
        changed[where] -= 3
        found = [
            distillation_loss(task, {"": x}, {"": outputs}, ignored, Distillation(0.3, 1.0, 1))
            for x in (student, changed)
        ]
        torch.testing.assert_close(found[0], found[1], msg=what)
    none = task.training_loss({"": outputs.requires_grad_()}, torch.full((N, C), -100))
    assert none.item() == 0.0
    none.backward()


@pytest.mark.parametrize(
    ("outputs", "target", "settings", "text"),
    [
        (
            random(N, C, C),
            classes(N, C),
            {},
            "(6, 4, 4) with int64 targets (6, 4) fit classes in dimension 1 and in the last one; "
            "give",
        ),
        (
            random(N, C, C, C),
            classes(N, C, C),
            {},
            "fit classes in dimension 1 and in the last one; give divergence and loss",
        ),
        (
            random(N, C, C),
            classes(N, C),
            {"loss": last},
            "fit classes in dimension 1 and in the last one; give divergence",
        ),
        (
            random(N, C),
            classes(N, 3),
            {},
            "outputs (6, 4) with int64 targets (6, 3) are neither classes nor yes or no for each; "
            "give",
        ),
        (
            random(N, C),
            classes(N) + 1,
            {},
            "which is none of 4 classes (nearest: -100 for what does not count); give divergence "
            "and loss",
        ),
        (
            random(N, 3, 8, 7),
            torch.full((N, 8, 7), 255),
            {},
            "hold target 255, which is none of 3 classes",
        ),
        (
            random(N, 1),
            2 * YES - 1,
            {},
            "hold target -1, which is none of 2 classes (nearest: float targets, for a squared "
            "error)",
        ),
        (random(N), 30 + classes(N), {}, "none of 2 classes (nearest: float targets"),
        (
            random(N, C),
            random(N),
            {},
            "outputs (6, 4) with float32 targets (6,) fit no loss of embedding; give loss",
        ),
    ],
)
def test_what_cannot_be_known_is_said_before_the_search(
    outputs: Tensor, target: Tensor, settings: dict[str, Any], text: str
) -> None:
    task = task_of(outputs, target, **settings)
    with pytest.raises(TaskError) as caught:
        check_task(task)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    own = replace(
        task,
        loss=lambda o, t: o.sum(),
        divergence=lambda s, t: (s - t).square().reshape(len(s), -1).mean(1),
    )
    check_task(own)
    assert float(soft_loss(own, {"": outputs + 1}, {"": outputs}, target, 2.0)) == pytest.approx(
        1.0
    )
    assert torch.equal(Teacher(own, own.model, CPU).outputs(outputs)[""], outputs)


def test_another_length_tells_two_readings_apart() -> None:
    square, longer = random(N, C, C), random(N, C, T)
    task = task_of(square, classes(N, C))
    assert (
        replace(task, validation=[(square, classes(N, C)), (longer, classes(N, T))]).kind_of("")
        == FIRST
    )


def test_more_labels_than_the_first_batch_are_looked_at() -> None:
    one = random(1, C)
    rows = [(one, torch.tensor([row])) for row in ([0, 1, 0, 0], [1, 1, 0, 0])]
    assert task_of(one, rows[0][1]).kind_of("") == LAST, "one-hot, as far as is known"
    assert replace(task_of(one, None), validation=rows).kind_of("") == BERNOULLI
    ages = [(random(2), torch.tensor([0.0, 1.0])), (random(2), torch.tensor([3.0, 0.5]))]
    assert replace(task_of(random(2), None), validation=ages).kind_of("") == OutputKind("values")


def test_labels_of_training_say_it_where_validation_has_none() -> None:
    outputs = random(N, C, 8, 7)
    assert (
        replace(task_of(outputs, classes(N, 8, 7)), validation=[(outputs, None)]).kind_of("")
        == FIRST
    )


def test_strings_train_without_labels() -> None:
    outputs, target = random(N, C), list("abcdab")
    task = task_of(outputs, target)
    check_task(task)
    assert not task.has_labels
    found = distillation_loss(
        task, {"": outputs + 1}, {"": outputs}, target, Distillation(0.7, 2.0, 1)
    )
    torch.testing.assert_close(found, task.output_divergence(outputs + 1, outputs).mean())
    assert replace(task, loss=lambda o, t: o.sum()).has_labels


def test_outputs_that_are_probabilities_have_their_logarithms_for_logits() -> None:
    x = random(N, C)
    soft, flat = (
        task_of(x, classes(N), nn.Softmax(1)),
        task_of(x, YES, nn.Sequential(nn.Linear(C, 1), nn.Sigmoid(), nn.Flatten(0))),
    )
    logits = task_of(x, classes(N))
    with torch.no_grad():
        p, q = flat.model(x), flat.model(x + 1)
    assert (soft.kind_of(""), flat.kind_of("")) == (
        replace(LAST, normalised=True),
        replace(BERNOULLI, normalised=True),
    )
    torch.testing.assert_close(soft.training_loss({"": x.softmax(1)}, YES), F.cross_entropy(x, YES))
    torch.testing.assert_close(
        flat.training_loss({"": p}, YES), F.binary_cross_entropy(p, YES.float())
    )
    moved = x + random(N, C)
    torch.testing.assert_close(
        soft.output_divergence(moved.softmax(1), x.softmax(1)), logits.output_divergence(moved, x)
    )
    torch.testing.assert_close(
        flat.output_divergence(q, p), p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    )
    between = task_of(torch.rand(N, 1), YES)
    assert between.kind_of("") == BERNOULLI, "logits may lie between 0 and 1"


def test_the_largest_logits_are_those_of_the_class_dimension() -> None:
    outputs = random(2, 600, 4, 3)
    task = task_of(outputs, classes(2, 4, 3, count=600))
    answer = Teacher(task, task.model, CPU).outputs(outputs)[""]
    assert isinstance(answer, TopLogits)
    assert answer.values.shape == (2, 4, 3, 64)
    torch.testing.assert_close(answer.values[..., 0], outputs.amax(1))
    assert float(soft_loss(task, {"": outputs}, {"": answer}, None, 2.0)) == pytest.approx(
        0.0, abs=1e-4
    )
    assert float(soft_loss(task, {"": random(2, 600, 4, 3)}, {"": answer}, None, 1.0)) > 0.1
    many = task_of(random(N, 600), torch.randint(0, 2, (N, 600), generator=GENERATOR))
    assert isinstance(Teacher(many, many.model, CPU).outputs(random(N, 600))[""], Tensor)


def test_each_output_has_its_own_kind() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x, "mask": x[:, 0], "depth": x.mean((1, 2, 3))}

    x = random(N, C, 8, 7)
    target = {"logits": classes(N, 8, 7), "mask": classes(N, 8, 7, count=2), "depth": random(N)}
    task = task_of(x, target, Model(), output_weights={"logits": 1.0, "mask": 0.5, "depth": 0.25})
    check_task(task)
    assert [task.kind_of(name).kind for name in target] == ["softmax", "bernoulli", "values"]
    outputs = task.model(x)
    expected = (
        F.cross_entropy(x, target["logits"])
        + 0.5 * bce(outputs["mask"], target["mask"])
        + 0.25 * F.mse_loss(outputs["depth"], target["depth"])
    )
    torch.testing.assert_close(task.training_loss(outputs, target), expected)
    bad = replace(task, validation=[(x, {**target, "mask": classes(N)})], train=None)
    with pytest.raises(
        TaskError,
        match=r"output 'mask': .* give it other targets, or leave it out of output_weights",
    ):
        check_task(bad)


def test_one_logit_is_never_scored_by_its_class() -> None:
    outputs, target = -random(64, 1).abs(), torch.zeros(64, dtype=torch.int64)
    task = replace(
        task_of(outputs, target),
        metric=lambda o, t: float(((o.flatten() > 0).long() == t).float().mean()),
    )
    assert scoring_of(task, outputs, target) == "metric"


def test_a_divergence_that_sees_nothing_is_an_error() -> None:
    task = task_of(random(N, C), classes(N))
    zeros = {("a", ModuleConfig(4)): 0.0, ("b", ModuleConfig(8)): 0.0}
    with pytest.raises(
        TaskError,
        match="the default divergence is 0 for all 2 choices, though the outputs change by up to "
        "30%",
    ):
        check_seen(task, zeros, 0.3)
    check_seen(task, zeros, 1e-4)  # rounding to 16 bits may change nothing that matters
    check_seen(task, {}, 0.0)
    check_seen(task, {**zeros, ("c", ModuleConfig(2)): 1e-6}, 0.3)


class Conv(nn.Module):
    """Convolutions, and a head for each of the kinds below."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head: nn.Module = nn.Linear(16, {"one": 1, "flat": 1, "sigmoid": 1}.get(kind, 4))
        if kind in ("maps", "map"):
            self.head = nn.Conv2d(16, 3 if kind == "maps" else 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv((x / 255 if self.kind == "uint8" else x).float()))
        if self.kind in ("maps", "map"):
            return self.head(x)
        if self.kind in ("sequence", "class_first"):
            y = self.head(x.mean(3).mT)  # (n, 8, 4)
            return y.mT if self.kind == "class_first" else y
        y = self.head(x.mean((2, 3)))
        if self.kind == "masked":
            return y.masked_fill(torch.tensor([False, False, False, True]), float("-inf"))
        return {"flat": y[:, 0], "sigmoid": y.sigmoid()}.get(self.kind, y)


SEARCHED: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor, Any], Tensor]]] = {
    "maps": (lambda y: y.argmax(1), lambda o, t: o.argmax(1) == t),
    "map": (lambda y: (y > 0).byte(), lambda o, t: (o > 0) == t),
    "one": (lambda y: (y[:, 0] > 0).long(), lambda o, t: (o.flatten() > 0) == t),
    "flat": (lambda y: (y > 0).int(), lambda o, t: (o > 0) == t),
    "sigmoid": (lambda y: (y > 0.5).float(), lambda o, t: (o > 0.5) == t),
    "int32": (lambda y: y.argmax(1).int(), lambda o, t: o.argmax(1) == t),
    "uint8": (lambda y: y.argmax(1).byte(), lambda o, t: o.argmax(1) == t),
    "multi": (lambda y: (y > 0).float(), lambda o, t: (o > 0) == t),
    "multiint": (lambda y: (y > 0).long(), lambda o, t: (o > 0) == t),
    "str": (
        lambda y: ["abcd"[i] for i in y.argmax(1)],
        lambda o, t: torch.tensor(["abcd"[i] == c for i, c in zip(o.argmax(1), t, strict=True)]),
    ),
    "sequence": (
        lambda y: y.argmax(2).masked_fill(torch.arange(8) > 5, -100),
        lambda o, t: (o.argmax(2) == t)[t != -100],
    ),
    "class_first": (lambda y: y.argmax(1), lambda o, t: o.argmax(1) == t),
    "soft": (lambda y: (9 * y).softmax(1), lambda o, t: o.argmax(1) == t.argmax(1)),
    "masked": (lambda y: y.argmax(1), lambda o, t: o.argmax(1) == t),
}


# Their losses and divergences are compared with PyTorch's above, and a kind much like each is
# searched in every run.
ALIKE = {"map", "one", "int32", "multiint", "class_first", "soft"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.extensive) if k in ALIKE else k for k in SEARCHED],
)
def test_searches_end_with_a_front_that_is_what_was_predicted(kind: str, tmp_path: Path) -> None:
    labels_of, right = SEARCHED[kind]
    model = Conv(kind).eval()
    x = torch.rand(128, 1, 1, 1, generator=GENERATOR) * torch.rand(
        128, 3, 8, 8, generator=GENERATOR
    )
    with torch.no_grad():
        x = (255 * x).byte() if kind == "uint8" else x
        heads: list[Tensor] = []
        handle = model.head.register_forward_hook(
            lambda module, inputs, output: heads.append(output)
        )
        model(x)
        handle.remove()
        rows = heads[0].movedim(1, -1) if heads[0].dim() == 4 else heads[0]
        model.head.bias -= rows.flatten(0, -2).median(0).values  # so that all classes occur
        labels = labels_of(model(x))
    assert len({str(label) for label in labels}) > 1
    data = [(x[i : i + 16], labels[i : i + 16]) for i in range(0, 128, 16)]
    task = Task(
        kind, model, x[:1], data[:4], lambda o, t: float(right(o, t).float().mean()), train=data[4:]
    )
    space = {
        "modules": [{"match": "*", "weight_bits": [2, 4, 8], "activation_bits": 32}],
        "distillation": {"steps": 4},
    }
    result = ac.search(task, space=space, n_trials=3, out=tmp_path, quiet=True)
    assert len(result.front)
    assert all(
        point.predicted.accuracy == pytest.approx(point.measured.accuracy, abs=1e-6)
        for point in result.front
    )
