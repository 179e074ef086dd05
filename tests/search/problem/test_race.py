"""Deal the validation split by the seed, and keep outputs and targets together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from autocompress import Task, spill
from autocompress.errors import TaskError
from autocompress.measure.tally import Tally
from autocompress.search.problem import race as module
from autocompress.search.problem.race import Race, open_race

CPU = torch.device("cpu")


class Plus(nn.Module):
    """Each sample's output tells which sample it was."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 2, bias=False)
        self.fc.weight.data[:] = torch.tensor([[1.0], [2.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def right(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs[:, 0] == targets).float().mean())


def difference(outputs: Tensor, expected: Tensor) -> Tensor:
    return (outputs - expected).abs().sum(1)


def numbered(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    numbers = torch.arange(sum(sizes), dtype=torch.float32)
    return [(part[:, None], part) for part in numbers.split(list(sizes))]


def task(batches: object, **more: object) -> Task:
    given = {"divergence": difference, "rows_independent": True, **more}
    return Task("numbers", Plus(), torch.ones(1, 1), batches, right, **given)


def seen(race: Race) -> list[float]:
    """The samples in the order of the race."""
    return [float(x) for inputs, _ in race.batches for x in inputs[:, 0]]


def answers(race: Race) -> Tensor:
    """The original's outputs in the order of the race."""
    inputs = torch.cat([inputs for inputs, _ in race.batches])
    return race.teacher.take(race.rows.tolist(), inputs)


def test_samples_are_dealt_by_the_seed_and_keep_their_answers() -> None:
    race, again, other = (open_race(task(numbered(4, 4, 2)), Plus(), CPU, s) for s in (0, 0, 1))
    assert race.mixed
    assert [len(inputs) for inputs, _ in race.batches] == [4, 4, 2]
    assert sorted(seen(race)) == list(range(10))
    assert seen(race) == [float(i) for i in race.order]
    assert seen(race) == seen(again) != seen(other)
    assert race.digest == again.digest != other.digest
    assert torch.cat([target for _, target in race.batches]).tolist() == seen(race)
    assert answers(race)[:, 1].tolist() == [2 * x for x in seen(race)]
    assert race.answers.tolist() == list(range(10)), "metrics get the order of the split"


def test_what_is_joined_is_in_the_order_of_the_split() -> None:
    race = open_race(task(numbered(4, 4, 2)), Plus(), CPU, 3)
    outputs = [{"": Plus()(inputs).detach()} for inputs, _ in race.batches]
    at = 0
    for output, (inputs, _) in zip(outputs, race.batches, strict=True):
        assert torch.equal(race.expected(at, len(output[""]), inputs), output[""])
        at += len(output[""])
    assert race.joined(outputs)[""][:, 0].tolist() == list(range(10))


def test_batches_whose_rows_depend_on_each_other_stay_whole() -> None:
    batches = numbered(3, 3, 3, 3)
    race = open_race(task(batches, rows_independent=False), Plus(), CPU, 0)
    assert not race.mixed
    starts = [int(inputs[0, 0]) for inputs, _ in race.batches]
    assert starts == [3 * place for place in race.order]
    assert sorted(starts) == [0, 3, 6, 9]
    assert all(inputs[:, 0].tolist() == target.tolist() for inputs, target in race.batches)
    outputs = [{"": Plus()(inputs).detach()} for inputs, _ in race.batches]
    assert race.joined(outputs)[""][:, 0].tolist() == list(range(12))


def test_a_loader_that_is_not_in_memory_keeps_its_order() -> None:
    class Loader:
        def __iter__(self):
            return iter(numbered(2, 2, 2))

    race = open_race(task(Loader()), Plus(), CPU, 0)
    assert (race.mixed, race.order) == (False, [0, 1, 2])
    assert seen(race) == list(range(6))


def test_one_batch_is_not_dealt() -> None:
    race = open_race(task(numbered(5)), Plus(), CPU, 0)
    assert (race.mixed, race.order, seen(race)) == (False, [0], list(range(5)))


def test_other_data_in_the_same_order_is_another_race() -> None:
    batches = [(inputs + 1, target + 1) for inputs, target in numbered(4, 4)]
    first, second = (open_race(task(found), Plus(), CPU, 0) for found in (numbered(4, 4), batches))
    assert first.order == second.order
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("divergence", "came"),
    [
        (lambda outputs, expected: 0.0, "float"),
        (lambda outputs, expected: torch.zeros(4, 2), r"shape \(4, 2\)"),
        (lambda outputs, expected: torch.full((4,), torch.inf), "4 values that are not finite"),
    ],
)
def test_a_divergence_that_is_no_number_per_sample_is_refused(divergence, came: str) -> None:
    message = rf"^task: divergence of a batch from itself gave {came}; expected \(4,\) finite"
    with pytest.raises(TaskError, match=message):
        open_race(task(numbered(4, 4), divergence=divergence), Plus(), CPU, 0)


def test_outputs_that_are_nan_are_named_as_the_cause() -> None:
    model = Plus()
    model.fc.weight.data[0] = torch.nan
    metric = lambda outputs, targets: 1.0  # noqa: E731
    given = replace(task(numbered(4, 4)), metric=metric)
    with pytest.raises(TaskError, match="gave 4 values that are not finite, since the model's"):
        open_race(given, model, CPU, 0)


def test_an_empty_split_is_refused() -> None:
    given = task(numbered(4))
    given.__dict__["validation"] = []
    with pytest.raises(TaskError, match="task: validation is empty; expected at least one"):
        open_race(given, Plus(), CPU, 0)


def test_metric_and_divergence_may_write_to_what_they_get() -> None:
    def zeroed(outputs: Tensor, targets: Tensor) -> float:
        value = right(outputs, targets)
        outputs.zero_()
        targets.zero_()
        return value

    def written(outputs: Tensor, expected: Tensor) -> Tensor:
        return outputs.sub_(expected).abs_().sum(1)

    given = replace(
        task(numbered(4, 4, 2)),
        metric=zeroed,
        divergence=written,
        extra_metrics={"again": zeroed},
    )
    expected, race = (open_race(t, Plus(), CPU, 0) for t in (task(numbered(4, 4, 2)), given))
    assert torch.equal(answers(race), answers(expected))
    assert torch.equal(race.answers, expected.answers)
    targets = [torch.cat([target for _, target in r.batches]) for r in (race, expected)]
    assert torch.equal(*targets)
    assert (race.digest, race.scored) == (expected.digest, expected.scored)


class Weighted(nn.Module):
    """Add 1; a number comes first."""

    def forward(self, scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return scale * x + 1


@pytest.mark.parametrize("independent", [True, False])
def test_several_targets_of_a_batch_are_joined_one_by_one(independent: bool) -> None:
    batches = []
    for count in (4, 4, 2):
        x = torch.randn(count, 3)
        batches.append(((torch.tensor(0.5), x), [x.argmax(1), torch.ones(count)]))

    def metric(outputs: torch.Tensor, targets: list[torch.Tensor]) -> float:
        labels, weights = targets
        return float(((outputs.argmax(1) == labels).float() * weights).mean())

    given = Task("t", Weighted(), batches[0][0], batches, metric, rows_independent=independent)
    race = open_race(given, Weighted(), CPU, 0)
    assert race.scores.accuracy == 1.0
    assert [len(part) for part in race.answers] == [10, 10]


class Count:
    """Compute `right` from counts; note the sizes of its batches."""

    def __init__(self) -> None:
        self.right, self.sizes = 0, list[int]()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right += int((outputs[:, 0] == targets).sum())
        self.sizes.append(len(outputs))

    def compute(self) -> float:
        return self.right / sum(self.sizes)


class Last(Count):
    """Judge the last batch only."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right, self.sizes = 0, []
        super().update(outputs + outputs.mean(), targets)

    def compute(self) -> float:
        return float(sum(self.sizes))


@pytest.mark.parametrize("mixed", [True, False])
def test_a_race_with_an_accumulator_has_the_scores_and_the_order_of_one_with_a_function(
    mixed: bool,
) -> None:
    given = task(numbered(4, 4, 2), rows_independent=mixed)
    expected = open_race(given, Plus(), CPU, 0)
    for metric in (Count, Count()):
        race = open_race(replace(given, metric=metric), Plus(), CPU, 0)
        assert (race.scores, race.digest) == (expected.scores, expected.digest)
        assert (race.mixed, race.scored) == (mixed, "metric") == (mixed, expected.scored)
        assert torch.equal(answers(race), answers(expected))
        assert race.answers is None, "targets are not held a second time"


class MeanOfBatches(Count):
    """Compute the mean over batches, whatever their sizes."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right += float((outputs[:, 0] == targets).float().mean())
        self.sizes.append(1)


class OfLarge(Count):
    """Leave small batches out."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        if len(outputs) > 2:
            super().update(outputs, targets)


class Early(Count):
    """Judge the first 40 samples only."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        if sum(self.sizes) < 40:
            super().update(outputs, targets)


@pytest.mark.parametrize(
    ("metric", "start"),
    [
        (MeanOfBatches, 0),
        (MeanOfBatches(), 5),
        (OfLarge, 0),
        (OfLarge, 5),
        (Early, 5),
    ],
)
def test_samples_are_not_mixed_where_a_metric_depends_on_their_batches(
    metric: object, start: int
) -> None:
    """The last batch has one sample, and batches before `start` have right answers only."""
    generator, batches = torch.Generator().manual_seed(0), []
    for i, (inputs, target) in enumerate(numbered(*[8] * 8, 1)):
        wrong = torch.rand(len(target), generator=generator) < 0.5
        batches.append((inputs, target + 100 * wrong * (i >= start)))
    for seed in range(4):
        given = replace(task(batches), metric=metric)
        race = open_race(given, Plus(), CPU, seed)
        assert not race.mixed
        tally = Tally(given)
        for inputs, target in race.batches:
            tally.add({"": Plus()(inputs).detach()}, target)
        found = tally.scores_of(race.joined(tally.outputs), race.answers)
        assert found.accuracy == pytest.approx(race.scores.accuracy)
        assert open_race(replace(given, metric=Count), Plus(), CPU, seed).mixed


def test_batches_keep_their_order_where_a_metric_depends_on_it() -> None:
    for more in ({"rows_independent": True}, {"rows_independent": False}):
        given = replace(task(numbered(4, 4, 2), **more), extra_metrics={"last": Last})
        race = open_race(given, Plus(), CPU, 0)
        assert (race.mixed, race.ordered, race.order) == (False, True, [0, 1, 2])
        assert race.scores.metrics == {"last": 2.0}


def test_answers_that_are_not_kept_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_race(task(numbered(4, 4, 2)), Plus(), CPU, 0)
    monkeypatch.setattr(spill, "ROWS_IN_MEMORY", 0)
    for most in (0, 1 << 30):
        monkeypatch.setattr(spill, "ROWS_BYTES", most)
        calls: list[int] = []
        model = Plus()
        race = open_race(task(numbered(4, 4, 2)), model, CPU, 0)
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        at = 0
        for inputs, _ in race.batches:
            found = race.expected(at, len(inputs), inputs)
            assert torch.equal(found, expected.expected(at, len(inputs), inputs))
            at += len(inputs)
        assert len(calls) == (0 if most else 3)


def test_batches_of_several_shapes_are_scored_by_an_accumulator() -> None:
    batches = [(torch.rand(2, length, 1), torch.rand(2, 2)) for length in (3, 5)]
    given = Task("t", Plus(), batches[0][0], batches, Count, divergence=lambda o, e: o.sum((1, 2)))
    race = open_race(given, Plus(), CPU, 0)
    assert (race.scored, race.ragged) == ("divergence", False)


def test_metrics_are_tried_on_few_batches_where_outputs_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(
        module, "scoring_of", lambda task, outputs, targets: tried.append(len(outputs)) or "metric"
    )
    for most in (1 << 30, 0):
        monkeypatch.setattr(module, "HEAD_BYTES", most)
        open_race(task(numbered(*[4] * 10)), Plus(), CPU, 0)
    assert tried == [32, 8]
