"""Join outputs and targets of a split by what they are."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch

from autocompress.errors import TaskError
from autocompress.measure.joining import join_outputs, join_targets

Weighted = namedtuple("Weighted", "label weight")
X = torch.arange(24.0).view(6, 4)


def test_targets_are_joined_by_what_they_are() -> None:
    assert join_targets([None, None]) is None
    assert join_targets([torch.tensor([1, 2]), torch.tensor([3])]).tolist() == [1, 2, 3]
    assert join_targets([torch.tensor(1), torch.tensor(2)]).tolist() == [1, 2]
    assert join_targets([["a", "b"], ["c"]]) == ["a", "b", "c"]


def test_targets_of_other_shapes_are_lists_with_an_entry_per_sample() -> None:
    found = join_targets([torch.zeros(2, 3), torch.ones(1, 5)])
    assert [tuple(item.shape) for item in found] == [(3,), (3,), (5,)]


def test_a_text_of_a_batch_of_one_is_one_entry() -> None:
    assert join_targets(["abc", "de"]) == ["abc", "de"]
    assert join_targets(["abc", ["de", "f"]]) == ["abc", "de", "f"]
    assert join_targets([{"y": "abc"}, {"y": "d"}]) == {"y": ["abc", "d"]}


def test_several_targets_are_joined_position_by_position() -> None:
    y, weight = torch.arange(6), torch.arange(6) / 10
    pairs = [[y[:4], weight[:4]], [y[4:], weight[4:]]]
    joined = join_targets(pairs, [4, 2])
    assert isinstance(joined, list)
    assert torch.equal(joined[0], y)
    assert torch.equal(joined[1], weight)
    labelled = join_targets([(y[:4], ["a", "b", "c", "d"]), (y[4:], ["e", "f"])], [4, 2])
    assert isinstance(labelled, tuple)
    assert labelled[1] == ["a", "b", "c", "d", "e", "f"]
    named = join_targets([Weighted(*pair) for pair in pairs], [4, 2])
    assert torch.equal(named.weight, weight)
    inside = join_targets([{"a": pair} for pair in pairs], [4, 2])
    assert torch.equal(inside["a"][0], y)
    entries = join_targets([[torch.zeros(5), torch.ones(5)], [torch.zeros(5)]], [2, 1])
    assert [row.shape for row in entries] == [(5,)] * 3, "an entry per sample"


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([X, None], "task: the target is None in batch 1 of the split"),
        ([{"a": X}, {"a": None}], "task: the target['a'] is None in batch 1 of the split"),
        ([{"a": X}, {"a": X, "b": X}], "task: the target['b'] is None in batch 0 of the split"),
        ([["a"], {"a": X}], "task: the target is a dict in batch 1 of the split"),
    ],
)
def test_targets_of_different_forms_are_named(targets: list[Any], words: str) -> None:
    with pytest.raises(TaskError) as caught:
        join_targets(targets)
    assert str(caught.value).startswith(words)


def test_mappings_of_targets_are_joined_by_name() -> None:
    found = join_targets([{"x": torch.tensor([1]), "y": ["a"]}, {"x": torch.tensor([2]), "y": "b"}])
    assert found["x"].tolist() == [1, 2]
    assert found["y"] == ["a", "b"]
    assert join_targets([{"x": None}, {"x": None}]) == {"x": None}


def test_outputs_are_one_tensor_where_they_fit_and_a_list_elsewhere() -> None:
    batches = [{"": X[:4], "b": X[:4, :2]}, {"": X[4:], "b": X[4:, :3]}]
    found = join_outputs(batches)
    assert torch.equal(found[""], X)
    assert [len(row) for row in found["b"]] == [2, 2, 2, 2, 3, 3]
    assert batches == [], "outputs of batches are dropped, so that memory is not doubled"
    assert join_outputs([]) == {}


def test_joined_rows_go_to_their_places() -> None:
    batches = [{"": X[:4], "b": X[:4]}, {"": X[4:], "b": X[4:].double()}]
    places = [5, 0, 3, 1, 4, 2]
    found = join_outputs(batches, places)
    assert torch.equal(found[""][places], X)
    assert found["b"].dtype is torch.float64
    assert torch.equal(found["b"][places], X.double())
