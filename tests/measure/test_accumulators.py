"""Begin accumulators anew for each evaluation, and feed them batch by batch."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from autocompress.errors import NotComputableError, TaskError
from autocompress.huggingface.metrics.entities import EntityF1
from autocompress.measure.accumulators import (
    agrees,
    agrees_divided,
    check_fresh,
    fresh,
    is_metric,
    value_of,
)
from autocompress.task.user_code import UserCodeError

X = torch.eye(3)[[0, 1, 2, 0]]
Y = torch.tensor([0, 1, 1, 0])
BATCHES = [(X[:3], Y[:3]), (X[3:], Y[3:])]


class Right:
    """Compute the share of right classes; there is no reset."""

    def __init__(self, best: float = 1.0) -> None:
        self.best, self.right, self.count = best, 0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right += int((outputs.argmax(1) == targets).sum())
        self.count += len(targets)

    def compute(self) -> Any:
        return torch.tensor(self.best * self.right / self.count)


class Reset(Right):
    def reset(self) -> None:
        self.right = self.count = 0


class Gives(Right):
    """Compute whatever it is told."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def compute(self) -> Any:
        return self.result


class Called(Right):
    """Be called with outputs and targets too, as metrics of torchmetrics can."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        raise AssertionError("it accumulates")


def made() -> Right:
    return Right()


def made_on(device: str = "cpu") -> Right:
    return Right()


@pytest.mark.parametrize(
    "metric",
    [Right(), Reset(), Called(), Right, partial(Right, 1.0), made, made_on, lambda: Right()],
)
def test_each_evaluation_begins_anew(metric: Any) -> None:
    assert is_metric(metric)
    for _ in range(2):
        assert value_of(metric, BATCHES) == 0.75
    assert value_of(metric, BATCHES[1:]) == 1.0
    if not callable(metric):
        assert metric.count == 0, "the user's own object gets no batch"


def test_a_state_from_before_the_search_is_reset() -> None:
    used, kept = Reset(), Right()
    for metric in (used, kept):
        metric.update(X, 3 - Y)
    assert value_of(used, BATCHES) == 0.75
    assert value_of(kept, BATCHES) == value_of(kept, BATCHES) < 0.75, "check_fresh refuses it"


@pytest.mark.parametrize(
    "metric",
    [lambda outputs, targets: 1.0, lambda *given: 1.0, partial(torch.dist, p=1), max],
)
def test_functions_of_outputs_and_targets_are_no_makers(metric: Any) -> None:
    assert fresh(metric) is None
    assert is_metric(metric)


def test_what_is_no_metric() -> None:
    assert not is_metric("accuracy")
    assert not is_metric(None)
    with pytest.raises(TaskError, match=r"^task: f1\(\) gave a dict; expected an object with"):
        fresh(lambda: {}, "f1")


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (float("nan"), "returned nan on 4 outputs"),
        (torch.tensor(torch.nan), "returned nan on 4 outputs"),
        ("good", "returned 'good'"),
        (None, "returned None"),
        ({"f1": 0.5}, "returned {'f1': 0.5}"),
        (torch.ones(3), r"returned a tensor of shape \(3,\)"),
    ],
)
def test_what_compute_gives_must_be_a_finite_number(result: Any, words: str) -> None:
    with pytest.raises(NotComputableError, match=f"^task: f1 {words}; it must be a finite number$"):
        value_of(Gives(result), BATCHES, "f1")
    assert value_of(Gives(torch.tensor([0.5])), BATCHES) == 0.5


@pytest.mark.parametrize("method", ["update", "compute", "reset"])
def test_errors_are_named_as_the_users(method: str) -> None:
    def fails(*arguments: Any) -> None:
        raise KeyError("column")

    broken = type("Broken", (Reset,), {method: fails})()
    with pytest.raises(
        UserCodeError, match=rf"^task: f1\.{method} fails: KeyError: 'column' \(.*test_accumulators"
    ):
        value_of(broken, BATCHES, "f1")


def test_an_object_that_cannot_be_copied_is_named() -> None:
    locked = Right()
    locked.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(
        UserCodeError, match=r"^task: metric cannot be copied: TypeError: cannot pic"
    ):
        fresh(locked)
    with pytest.raises(UserCodeError, match=r"^task: metric fails: TypeError: .*missing 1 "):
        fresh(Gives)


class Keeping(Right):
    """Keep all that it gets, and write to it at the end."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor]] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.parts.append((outputs, targets))

    def compute(self) -> float:
        outputs, targets = (torch.cat(part) for part in zip(*self.parts, strict=True))
        for part, target in self.parts:
            part.zero_()
            target.zero_()
        return float((outputs.argmax(1) == targets).float().mean())


def test_tensors_that_are_kept_stay_as_they_were() -> None:
    output, target = torch.empty(1, 3), torch.empty(1, dtype=torch.int64)

    def reused() -> Any:
        for row, label in zip(X, Y, strict=True):
            yield output.copy_(row), target.copy_(label)

    class Batches(list[Any]):
        def __iter__(self) -> Any:
            return reused()

    assert value_of(Keeping, Batches()) == 0.75
    assert value_of(Keeping, BATCHES) == 0.75
    assert torch.equal(X, torch.eye(3)[[0, 1, 2, 0]])
    assert Y.tolist() == [0, 1, 1, 0]


def test_batches_may_have_several_shapes() -> None:
    class Positions(Right):
        def update(self, outputs: Tensor, targets: Tensor) -> None:
            super().update(outputs.flatten(0, 1), targets.flatten())

    batches = []
    for length in (3, 5):
        targets = torch.randint(0, 4, (2, length))
        batches.append((torch.eye(4)[targets], targets))
    batches[0][0][:] = batches[0][0].flip(2)  # classes 0 to 3 become 3 to 0: all wrong
    assert value_of(Positions, batches) == pytest.approx(10 / 16)


def test_targets_come_as_the_split_gives_them() -> None:
    seen = []

    class Seen(Right):
        def update(self, outputs: Tensor, targets: Any) -> None:
            seen.append(targets)

        def compute(self) -> float:
            return 0.0

    given = [None, ["a"], (Y, {"weights": Y})]
    value_of(Seen, [(X, targets) for targets in given])
    assert seen[:2] == given[:2]
    assert isinstance(seen[2], tuple)
    assert torch.equal(seen[2][1]["weights"], Y)


class Shared(Right):
    """Keep its state in the class."""

    seen: ClassVar[list[bool]] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.seen.extend((outputs.argmax(1) == targets).tolist())

    def compute(self) -> float:
        return sum(self.seen) / len(self.seen)


ONE = Reset()


class Cleared(Shared):
    """Clear the state of the class, so that one evaluation ends another one."""

    def reset(self) -> None:
        self.seen.clear()


@pytest.mark.parametrize("metric", [Shared(), Shared, Cleared(), lambda: ONE])
def test_a_state_that_evaluations_share_is_refused(metric: Any) -> None:
    Shared.seen.clear()
    with pytest.raises(TaskError, match=r"^task: f1 is 0\.75 on the first batch, and .*is shared;"):
        check_fresh(metric, X, Y, "f1")


@pytest.mark.parametrize(
    "metric", [Right(), Reset(), made, Gives("text"), Keeping, lambda o, t: 0.0, EntityF1]
)
def test_others_are_not_refused(metric: Any) -> None:
    check_fresh(metric, X, Y)


def test_metrics_of_the_last_batch_depend_on_the_order() -> None:
    class Last(Right):
        def update(self, outputs: Tensor, targets: Tensor) -> None:
            self.right = self.count = 0
            super().update(outputs, targets)

    class MeanOfBatches(Right):
        def update(self, outputs: Tensor, targets: Tensor) -> None:
            self.right += float((outputs.argmax(1) == targets).float().mean())
            self.count += 1

    there_and_back = [BATCHES, BATCHES[::-1]]
    whole = [(X, Y)]
    assert agrees(Right, [*there_and_back, whole])
    assert not agrees(Last(), there_and_back)
    assert agrees(MeanOfBatches, there_and_back)
    assert not agrees(MeanOfBatches, [*there_and_back, whole])
    assert not agrees(Gives("text"), there_and_back)
    assert agrees(lambda outputs, targets: 0.0, there_and_back)


class Averaged(Right):
    """Compute the mean over batches, whatever their sizes."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right += float((outputs.argmax(1) == targets).float().mean())
        self.count += 1


class OfLarge(Right):
    """Leave batches of one sample out."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        if len(outputs) > 1:
            super().update(outputs, targets)


class Among(Right):
    """Find each sample among those of its batch."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        nearest = (outputs @ torch.eye(3)[targets].t()).argmax(1)
        super().update(torch.eye(len(outputs))[nearest], torch.arange(len(outputs)))


@pytest.mark.parametrize("targets", [Y, X.argmax(1)], ids=["some wrong", "all right"])
def test_metrics_of_batches_depend_on_how_samples_are_divided(targets: Tensor) -> None:
    for sizes in ([2, 2], [1, 3], [4]):
        assert agrees_divided(Right, X, targets, sizes)
        assert agrees_divided(lambda outputs, targets: 0.0, X, None, sizes)
        for metric in (Averaged, OfLarge, Among):
            assert not agrees_divided(metric, X, targets, sizes), metric
    assert not agrees_divided(Right, X, (targets, targets), [4]), "these cannot be cut"


class AtLeastOne(Right):
    """Have a value without a sample."""

    def compute(self) -> float:
        return -self.right / max(self.count, 1) - 1


def test_an_object_that_was_fed_before_is_refused() -> None:
    for metric in (Right(), Averaged(), AtLeastOne()):
        check_fresh(metric, X, Y, "f1")
        metric.update(X, 3 - Y)
        metric.update(X, X.argmax(1))
        with pytest.raises(
            TaskError,
            match=r"^task: f1 is -?[01]\.625 before its first batch: batch.*: a method reset",
        ):
            check_fresh(metric, X, Y, "f1")
    used = Reset()
    used.update(X, Y)
    check_fresh(used, X, Y)


class Smoothed(Right):
    """Count one right sample more than there are (Laplace), as Dice scores may."""

    def __init__(self, more: float = 1.0) -> None:
        super().__init__()
        self.more = more

    def compute(self) -> float:
        return (self.right + self.more) / (self.count + self.more)


class Needy(Smoothed):
    """Need an argument, so that no second one can be made to compare with."""

    def __init__(self, more: float) -> None:
        super().__init__(more)


def test_a_smoothed_object_that_was_not_fed_is_taken() -> None:
    check_fresh(Smoothed(), X, Y, "dice")
    check_fresh(Needy(1.0), X, Y, "dice")
    fed = Smoothed()
    fed.update(X, 3 - Y)
    with pytest.raises(TaskError, match="before its first batch"):
        check_fresh(fed, X, Y, "dice")
