"""The progressive strategy.

One module and one width per trial, back when accuracy falls, over when nothing moves.
"""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

import autocompress
from autocompress import ModuleConfig, find_modules
from autocompress.errors import LimitError
from autocompress.results.limits import Limits
from autocompress.search.propose.progressive import ProgressiveSampler
from autocompress.search.propose.sampler import distributions
from autocompress.space.search_space import BoundSpace, SearchSpace
from autocompress.targets.target import find_target

SPACE = {
    "modules": [
        {
            "match": "*",
            "weight_bits": [2, 4, 8],
            "activation_bits": [8, 32],
            "rank_ratio": [0.5, 1.0],
        }
    ]
}


@pytest.fixture(scope="module")
def space(cnn_task) -> BoundSpace:
    return SearchSpace.load(SPACE).bind(
        find_modules(cnn_task.model, cnn_task.example_inputs), find_target("onnxruntime-cpu")
    )


def walk(
    space: BoundSpace,
    fragile: dict[str, int],
    most: int = 100,
    study: optuna.Study | None = None,
    limits: Limits | None = None,
) -> tuple[optuna.Study, list[dict]]:
    """Run the strategy on a model in which a module below its `fragile` width costs too much."""
    names = list(space.kinds)
    losses = {(name, ModuleConfig(2, 8)): float(i) for i, name in enumerate(reversed(names))}
    sampler = ProgressiveSampler(space, losses, 0.9, limits or Limits(), 0)
    study = study or optuna.create_study(directions=["minimize", "minimize", "maximize"])
    study.sampler = sampler
    steps = []
    while not sampler.finished(study) and len(steps) < most:
        trial = study.ask(distributions(space))
        candidate = space.candidate(trial.params)
        bits = {name: candidate.config(name).weight_bits for name in names}
        steps.append(bits)
        accuracy = 0.5 if any(bits[name] < width for name, width in fragile.items()) else 0.95
        study.tell(trial, [float(sum(bits.values())), 1.0, accuracy])
    return study, steps


def test_one_module_and_one_width_at_a_time_in_the_order_of_harm(space: BoundSpace) -> None:
    names = list(space.kinds)
    _, steps = walk(space, {})
    assert set(steps[0].values()) == {8}
    for i, name in enumerate(reversed(names), start=1):  # the last module is the least sensitive
        changed = {n for n in names if steps[i][n] != steps[i - 1][n]}
        assert changed == {name}
        assert steps[i][name] == 4
    assert set(steps[-1].values()) == {2}
    assert len(steps) == 1 + 2 * len(names)


def test_a_step_that_costs_too_much_is_taken_back_and_not_tried_again(space: BoundSpace) -> None:
    names = list(space.kinds)
    fragile = {names[0]: 8, names[2]: 4}
    _, steps = walk(space, fragile)
    assert sum(step[names[0]] < 8 for step in steps) == 1
    assert sum(step[names[2]] < 4 for step in steps) == 1
    # The last step that held has every module at its own limit.
    held = [s for s in steps if all(s[n] >= w for n, w in fragile.items())]
    assert held[-1] == {n: fragile.get(n, 2) for n in names}


def test_the_walk_goes_on_where_it_stopped(space: BoundSpace) -> None:
    _, whole = walk(space, {})
    study, first = walk(space, {}, most=5)
    _, rest = walk(space, {}, study=study)
    assert first + rest == whole


def test_a_step_that_was_over_an_earlier_budget_is_tried_under_a_larger_one(
    space: BoundSpace,
) -> None:
    _, whole = walk(space, {})
    study, first = walk(space, {}, most=1)
    stopped = study.ask(distributions(space))
    stopped.set_user_attr("row", {"size_bytes": 900.0, "latency_ms": 1.0})
    stopped.set_constraint("max_size", 0.5)
    study.tell(stopped, state=TrialState.PRUNED)
    _, rest = walk(space, {}, study=study, limits=Limits(max_size_bytes=1000.0))
    assert first + rest == whole
    _, again = walk(space, {}, most=1, study=study, limits=Limits(max_size_bytes=8.0))
    assert again[0][list(space.kinds)[-1]] == 8, (
        "a step that is over a smaller budget is taken back"
    )


def test_candidates_keep_full_rank_and_run_on_integer_kernels(space: BoundSpace) -> None:
    study, _ = walk(space, {}, most=3)
    for trial in study.trials:
        candidate = space.candidate(trial.params)
        assert all(config.rank_ratio == 1 for _, config in candidate.modules)
        assert all(config.activation_bits == 8 for _, config in candidate.modules)


@pytest.mark.slow
def test_as_a_command_and_as_a_seed(cnn_spec: str, tmp_path: Path) -> None:
    space = {
        "modules": [{"match": "*", "weight_bits": [2, 4, 8], "activation_bits": [8, 32]}],
        "constraints": {"max_accuracy_drop": 0.02},
    }
    result = autocompress.search(
        cnn_spec, space, n_trials=60, out=tmp_path, strategy="progressive", quiet=True
    )
    study = optuna.load_study(study_name="autocompress", storage=_storage(tmp_path))
    count = len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))
    assert 6 <= count < 60, "it ends by itself"
    assert len(result.front.points) >= 1
    assert max(p.measured.accuracy for p in result.front) >= result.front.baseline.accuracy - 0.02
    more = autocompress.search(cnn_spec, space, n_trials=count + 4, out=tmp_path, quiet=True)
    assert (
        len(optuna.load_study(study_name="autocompress", storage=_storage(tmp_path)).trials)
        == count + 4
    )
    assert more.front.smallest().measured.size_bytes <= result.front.smallest().measured.size_bytes


def _storage(folder: Path) -> optuna.storages.JournalStorage:
    return optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    )


def test_bad_strategies_are_named(cnn_task) -> None:
    with pytest.raises(LimitError, match="strategy 'gready' is unknown; nearest: "):
        autocompress.search(cnn_task, strategy="gready", quiet=True)
    with pytest.raises(LimitError, match="takes one step after another; workers must be 1, got 2"):
        _two_workers(cnn_task)


def _two_workers(task) -> None:
    from autocompress.search.loop import run_search
    from autocompress.search.problem.options import Settings
    from autocompress.search.problem.progress import SearchProgress

    with SearchProgress(quiet=True) as progress:
        run_search(task, Settings(strategy="progressive", workers=2), Path("unused"), progress)
