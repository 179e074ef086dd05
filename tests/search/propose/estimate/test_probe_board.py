"""Divide measurements among the workers of a study."""

from __future__ import annotations

import threading
from pathlib import Path

import optuna
import pytest

from autocompress.candidate import ModuleConfig
from autocompress.search.propose.estimate.probe_board import ProbeBoard
from autocompress.search.propose.estimate.probe_meter import Effect
from autocompress.search.workers.storage import open_study

ORDER = [(name, ModuleConfig(weight_bits=bits)) for name in "abcd" for bits in (4, 8)]
URLS = ["{folder}/study.journal", "sqlite:///{folder}/study.db"]


def effect_of(module: str, config: ModuleConfig) -> Effect:
    return Effect(1 / (3 * ord(module)), 1 / config.weight_bits)


EFFECTS = {probe: effect_of(*probe) for probe in ORDER}


def never() -> bool:
    return False


def silent(share: float) -> None:
    pass


def in_threads(*works) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("url", URLS)
def test_two_workers_measure_a_list_together(tmp_path: Path, url: str) -> None:
    study = open_study(url.format(folder=tmp_path))
    other = open_study(url.format(folder=tmp_path))
    measured: dict[str, list] = {"first": [], "other": []}
    results, both = [], threading.Barrier(2, timeout=60)

    def measure(worker: str):
        def by(module: str, config: ModuleConfig) -> Effect:
            if not measured[worker]:
                both.wait()  # each waits in its first measurement for that of the other
            measured[worker].append((module, config))
            return effect_of(module, config)

        return by

    def first() -> None:
        board = ProbeBoard(study, "first")
        results.append(board.measure_all(ORDER, measure("first"), never, silent))

    def help_out() -> None:
        board = ProbeBoard(other, "other")
        while not results:
            board.measure_one(measure("other"))

    in_threads(first, help_out)
    assert list(results[0].items()) == list(EFFECTS.items()), "in the order of the list, exact"
    assert measured["first"]
    assert measured["other"]
    assert {*measured["first"], *measured["other"]} == set(ORDER)
    assert not ProbeBoard(other, "late").measure_one(measure("other")), "the list is closed"


def test_what_a_dead_worker_took_is_measured_by_the_first_process() -> None:
    study = optuna.create_study()
    board, mine, shares = ProbeBoard(study, "first"), [], []

    def dies(module: str, config: ModuleConfig) -> Effect:
        raise KeyboardInterrupt

    def measure(module: str, config: ModuleConfig) -> Effect:
        if not mine:
            with pytest.raises(KeyboardInterrupt):
                ProbeBoard(study, "dead").measure_one(dies)
        mine.append((module, config))
        return effect_of(module, config)

    found = board.measure_all(ORDER, measure, never, shares.append)
    assert found == EFFECTS
    assert mine == [ORDER[0], *ORDER[2:], ORDER[1]], "at the end, and nobody waits for it"
    assert shares == [place / len(ORDER) for place in range(len(ORDER))]


def test_results_of_an_earlier_list_do_not_count() -> None:
    study = optuna.create_study()
    ProbeBoard(study, "killed").measure_all(ORDER, effect_of, never, silent)
    board, mine = ProbeBoard(study, "first"), []

    def measure(module: str, config: ModuleConfig) -> Effect:
        mine.append((module, config))
        return Effect(7.0, 0.0)

    other = ORDER[::-1][:3]
    assert board.measure_all(other, measure, never, silent) == dict.fromkeys(other, Effect(7.0, 0))
    assert mine == other


def test_two_searches_of_one_study_do_not_write_over_each_other() -> None:
    study, found = optuna.create_study(), []

    def measure(module: str, config: ModuleConfig) -> Effect:
        if not found:  # the other search begins and ends in the middle of this one
            found.append({})
            found[0] = ProbeBoard(study, "second").measure_all(
                ORDER[::-1], lambda *_: Effect(7.0, 0.0), never, silent
            )
        return effect_of(module, config)

    assert ProbeBoard(study, "first").measure_all(ORDER, measure, never, silent) == EFFECTS
    assert found == [dict.fromkeys(ORDER[::-1], Effect(7.0, 0.0))]


def test_the_list_is_closed_when_the_time_is_over_and_after_an_error() -> None:
    study = optuna.create_study()
    board, helper, left = ProbeBoard(study, "first"), ProbeBoard(study, "other"), [3]

    def is_over() -> bool:
        left[0] -= 1
        return left[0] < 0

    found = board.measure_all(ORDER, effect_of, is_over, silent)
    assert list(found) == ORDER[:3]
    assert not helper.measure_one(effect_of)

    def fails(module: str, config: ModuleConfig) -> Effect:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        board.measure_all(ORDER, fails, never, silent)
    assert not helper.measure_one(effect_of)


def test_there_is_nothing_to_measure_where_no_list_was_opened() -> None:
    study = optuna.create_study()
    assert not ProbeBoard(study, "other").measure_one(effect_of)
    assert ProbeBoard(study, "first").measure_all([], effect_of, never, silent) == {}
