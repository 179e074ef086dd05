"""Begin metrics that get a split batch by batch anew for each evaluation, and check that they do.

`tally` feeds them. An accumulator of the user's is never fed itself: a state that is carried over
would be a wrong number.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor

from autocompress.errors import NotComputableError, TaskError
from autocompress.task.batches import cut, cuttable, map_value
from autocompress.task.calls import Accumulator, Metric, copies_for, finite, is_ours, score
from autocompress.task.user_code import UserCodeError, user_code

SAME = 1e-5  # relative difference that sums in another order may make
EXPECTED = "(outputs, targets) -> float, or an object with update(outputs, targets) and compute()"
Batch = tuple[Tensor, Any]  # outputs and targets


def accumulates(metric: Any) -> bool:
    """Return True if a metric, or its class, has `update` and `compute`.

    Args:
        metric: of a task.
    """
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute"))


def is_metric(metric: Any) -> bool:
    """Return True if a metric can be called, or accumulates.

    Args:
        metric: as the user gives it.
    """
    return callable(metric) or accumulates(metric)


def fresh(metric: Metric, name: str = "metric") -> Accumulator | None:
    """Return an accumulator that has seen nothing.

    It is a copy of the user's, which is reset if it can be; or it is made by its class, or by a
    function that can be called without arguments and not with two.

    Args:
        metric: of a task.
        name: of the metric, for messages.

    Returns:
        None for a function of all outputs.

    Raises:
        UserCodeError: it cannot be copied, reset or made.
        TaskError: the function makes something else.
    """
    if accumulates(metric) and not isinstance(metric, type):
        with user_code(f"task: {name} cannot be copied"):
            own = copy.deepcopy(metric)
        reset = getattr(own, "reset", None)
        if callable(reset):
            with user_code(f"task: {name}.reset fails"):
                reset()
        return cast(Accumulator, own)
    if not _is_maker(metric):
        return None
    with user_code(f"task: {name} fails"):
        made = cast(Callable[[], Accumulator], metric)()
    if not accumulates(made):
        raise TaskError(
            f"task: {name}() gave a {type(made).__name__}; expected an object with "
            "update(outputs, targets) and compute()"
        )
    return made


def _is_maker(metric: Any) -> bool:
    """Return True for the class of an accumulator, and for a function that makes one."""
    if accumulates(metric.func if isinstance(metric, partial) else metric):
        return True
    try:
        signature = inspect.signature(metric)
    except (TypeError, ValueError):  # of a built-in function
        return False
    return _takes(signature, 0) and not _takes(signature, 2)


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def feed(running: Accumulator, outputs: Tensor, targets: Any, name: str = "metric") -> None:
    """Give one batch to an accumulator, as copies on the CPU that it may keep.

    Args:
        running: from `fresh`.
        outputs: (n, ...) on the CPU.
        targets: of the batch, or None.
        name: of the metric, for messages.

    Raises:
        UserCodeError: update fails.
    """
    own = map_value(targets, lambda tensor: tensor.cpu())
    with user_code(f"task: {name}.update fails"):
        running.update(*copies_for(running, outputs, own))


def result_of(running: Accumulator, samples: int, name: str = "metric") -> float:
    """Return what an accumulator computes of its batches.

    Args:
        running: from `fresh`.
        samples: of the batches, for messages.
        name: of the metric, for messages.

    Raises:
        UserCodeError: compute fails.
        NotComputableError: it returns something else than a finite number.
    """
    with user_code(f"task: {name}.compute fails"):
        result = running.compute()
    return finite(result, samples, name)


def value_of(metric: Metric, batches: Sequence[Batch], name: str = "metric") -> float:
    """Return a metric of some batches.

    Args:
        metric: of a task; a function gets one batch only.
        batches: (outputs, targets) of each.
        name: of the metric, for messages.

    Raises:
        UserCodeError: the metric fails.
        NotComputableError: it gives no finite number.
    """
    running = fresh(metric, name)
    if running is None:
        ((outputs, targets),) = batches
        return score(cast(Callable[[Any, Any], float], metric), outputs, targets, name)
    for outputs, targets in batches:
        feed(running, outputs, targets, name)
    return result_of(running, sum(len(outputs) for outputs, _ in batches), name)


def is_users_accumulator(metric: Metric) -> bool:
    """Return True for a metric of the user's that gets a split batch by batch.

    Args:
        metric: of a task.

    Raises:
        UserCodeError: it cannot be begun.
    """
    return not is_ours(metric) and fresh(metric) is not None


def equal(first: float, second: float) -> bool:
    """Return True if two values of a metric differ by rounding alone.

    Args:
        first: a value.
        second: another one.
    """
    return math.isclose(first, second, rel_tol=SAME, abs_tol=SAME)


def agrees(metric: Metric, ways: Sequence[Sequence[Batch]]) -> bool:
    """Return True if a metric gives the same number for the same samples in other batches.

    Args:
        metric: a function, which sees all samples in their order, or an accumulator.
        ways: the samples in batches of several orders or sizes.
    """
    if not is_users_accumulator(metric):
        return True
    try:
        first, *others = [value_of(metric, way) for way in ways]
    except (UserCodeError, NotComputableError):
        return False  # a few samples do not tell
    return all(equal(first, other) for other in others)


def agrees_divided(metric: Metric, outputs: Tensor, targets: Any, sizes: Sequence[int]) -> bool:
    """Return True if a metric does not depend on how samples are divided into batches.

    Batches of equal size do not show that it averages over them, or leaves small ones out; answers
    that are all right do not show how batches are weighted. So batches of one sample are tried,
    and the outputs of other samples behind the first.

    Args:
        metric: of a task.
        outputs: (n, ...), n of at least 2.
        targets: of these samples.
        sizes: of the batches that they came in.
    """
    if not is_users_accumulator(metric):
        return True
    if not cuttable(outputs, targets):
        return False
    rows = len(outputs)
    wrong = torch.cat([outputs[:1], outputs[1:].roll(1, 0)])
    for answers in (outputs, wrong):
        ways = []
        for counts in (sizes, [rows], [1, rows - 1], [rows - 1, 1]):
            starts = accumulate(counts, initial=0)
            parts = [slice(*ends) for ends in pairwise(starts)]
            ways.append([cast(Batch, cut(answers, targets, part)) for part in parts])
        if not agrees(metric, ways):
            return False
    return True


def check_fresh(metric: Metric, outputs: Tensor, targets: Any, name: str = "metric") -> None:
    """Check that evaluations with an accumulator of the user's do not change each other.

    An attribute of the class, or one object that a function gives each time, would do so. An object
    that was fed before, and has no `reset`, would carry that into each evaluation.

    Args:
        metric: of a task.
        outputs: (n, ...) of one batch.
        targets: of the batch, or None.
        name: of the metric, for messages.

    Raises:
        TaskError: the metric of the batch is another one beside a second evaluation, or the object
            was fed before.
    """
    if not is_users_accumulator(metric):
        return
    _check_unfed(metric, outputs, targets, name)
    first, samples = cast(Accumulator, fresh(metric, name)), len(outputs)
    try:
        feed(first, outputs, targets, name)
        alone = result_of(first, samples, name)
    except (UserCodeError, NotComputableError):
        return  # it is told where the metric is needed, with what it was computed of
    one, other = fresh(metric, name), fresh(metric, name)
    assert one is not None
    assert other is not None
    beside = math.nan
    with suppress(UserCodeError, NotComputableError):
        feed(one, outputs, targets, name)
        with suppress(UserCodeError):
            feed(other, torch.zeros_like(outputs), targets, name)
            feed(other, outputs.flip(0), targets, name)
        beside = result_of(one, samples, name)
    if not equal(alone, beside):
        raise TaskError(
            f"task: {name} is {alone:.6g} on the first batch, and {beside:.6g} on it beside a "
            "second evaluation: its state is shared; nearest: state that __init__ sets, and a "
            "function that makes a new object each time"
        )


def _check_unfed(metric: Metric, outputs: Tensor, targets: Any, name: str) -> None:
    """Raise a TaskError for an object without `reset` that has batches from before the search.

    Its value without a batch is another one than that of a new object of its class, and a batch
    counts less the more came before. A class that needs arguments tells nothing.
    """
    is_object = accumulates(metric) and not isinstance(metric, type)
    if not is_object or callable(getattr(metric, "reset", None)):
        return
    maker: Any = type(metric)
    try:
        new = maker()
    except Exception:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of means of nothing
        mine, fresh_one = (_value_or_none(one, [], name) for one in (metric, new))
        once, twice = (
            _value_or_none(metric, [(outputs, targets)] * count, name) for count in (1, 2)
        )
    if mine is None or once is None or twice is None:
        return
    if (fresh_one is None or not equal(mine, fresh_one)) and not equal(once, twice):
        raise TaskError(
            f"task: {name} is {mine:.6g} before its first batch: batches that it got earlier "
            "would count in each evaluation; nearest: a method reset, its class, or a function "
            "that makes a new object"
        )


def _value_or_none(metric: Metric, batches: Sequence[Batch], name: str) -> float | None:
    """Return a metric of some batches, or None where it fails or is not finite."""
    try:
        return value_of(metric, batches, name)
    except (UserCodeError, NotComputableError):
        return None
