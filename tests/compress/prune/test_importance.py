"""Each criterion against its definition, and what the others do about a unit that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.candidate import IMPORTANCES
from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.calibrate.statistics import LayerStatistics, collect_statistics
from autocompress.compress.prune.importance import CRITERIA
from autocompress.compress.prune.masks import Pruner, global_ratios, ratio_below, reconstructed
from autocompress.model.channel_group import ChannelGroup, Member, all_of
from autocompress.model.modules import ModuleMap

CPU = torch.device("cpu")
UNITS = 12


def inputs() -> Tensor:
    """Correlated, so that units can stand in for each other."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 5, generator=generator) @ torch.randn(5, 8, generator=generator)


def losses(model: nn.Module) -> Iterator[Tensor]:
    for part in inputs().split(16):
        yield nn.functional.cross_entropy(model(part), part[:, :4].argmax(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, UNITS), nn.ReLU(), nn.Linear(UNITS, 4)).eval()


@pytest.fixture(scope="module")
def modules(model: nn.Module) -> ModuleMap:
    return find_modules(model, inputs())


@pytest.fixture(scope="module")
def evidence(model: nn.Module, modules: ModuleMap) -> Evidence:
    return Evidence(model, collect_statistics(model, modules, [inputs()], CPU), losses)


@pytest.fixture(scope="module")
def group(modules: ModuleMap) -> ChannelGroup:
    return modules.groups[0]


def test_every_criterion_has_a_function_and_a_name() -> None:
    assert set(CRITERIA) == set(IMPORTANCES)


@pytest.mark.parametrize("name", IMPORTANCES)
def test_scores_are_finite_one_per_unit_and_the_same_again(
    name: str, group: ChannelGroup, evidence: Evidence
) -> None:
    scores = CRITERIA[name](group, evidence)
    assert scores.shape == (UNITS,)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > UNITS / 2
    np.testing.assert_array_equal(scores, CRITERIA[name](group, evidence))


@pytest.mark.parametrize(
    "name", [name for name in IMPORTANCES if name not in ("random", "gradient")]
)
def test_a_unit_that_does_nothing_goes_first(
    name: str, model: nn.Module, modules: ModuleMap
) -> None:
    import copy

    idle = copy.deepcopy(model)
    for parameter in (idle[0].weight, idle[0].bias, idle[2].weight.T):
        parameter.data[7] = 0
    found = Evidence(idle, collect_statistics(idle, modules, [inputs()], CPU), losses)
    assert int(np.argmin(CRITERIA[name](modules.groups[0], found))) == 7


def relative(values: Tensor) -> np.ndarray:
    return (values / values.mean()).numpy()


def test_magnitudes_are_those_of_rows_and_columns(
    model: nn.Module, group: ChannelGroup, evidence: Evidence
) -> None:
    rows, columns = model[0].weight.detach(), model[2].weight.detach().T
    for name, power in (("l1", 1), ("l2", 2)):
        expected = relative(rows.abs().pow(power).sum(1)) + relative(
            columns.abs().pow(power).sum(1)
        )
        np.testing.assert_allclose(CRITERIA[name](group, evidence), expected, rtol=1e-5)


def test_gradient_criteria_follow_their_definitions(
    model: nn.Module, group: ChannelGroup, evidence: Evidence
) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    squares, unit_sums, fisher = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    for loss in losses(model):
        model.zero_grad()
        loss.backward()
        for i, (weight, gradient) in enumerate(
            (
                (model[0].weight.detach(), model[0].weight.grad),
                (model[2].weight.detach().T, model[2].weight.grad.T),
            )
        ):
            squares[i] += gradient.square().sum(1)
            unit_sums[i] += (weight * gradient).sum(1).square()
            fisher[i] += (weight * gradient).square().sum(1)
    for name, parts in (("gradient", squares), ("taylor", unit_sums), ("hessian", fisher)):
        expected = relative(parts[0]) + relative(parts[1])
        np.testing.assert_allclose(
            CRITERIA[name](group, evidence), expected, rtol=1e-4, err_msg=name
        )
    assert all(p.grad is not None for p in model.parameters()), (
        "and the evidence has not touched the model's own gradients"
    )


def test_wanda_weighs_by_the_norm_of_the_input(
    model: nn.Module, group: ChannelGroup, evidence: Evidence
) -> None:
    with torch.no_grad():
        norms = torch.relu(model[0](inputs())).square().mean(0).sqrt()
    np.testing.assert_allclose(
        CRITERIA["wanda"](group, evidence),
        relative(model[2].weight.detach().abs().sum(0) * norms),
        rtol=1e-4,
    )


def refit_error(weight: Tensor, gram: Tensor, kept: list[int]) -> float:
    """Squared error of the best weights on the kept inputs, by least squares on a factor of the
    Gram matrix.
    """
    factor = torch.linalg.cholesky(gram, upper=True)
    wanted = factor @ weight.T
    solution = torch.linalg.lstsq(factor[:, kept], wanted).solution
    return float((wanted - factor[:, kept] @ solution).square().sum())


def test_obs_removes_what_a_refit_misses_least(
    model: nn.Module, group: ChannelGroup, evidence: Evidence
) -> None:
    from autocompress.compress.calibrate.linear_algebra import damped

    gram = damped(evidence.statistics["2"].gram[0].double())
    weight = model[2].weight.detach().double()
    scores = CRITERIA["obs"](group, evidence)
    assert sorted(scores) == list(range(UNITS))
    alive = list(range(UNITS))
    for step in range(UNITS - 1):
        errors = {
            unit: refit_error(weight, gram, [u for u in alive if u != unit]) for unit in alive
        }
        gone = int(np.flatnonzero(scores == step)[0])
        assert errors[gone] <= min(errors.values()) * (1 + 1e-6) + 1e-12
        alive.remove(gone)


def test_what_no_layer_with_known_inputs_reads_is_ranked_by_magnitude(
    group: ChannelGroup, model: nn.Module
) -> None:
    blind = Evidence(model)
    for name in ("wanda", "obs", "obs_diagonal"):
        np.testing.assert_array_equal(CRITERIA[name](group, blind), CRITERIA["l2"](group, blind))


def test_a_layer_that_reads_a_part_of_the_channels_has_no_say_in_obs() -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.whole, self.part = (
                nn.Linear(8, UNITS),
                nn.Linear(UNITS, 4),
                nn.Linear(5, 4),
            )

        def forward(self, x: Tensor) -> Tensor:
            made = torch.relu(self.make(x))
            return self.whole(made) + self.part(made[:, :5])

    torch.manual_seed(0)
    partial = Partial().eval()
    found = find_modules(partial, inputs())
    group = next(g for g in found.groups if g.name == "make")
    cut = replace(group, members=(*group.members, Member("part", "in", all_of(5), all_of(5))))
    evidence = Evidence(partial, collect_statistics(partial, found, [inputs()], CPU))
    assert sorted(CRITERIA["obs"](cut, evidence)) == list(range(UNITS))


def test_without_targets_gradients_are_those_of_the_outputs(model: nn.Module) -> None:
    from autocompress import Task
    from autocompress.compress.calibrate.evidence import task_losses

    task = Task("unlabelled", model, inputs()[:1], [(inputs(), None)], lambda o, t: 0.0)
    found = Evidence(model, {}, task_losses(task)).gradients
    assert set(found) == {"0", "2"}
    assert all(float(g.square.sum()) > 0 for g in found.values())


@pytest.mark.parametrize("has_bias", [True, False])
def test_reconstruction_is_the_least_squares_fit(has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 4, generator=generator) @ torch.randn(4, 10, generator=generator) + 0.5
    x = x + 0.3 * torch.randn(x.shape, generator=generator)
    weight = torch.randn(6, 10, generator=generator)
    kept = torch.arange(10) % 3 != 0
    statistics = LayerStatistics(
        (x.T @ x / len(x)).unsqueeze(0), x.mean(0).unsqueeze(0), x.amin(0), x.amax(0)
    )
    solved, shift = reconstructed(weight, kept, statistics, has_bias)
    columns = torch.cat([x[:, kept], torch.ones(len(x), 1)], 1) if has_bias else x[:, kept]
    best = torch.linalg.lstsq(columns.double(), (x @ weight.T).double()).solution.T

    def error(w: Tensor, b: Tensor) -> float:
        return float((x @ weight.T - x[:, kept] @ w.T.float() - b).square().mean())

    best_error = error(
        best[:, : int(kept.sum())], best[:, -1].float() if has_bias else torch.zeros(6)
    )
    plain = error(weight[:, kept], torch.zeros(6))
    assert best_error <= error(solved, shift) <= 1.05 * best_error < plain / 2
    if not has_bias:
        assert not shift.any()


def test_inputs_that_were_never_seen_leave_the_weights_alone() -> None:
    none = LayerStatistics(torch.zeros(1, 6, 6), torch.zeros(1, 6), torch.zeros(6), torch.zeros(6))
    weight, kept = torch.randn(3, 6), torch.tensor([True, True, False, True, False, True])
    solved, shift = reconstructed(weight, kept, none, True)
    torch.testing.assert_close(solved, weight[:, kept])
    assert not shift.any()


def test_masks_follow_the_chosen_criterion_and_nest(
    modules: ModuleMap, evidence: Evidence, group: ChannelGroup
) -> None:
    pruner = Pruner(evidence, modules)
    for name in IMPORTANCES:
        before = np.ones(UNITS, dtype=bool)
        for ratio in (0.25, 0.5, 0.9):
            config = ModuleConfig(pruning_ratio=ratio, importance=name)
            mask = pruner.masks(Candidate.of({group.name: config})).of("0", "out")
            assert mask.sum() == UNITS - round(ratio * UNITS)
            assert not (mask & ~before).any(), (
                "what a smaller ratio removes, a larger one removes as well"
            )
            scores = pruner.scores(group, name)
            assert scores[mask].min() >= scores[~mask].max()
            before = mask


def test_one_threshold_over_all_groups() -> None:
    scores = {"even": np.ones(10), "uneven": np.array([0.01] * 8 + [4.0] * 2)}
    ratios = global_ratios(scores, 0.4)
    assert ratios == {"even": 0.0, "uneven": pytest.approx(0.8)}
    assert global_ratios({"a": np.arange(1.0, 5), "b": np.arange(1.0, 5)}, 0.5) == {
        "a": 0.5,
        "b": 0.5,
    }
    assert max(global_ratios(scores, 0.99).values()) <= 0.9, "one unit of each group stays"
    assert ratio_below(np.array([0.1, 0.2, 0.3, 0.4]), 0.25) == 0.5


def test_kept_counts_are_multiples_of_what_the_target_likes() -> None:
    group = ChannelGroup("g", "filters", 64, 1, (), multiple=16)
    assert [group.kept_units(r) for r in (0.1, 0.3, 0.5, 0.74, 0.76, 0.99)] == [
        64,
        48,
        32,
        32,
        16,
        16,
    ]
    small = ChannelGroup("s", "filters", 20, 1, (), multiple=16)
    assert small.kept_units(0.5) == 16, "in narrow groups a smaller multiple: 8"
    assert ChannelGroup("t", "filters", 6, 1, (), multiple=16).kept_units(0.5) == 4, (
        "and in narrower ones: 2"
    )
    assert ChannelGroup("one", "filters", 1, 1, (), multiple=8).kept_units(0.99) == 1
    assert list(all_of(3)) == [0, 1, 2]
