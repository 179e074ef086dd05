"""Check how inputs are walked, cut, named and moved, and that reading data leaves random generators
alone.
"""

from __future__ import annotations

import random
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.task.batches import (
    batch_size,
    calling_names,
    cut,
    cuttable,
    describe_inputs,
    described_inputs,
    feed_of,
    input_tensors,
    leaves,
    map_inputs,
    map_value,
    seed_all,
    seeded,
    spread_batches,
    take_samples,
    target_to_device,
)

Pair = namedtuple("Pair", ["left", "right"])
X, Y = torch.arange(4.0), torch.arange(8.0).view(4, 2)


def doubled(tensor: Tensor) -> Tensor:
    return tensor * 2


def test_a_function_reaches_every_tensor_and_constants_stay() -> None:
    assert torch.equal(map_inputs(X, doubled), X * 2)
    found = map_inputs([X, None, {"a": [Y, 3]}, "text"], doubled)
    assert isinstance(found, tuple)
    assert torch.equal(found[0], X * 2)
    assert found[1] is None
    assert torch.equal(found[2]["a"][0], Y * 2)
    assert found[2]["a"][1:] == [3]
    assert found[3] == "text"
    named = map_inputs({"b": X, "a": True}, doubled)
    assert list(named) == ["b", "a"]
    assert named["a"] is True


def test_tuples_with_names_keep_their_type() -> None:
    found = map_value(Pair(X, [Y]), doubled)
    assert type(found) is Pair
    assert torch.equal(found.right[0], Y * 2)
    assert map_value(7, doubled) == 7
    assert map_value([], doubled) == []


def test_leaves_have_the_path_of_their_argument() -> None:
    assert list(leaves(X)) == ["argument 0"]
    assert list(leaves({"x": X, "more": {"y": [X, 2]}})) == ["x", "more['y'][0]", "more['y'][1]"]
    assert list(leaves((X, (Y, {"k": None})))) == [
        "argument 0",
        "argument 1[0]",
        "argument 1[1]['k']",
    ]
    assert leaves(()) == {}
    assert [tensor is Y for tensor in input_tensors((1, Y, None))] == [True]


def test_a_file_is_fed_by_name_where_the_names_are_the_same() -> None:
    swapped = feed_of({"a": X, "b": Y, "flag": True}, ("b", "a"))
    assert np.array_equal(swapped["a"], X.numpy())
    by_order = feed_of({"a": X, "b": Y}, ("first", "second"))
    assert np.array_equal(by_order["first"], X.numpy())
    assert np.array_equal(feed_of((X, [Y]), ("p", "q"))["q"], Y.numpy())
    assert feed_of(X.clone().requires_grad_(), ("x",))["x"].tolist() == X.tolist()
    with pytest.raises(ValueError, match="zip"):
        feed_of((X, Y), ("only",))


def file_input(name: str, *shape: object, kind: str = "int64") -> Any:
    return SimpleNamespace(name=name, shape=list(shape), type=f"tensor({kind})")


def test_names_that_agree_belong_together_whatever_their_order() -> None:
    words, mask, image = torch.ones(2, 7).long(), torch.zeros(2, 7).long(), torch.ones(2, 3, 4, 4)
    batch = {"input_ids": words, "attention_mask": mask, "segments": mask}
    values = [file_input(name, "n", "m") for name in ("attention_mask", "input_ids", "types")]
    names = calling_names(batch, values)
    assert names == ("input_ids", "attention_mask", "types")
    assert feed_of(batch, names)["input_ids"].all()
    assert calling_names(batch, values[:2]) == ("attention_mask", "input_ids"), "counted later"
    assert calling_names((words, mask, mask), values) == tuple(value.name for value in values)
    in_order = [file_input(name, "n", "m") for name in ("input_ids", "mask", "types")]
    assert calling_names(batch, in_order) == ("input_ids", "mask", "types"), "as the places say"
    told = {"x": words, "ids": words, "pixels": image}
    values = [file_input("ids", "n", "m"), file_input("image", 1, 3, 4, 4, kind="float")]
    assert calling_names(told, [*values, file_input("words", "n", 7)]) == ("words", "ids", "image")


@pytest.mark.parametrize(
    ("rest", "count"), [((2, 7), "2"), (("n", 8), "none")], ids=["ambiguous", "impossible"]
)
def test_names_that_may_be_mixed_up_are_refused(rest: tuple[Any, ...], count: str) -> None:
    words = torch.ones(2, 7).long()
    batch = {"ids": words, "a": words, "b": words}
    values = [file_input("p", *rest), file_input("ids", "n", "m"), file_input("q", *rest)]
    with pytest.raises(TaskError) as caught:
        calling_names(batch, values)
    assert str(caught.value) == (
        f"task: a batch has the inputs ids, a, b, the file takes p, ids, q, and {count} of them "
        "fit a; nearest: a task that names its inputs as the file does"
    )


@pytest.mark.parametrize(
    ("inputs", "name"),
    [(X.bfloat16(), "a"), ((X, Y.bfloat16()), "b"), ({"a": X, "b": Y.bfloat16()}, "b")],
)
def test_no_file_is_fed_with_bfloat16(inputs: Any, name: str) -> None:
    names = ("a", "b")[: len(input_tensors(inputs))]
    with pytest.raises(TaskError) as caught:
        feed_of(inputs, names)
    assert str(caught.value) == (
        f"task: a batch has {name} in bfloat16, which a file of a float32 model does not take; "
        "nearest: float32"
    )


def test_the_batch_size_is_that_of_the_first_tensor_with_a_dimension() -> None:
    assert batch_size((torch.tensor(1.0), Y)) == 4
    assert batch_size((torch.tensor(1.0), 3)) == 1
    assert batch_size(torch.zeros(0, 3)) == 0


def test_inputs_and_targets_are_cut_together() -> None:
    inputs, target = cut({"x": X, "n": 5}, {"a": Y, "b": [1, 2, 3, 4]}, slice(1, 3))
    assert inputs["x"].tolist() == [1, 2]
    assert inputs["n"] == 5
    assert target["a"].tolist() == [[2, 3], [4, 5]]
    assert target["b"] == [2, 3]
    assert cut(X, None, slice(2))[1] is None


@pytest.mark.parametrize(
    ("inputs", "target", "expected"),
    [
        (X, None, True),
        ((X, Y), ["a", "b", "c", "d"], True),
        (X, {"a": X, "b": Y}, True),
        ((X, torch.zeros(3)), None, False),
        ((X, torch.tensor(1.0)), None, False),
        (X, torch.zeros(3), False),
        (X, torch.tensor(1.0), False),
        (X, ("a", "b", "c", "d"), False),
        (X, {"a": X, "b": None}, False),
        (X, {"a": X, "b": torch.zeros(5)}, False),
    ],
)
def test_only_batches_with_an_entry_per_sample_can_be_cut(
    inputs: object, target: object, expected: bool
) -> None:
    assert cuttable(inputs, target) is expected


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand())


def test_generators_start_at_the_seed_and_go_on_as_before() -> None:
    seed_all(3)
    expected = [draws(), draws()]
    seed_all(3)
    first = draws()
    with seeded(11):
        inside = draws()

    def fails() -> None:
        with seeded(11):
            assert draws() == inside
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [first, draws()] == expected
    seed_all(2**32 + 11)  # numpy takes 32 bits
    assert draws()[2] == inside[2]


class Shuffled:
    def __iter__(self) -> Iterator[tuple[Tensor, None]]:
        for row in torch.randperm(12).split(4):
            yield row, None


def test_the_first_samples_of_a_shuffled_loader_are_the_same_each_time() -> None:
    first, second = take_samples(Shuffled(), 6), take_samples(Shuffled(), 6)
    assert [len(x) for x, _ in first] == [4, 2]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))


def test_batches_that_stay_whole_are_not_cut() -> None:
    data = [(X, None), (X, None), (X, None)]
    assert [len(x) for x, _ in take_samples(data, 6, whole=True)] == [4, 4]
    assert [len(x) for x, _ in take_samples([(X, torch.zeros(()))] * 2, 6)] == [4, 4]
    assert len(take_samples(data, 8)) == 2, "no batch is read that is not needed"
    assert len(take_samples(data, 100)) == 3
    assert take_samples([], 5) == []


def test_targets_that_are_no_tensors_stay_on_their_way_to_a_device() -> None:
    found = target_to_device({"a": X, "b": ["text", Y]}, torch.device("meta"))
    assert found["a"].is_meta
    assert found["b"][0] == "text"
    assert found["b"][1].is_meta
    assert target_to_device(None, torch.device("meta")) is None


IDS = torch.zeros(1, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (IDS, {"shape": [1, 3], "type": "int64"}),
        (
            (torch.zeros(2), None, True),
            {"tuple": [{"shape": [2], "type": "float32"}, {"constant": None}, {"constant": True}]},
        ),
        ([IDS], {"list": [{"shape": [1, 3], "type": "int64"}]}),
        (
            {"ids": IDS, "more": {"k": (IDS,)}},
            {
                "entries": {
                    "ids": {"shape": [1, 3], "type": "int64"},
                    "more": {"entries": {"k": {"tuple": [{"shape": [1, 3], "type": "int64"}]}}},
                }
            },
        ),
        ((), {"tuple": []}),
    ],
)
def test_inputs_are_described_by_plain_types(inputs: object, words: object) -> None:
    assert describe_inputs(inputs) == words
    again = described_inputs(yaml.safe_load(yaml.safe_dump(words)))
    assert describe_inputs(again) == words
    assert type(again) is type(inputs)


def test_tensors_of_a_description_are_zeros() -> None:
    found = described_inputs({"shape": [2, 2], "type": "bool"})
    assert torch.equal(found, torch.zeros(2, 2, dtype=torch.bool))
    ordered = describe_inputs(OrderedDict(a=torch.ones(1)))
    assert described_inputs(ordered) == {"a": torch.zeros(1)}


def test_a_share_of_the_batches_is_spread_over_the_split() -> None:
    def chosen(count: int, share: float) -> list[int]:
        return [target for _, target in spread_batches([((), i) for i in range(count)], share)]

    assert chosen(10, 0.3) == [0, 3, 6]
    assert chosen(10, 1.0) == list(range(10))
    assert chosen(3, 0.01) == [0], "the first one in any case"
    first, second = (list(spread_batches(Shuffled(), 0.6)) for _ in range(2))
    assert len(first) == 2
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))
