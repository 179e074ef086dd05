"""Check how much data is read to tell what an output holds, and how splits are weighed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.task.output_kinds import BATCHES, ROWS, SHAPES, Output, find_kinds
from autocompress.task.outputs import BERNOULLI, EMBEDDING, VALUES, OutputKind

LAST = OutputKind("softmax", -1)
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 0])
YES = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 0]])


def only(target: Any, name: str) -> Any:
    return target


def kind(
    *splits: list[tuple[Tensor, Any]], change: Callable[[Tensor], Tensor] = lambda x: x
) -> Any:
    return find_kinds(splits, lambda x: {"": change(x)}, only)[""]


def test_an_output_remembers_where_it_sums_to_one() -> None:
    soft = Output.of(X.softmax(1))
    assert (soft.distributed, soft.in_unit) == (frozenset({-1}), True)
    assert soft.like.is_meta
    assert Output.of(torch.full((2, 4, 4), 0.25)).distributed == frozenset({1, -1})
    assert Output.of(torch.rand(2, 1)).distributed == frozenset()
    shifted = Output.of(X.softmax(1) - 0.5)
    assert (shifted.distributed, shifted.in_unit) == (frozenset(), False)
    assert not Output.of(CLASSES).in_unit
    assert not Output.of(torch.zeros(0, 3)).in_unit


def test_without_labels_an_output_is_numbers_or_an_embedding() -> None:
    assert kind([(X, None)]) == EMBEDDING
    assert kind([(X[:, :1], None)]) == VALUES
    assert kind([(X[:, 0], "text")]) == VALUES


def test_labels_of_any_split_count_and_logits_go_first() -> None:
    numbers = [(X, torch.rand(4, 3) + 1)]
    assert kind([(X, None)], [(X, CLASSES)]) == LAST
    assert kind(numbers, [(X, CLASSES)]) == LAST, "though validation fits numbers"
    assert kind(numbers, [(X, None)]) == EMBEDDING
    assert kind([(X, CLASSES)], [(X, YES)]) == LAST, "the first split with logits decides"


def test_labels_of_all_batches_must_agree() -> None:
    found = kind([(X, CLASSES), (X, YES)])
    assert found == (
        "outputs (4, 3) with int64 targets (4,) are read differently than other batches"
    )
    odd = kind([(X, CLASSES), (X, CLASSES + 1)])
    assert odd == (
        "outputs (4, 3) with int64 targets (4,) hold target 3, "
        "which is none of 3 classes (nearest: -100 for what does not count)"
    )


def test_rows_that_are_one_hot_are_classes_until_one_is_not() -> None:
    one_hot = torch.eye(3)[CLASSES]
    assert kind([(X, one_hot)]) == LAST
    assert kind([(X, one_hot), (X, YES)]) == BERNOULLI


def test_an_integer_output_is_no_logit() -> None:
    assert kind([(X, CLASSES)], change=lambda x: x.argmax(1)) == VALUES


def test_probabilities_are_told_by_their_gradient() -> None:
    labelled = [(X.clone(), YES)]
    weight = torch.ones(3, requires_grad=True)
    assert kind(labelled, change=lambda x: (x * weight).sigmoid().view(4, 3)).normalised
    assert not kind(labelled, change=lambda x: (x * weight).clamp(0, 1)).normalised
    assert not kind(labelled, change=lambda x: x * weight).normalised


def counting() -> tuple[list[tuple[int, ...]], Callable[[Tensor], dict[str, Tensor]]]:
    calls: list[tuple[int, ...]] = []

    def run(x: Tensor) -> dict[str, Tensor]:
        calls.append(tuple(x.shape))
        return {"": x}

    return calls, run


def test_the_model_runs_once_per_shape_and_for_few_shapes() -> None:
    calls, run = counting()
    find_kinds([[(X, CLASSES)] * 5], run, only)
    assert calls == [(4, 3)]
    calls, run = counting()
    find_kinds([[(torch.rand(2, 3 + i), None) for i in range(SHAPES + 3)]], run, only)
    assert len(calls) == SHAPES


@pytest.mark.parametrize(("size", "most"), [(1, BATCHES), (ROWS // 2, 2), (2 * ROWS, 1)])
def test_few_rows_and_batches_are_read(size: int, most: int) -> None:
    targets = []

    def target_of(target: Any, name: str) -> Any:
        targets.append(target)

    data: Iterator[tuple[Tensor, int]] = ((torch.rand(size, 3), i) for i in range(1000))
    find_kinds([data], counting()[1], target_of)
    assert targets == list(range(most))


def test_each_output_is_judged_by_its_own_target() -> None:
    def run(x: Tensor) -> dict[str, Tensor]:
        return {"a": x, "b": x[:, 0]}

    data = [(X, {"a": CLASSES, "b": torch.rand(4) + 2})]
    found = find_kinds([data], run, lambda target, name: target[name])
    assert found == {"a": LAST, "b": VALUES}


def test_a_model_that_fails_is_told_in_one_line() -> None:
    def fails(x: Tensor) -> dict[str, Tensor]:
        raise ValueError("first line\nsecond line")

    with pytest.raises(
        TaskError,
        match=r"task: model.forward fails on a batch of the data: ValueError: first line$",
    ):
        find_kinds([[(X, None)]], fails, only)

    def known(x: Tensor) -> dict[str, Tensor]:
        raise TaskError("as it is")

    with pytest.raises(TaskError, match=r"^as it is$"):
        find_kinds([[(X, None)]], known, only)
