"""Check logits, losses and distances of outputs against formulas computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.task.outputs import (
    BERNOULLI,
    EMBEDDING,
    MASKED,
    VALUES,
    OutputKind,
    as_labels,
    counted,
    default_loss,
    labels_fit,
    one_each,
    outside,
    position_divergence,
    sample_divergence,
    shapes_of,
    squeezed,
)

LAST, FIRST = OutputKind("softmax", -1), OutputKind("softmax", 1)


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype))


def test_logits_have_classes_last_and_are_finite() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(FIRST.logits(x), x.transpose(1, 2))
    assert torch.equal(LAST.logits(x), x)
    infinite = torch.tensor([[float("inf"), float("-inf"), 2.0]])
    assert LAST.logits(infinite).tolist() == [[MASKED, -MASKED, 2.0]]
    assert [kind.is_logits for kind in (LAST, BERNOULLI, VALUES, EMBEDDING)] == [
        True,
        True,
        False,
        False,
    ]


def test_logits_of_probabilities_are_finite_at_0_and_1() -> None:
    soft = OutputKind("softmax", -1, normalised=True)
    close(soft.logits(torch.tensor([[0.25, 0.75]])), [[math.log(0.25), math.log(0.75)]])
    assert bool(soft.logits(torch.tensor([[0.0, 1.0]])).isfinite().all())
    flat = OutputKind("bernoulli", normalised=True)
    close(flat.logits(torch.tensor([0.5, 0.8])), [0.0, math.log(4)])
    edges = flat.logits(torch.tensor([0.0, 1.0]))
    assert bool(edges.isfinite().all())
    assert float(edges[0]) < -10 < 10 < float(edges[1])


def test_targets_become_tensors_where_they_are_numbers() -> None:
    byte = torch.tensor([156], dtype=torch.uint8)
    found = as_labels(byte)
    assert found is not None
    assert found.dtype is torch.int64
    assert found.tolist() == [156], "not -100, which does not count"
    same = torch.tensor([1.5])
    assert as_labels(same) is same
    cases = (
        (np.array([1, 2]), [1, 2]),
        (np.array([True, False]), [True, False]),
        (np.array([156], dtype=np.uint8), [156]),
        (np.array([60000], dtype=np.uint16), [60000]),
        (torch.tensor([3, 2], dtype=torch.uint32), [3, 2]),
        (np.arange(6)[::2], [0, 2, 4]),
        ([1, 2.5], [1.0, 2.5]),
        ((np.float32(0.5), True), [0.5, 1.0]),
    )
    for target, expected in cases:
        labels = as_labels(target)
        assert labels is not None
        assert labels.tolist() == expected
    strange = (torch.tensor([1j]), np.array([1j]), [np.complex64(1j)])
    for target in (None, [], "text", ["a"], np.array(["a"]), {"a": 1}, [[1], [2]], *strange):
        assert as_labels(target) is None


def test_shapes_are_compared_without_dimensions_of_size_1() -> None:
    assert squeezed((1, 3, 1, 2)) == (3, 2)
    assert squeezed(()) == ()
    assert one_each(torch.zeros(3, 1), torch.zeros(1, 3))
    assert not one_each(torch.zeros(3, 2), torch.zeros(2, 3))
    assert shapes_of(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32)) == (
        "outputs (3, 2) with int32 targets (3,)"
    )


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2], None),
        ([0, -100, 2], None),
        ([0, 3, 4], 3),
        ([0, -1], -1),
        ([0.0, 2.5], 2.5),
        ([], None),
    ],
)
def test_labels_that_are_no_class_are_found(labels: list[float], expected: float | None) -> None:
    assert outside(torch.tensor(labels), 3) == expected
    assert math.isnan(outside(torch.tensor([float("nan")]), 3) or 0.0)


def test_labels_fit_one_per_element_or_one_per_position() -> None:
    x = torch.zeros(2, 3, 4)
    assert labels_fit(FIRST, x, torch.zeros(2, 4))
    assert not labels_fit(FIRST, x, torch.zeros(2, 3))
    assert labels_fit(LAST, x, torch.zeros(2, 3))
    assert labels_fit(BERNOULLI, x, torch.zeros(2, 3, 4))
    assert not labels_fit(BERNOULLI, x, torch.zeros(2, 4))


def test_the_loss_of_labels_that_do_not_fit_is_refused() -> None:
    with pytest.raises(
        TaskError,
        match=r"task: outputs \(2, 3\) with float32 targets \(2, 2\) fit no loss of softmax; give",
    ):
        default_loss(LAST, torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(
        TaskError, match=r"task: target 3 is none of the 3 classes; nearest: -100 for what does"
    ):
        default_loss(LAST, torch.zeros(2, 3), torch.tensor([0, 3]))


def test_losses_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    labels = torch.tensor([1, -100])
    close(default_loss(LAST, logits, labels), -math.log(0.75))
    close(default_loss(LAST, logits, torch.tensor([1, 1])), -(math.log(0.75) + math.log(0.25)) / 2)
    soft = torch.tensor([[0.5, 0.5], [-100.0, 0.0]])  # the second row does not count
    close(default_loss(LAST, logits, soft), -(math.log(0.25) + math.log(0.75)) / 2)
    yes = torch.tensor([[1.0, -100.0], [0.0, -100.0]])
    close(default_loss(BERNOULLI, logits, yes), (math.log(2) + math.log(4)) / 2)
    close(default_loss(VALUES, torch.tensor([1.0, 2.0]), torch.tensor([[3], [2]])), 2.0)
    assert default_loss(LAST, logits, torch.tensor([-100, -100])).item() == 0.0


def test_positions_of_numbers_count_like_those_of_classes() -> None:
    padded = torch.tensor([[3.0, -100.0], [-100.0, 2.0]])
    close(default_loss(VALUES, torch.tensor([[1.0, 9.0], [9.0, 2.0]]), padded), 2.0)
    close(default_loss(VALUES, torch.zeros(2, 2), torch.full((2, 2), -100.0)), 0.0)
    single = torch.tensor([-100.0, -98.0])  # a value per sample may be any number
    close(default_loss(VALUES, torch.tensor([-99.0, -98.0]), single), 0.5)


def test_divergence_of_a_temperature_is_that_of_the_divided_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    found = position_divergence(FIRST, student, teacher, 2.0)
    p, q = (x.div(2).softmax(1) for x in (teacher, student))
    torch.testing.assert_close(found, (p * (p / q).log()).sum(1))
    flat = position_divergence(BERNOULLI, student, teacher, 2.0)
    p, q = (x.div(2).sigmoid() for x in (teacher, student))
    torch.testing.assert_close(flat, p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    large = torch.tensor([500.0])
    assert bool(position_divergence(BERNOULLI, -large, large).isfinite().all())


def test_distances_of_numbers_and_embeddings() -> None:
    close(sample_divergence(VALUES, torch.tensor([1.0, 5.0]), torch.tensor([3.0, 5.0])), [4.0, 0.0])
    one, other = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    close(sample_divergence(EMBEDDING, one, other), [1.0, 0.0])
    maps = torch.randn(3, 2, 4)
    close(sample_divergence(EMBEDDING, -maps, maps), [2.0] * 3)
    assert sample_divergence(FIRST, maps, maps).shape == (3,)
    expected = F.kl_div(
        (maps * 2).log_softmax(1), maps.log_softmax(1), reduction="none", log_target=True
    )
    torch.testing.assert_close(
        sample_divergence(FIRST, maps * 2, maps), expected.sum(1).mean(1), rtol=1e-4, atol=1e-6
    )


def test_positions_that_count() -> None:
    positions = torch.zeros(2, 2)
    labels = torch.tensor([1, -100, 0, 3])
    found = counted(labels, positions)
    assert found is not None
    assert found.tolist() == [[True, False], [True, True]]
    assert counted(None, positions) is None
    assert counted(labels[:3], positions) is None
