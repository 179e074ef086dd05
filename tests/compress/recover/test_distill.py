"""The loss of recovery.

Pure at both ends, without labels, over several outputs, from the largest logits alone.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress import Distillation, Task
from autocompress.compress.recover import teacher as module
from autocompress.compress.recover.distill import distillation_loss, soft_loss
from autocompress.compress.recover.teacher import TopLogits
from autocompress.errors import TaskError

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(6, 4, generator=GENERATOR), torch.randn(6, 4, generator=GENERATOR)
TARGET = torch.randint(0, 4, (6,), generator=GENERATOR)


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(n, ...) by the definition."""
    p = (teacher / temperature).softmax(-1)
    return temperature**2 * (p * (p.log() - (student / temperature).log_softmax(-1))).sum(-1)


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"answer": torch.cat([x, x], 1), "score": x.sum(1, keepdim=True)}


def task_of(target, model: nn.Module | None = None, x: Tensor | None = None, **settings) -> Task:
    x = torch.rand(2, 3) if x is None else x
    return Task(
        "t",
        nn.Linear(3, 4) if model is None else model,
        x,
        [(x, target)],
        lambda outputs, targets: 0.0,
        **settings,
    )


def test_alpha_0_and_1_are_the_pure_losses() -> None:
    task = task_of(torch.tensor([0, 1]))
    hard, soft = F.cross_entropy(STUDENT, TARGET), kl(STUDENT, TEACHER, 2.0).mean()

    def loss(alpha: float, target: Tensor | None) -> Tensor:
        return distillation_loss(
            task, {"": STUDENT}, {"": TEACHER}, target, Distillation(alpha, 2.0, 1)
        )

    torch.testing.assert_close(loss(1.0, TARGET), hard)
    torch.testing.assert_close(loss(0.0, TARGET), soft)
    torch.testing.assert_close(loss(0.3, TARGET), 0.3 * hard + 0.7 * soft)
    for alpha in (0.0, 0.3, 1.0):
        torch.testing.assert_close(
            loss(alpha, None), soft, msg="without a label alpha has no effect"
        )
    torch.testing.assert_close(
        distillation_loss(task, {"": STUDENT}, {}, TARGET, Distillation(1.0, 2.0, 1)), hard
    )


def test_what_is_no_logits_is_held_by_the_divergence() -> None:
    embedding = task_of(torch.rand(2, 4))
    expected = (1 - F.cosine_similarity(STUDENT, TEACHER)).mean()
    torch.testing.assert_close(
        soft_loss(embedding, {"": STUDENT}, {"": TEACHER}, None, 3.0), expected
    )
    own = task_of(
        torch.tensor([0, 1]), divergence=lambda student, teacher: (student - teacher).abs().sum(1)
    )
    torch.testing.assert_close(
        soft_loss(own, {"": STUDENT}, {"": TEACHER}, None, 3.0),
        (STUDENT - TEACHER).abs().sum(1).mean(),
    )


def test_several_outputs_are_weighted_and_one_may_lack_its_label() -> None:
    target = {"answer": torch.tensor([0, 1]), "score": torch.rand(2, 1)}
    task = task_of(target, TwoOutputs(), output_weights={"answer": 1.0, "score": 0.25})
    score, scored, wanted = torch.rand(6, 1), torch.rand(6, 1), torch.rand(6, 1)
    student, teacher = {"answer": STUDENT, "score": score}, {"answer": TEACHER, "score": scored}
    settings = Distillation(0.5, 2.0, 1)
    soft = kl(STUDENT, TEACHER, 2.0).mean() + 0.25 * (score - scored).square().mean()
    hard = F.cross_entropy(STUDENT, TARGET) + 0.25 * (score - wanted).square().mean()
    found = distillation_loss(task, student, teacher, {"answer": TARGET, "score": wanted}, settings)
    torch.testing.assert_close(found, 0.5 * hard + 0.5 * soft)
    found = distillation_loss(task, student, teacher, {"answer": TARGET}, settings)
    torch.testing.assert_close(found, 0.5 * F.cross_entropy(STUDENT, TARGET) + 0.5 * soft)
    with pytest.raises(TaskError, match="has none of the outputs"):
        distillation_loss(task, student, teacher, {"other": TARGET}, settings)
    whole = replace(
        task, loss=lambda outputs, target: outputs["score"].sum() + outputs["answer"].sum()
    )
    torch.testing.assert_close(
        distillation_loss(
            whole, student, teacher, {"answer": TARGET}, replace(settings, alpha=1.0)
        ),
        score.sum() + STUDENT.sum(),
    )


def test_positions_that_do_not_count_are_left_out() -> None:
    task = task_of(torch.zeros(2, 3, dtype=torch.int64), nn.Identity(), torch.rand(2, 3, 5))
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    target = torch.tensor([[1, 2, -100], [-100, -100, 4]])
    counted = kl(student, teacher, 1.0)[target != -100].mean()
    torch.testing.assert_close(soft_loss(task, {"": student}, {"": teacher}, target, 1.0), counted)
    hard = F.cross_entropy(student[target != -100], target[target != -100])
    torch.testing.assert_close(
        distillation_loss(task, {"": student}, {}, target, Distillation(1.0, 1.0, 1)), hard
    )


def test_the_largest_logits_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(torch.tensor([0, 1]))
    student, teacher = torch.randn(5, 300), 3 * torch.randn(5, 300)
    full = kl(student, teacher, 2.0).mean()
    errors = []
    for top in (16, 64, 299):
        monkeypatch.setattr(module, "TOP", top)
        answer = TopLogits.of(teacher, (1.0, 2.0))
        assert answer.values.shape == answer.indices.shape == (5, top)
        found = soft_loss(task, {"": student}, {"": answer}, None, 2.0)
        assert found <= full + 1e-4, "merging classes can only lose divergence"
        errors.append(float(full - found))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3 * float(full)
    same = soft_loss(task, {"": teacher}, {"": TopLogits.of(teacher, (2.0,))}, None, 2.0)
    assert abs(float(same)) < 1e-4, "0 when the student says the same"
    with pytest.raises(ValueError, match="not in tuple"):
        answer.log_probabilities(3.0)
