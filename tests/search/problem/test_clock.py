from __future__ import annotations

import time
from dataclasses import replace

import pytest

from autocompress.search.problem.clock import (
    FASTER,
    FILES_SHARE,
    LONG_SHARE,
    MOST_FILES,
    RECOVERY_SHARE,
    REPORT_S,
    RUNS,
    RUNS_OF_TWO,
    Clock,
)
from autocompress.targets.device.timing import enough_rounds


def clock(
    timeout_s: float | None, file_s: float = 2.0, latency_s: float = 0.001, recovers: bool = True
) -> Clock:
    now = time.monotonic()
    parts = (file_s / 4, file_s / 2, file_s * 2 / 3, 1.5, False, latency_s, 0.8, now + 10)
    return Clock(now, timeout_s, recovers, *parts)


def test_without_a_timeout_nothing_ends() -> None:
    free = clock(None)
    assert (free.search_deadline, free.recovery_deadline) == (None, None)
    assert free.files == MOST_FILES
    assert free.has_room(10**6, 1e9)


@pytest.mark.parametrize("timeout_s", [60, 300, 3600])
@pytest.mark.parametrize("file_s", [0.5, 5.0, 40.0])
def test_everything_fits_into_the_time_that_is_given(timeout_s: float, file_s: float) -> None:
    given = clock(timeout_s, file_s)
    assert given.search_deadline == pytest.approx(
        given.recovery_deadline - RECOVERY_SHARE * given.left_s
    )
    assert given.recovery_deadline + given.after_recovery_s(given.files) == pytest.approx(
        given.started + timeout_s
    )
    assert 1 <= given.files <= MOST_FILES
    if given.files > 1:
        assert given.after_recovery_s(given.files) <= FILES_SHARE * given.left_s
    if given.files < MOST_FILES:
        assert given.after_recovery_s(given.files + 1) > FILES_SHARE * given.left_s


def test_a_front_that_is_not_trained_leaves_its_time_to_the_trials() -> None:
    assert clock(300, recovers=False).search_deadline > clock(300).search_deadline + 30


def test_training_that_comes_last_gets_more_time() -> None:
    given = clock(300)
    early, late = given.long_recovery_from, given.recovery_deadline
    assert early == pytest.approx(late - LONG_SHARE * given.left_s)
    assert clock(None).long_recovery_from is clock(300, recovers=False).long_recovery_from is None
    long = replace(given, recovery_share=LONG_SHARE)
    more_s = (LONG_SHARE - RECOVERY_SHARE) * given.left_s
    assert given.search_deadline - long.search_deadline == pytest.approx(more_s)
    assert long.recovery_deadline == given.recovery_deadline


def test_a_slow_test_split_is_expected_to_stay_slow() -> None:
    given = clock(300)
    before = given.rest_s()
    given.rest_took(before, before / 2)
    assert given.rest_s() == before
    given.rest_took(before, 3 * before)
    assert given.rest_s() == pytest.approx(3 * before)


def test_long_runs_are_timed_less_often_at_each_input(whole_tables) -> None:
    one = clock(300, latency_s=0.006)
    three = replace(clock(300, latency_s=0.002), further_s=(0.002, 0.002))
    runs_s = 2 * FASTER * 0.006 * RUNS
    with whole_tables():
        assert three.timing_s(5) - one.timing_s(5) == pytest.approx(5 * runs_s * 2 / 3)


def test_a_slow_input_does_not_lengthen_the_timing_at_a_fast_one() -> None:
    """A prompt takes 14 times as long as a token, and gets fewer rounds."""
    token, prompt = clock(300, latency_s=0.03), clock(300, latency_s=0.42)
    both, shared_s = replace(token, further_s=(0.42,)), REPORT_S + 3 * token.open_s
    assert both.timing_s(3) == pytest.approx(token.timing_s(3) + prompt.timing_s(3) - shared_s)
    tuned = replace(both, is_tuned=True)
    more_s = replace(token, is_tuned=True).timing_s(3) - token.timing_s(3)
    assert tuned.timing_s(3) - both.timing_s(3) == pytest.approx(more_s), "settings of one input"


def test_slow_models_are_timed_as_often_as_there_are_rounds(whole_tables) -> None:
    slow, tuned = clock(300, latency_s=0.6), replace(clock(300, latency_s=0.6), is_tuned=True)
    with whole_tables():
        assert enough_rounds(60, 0.6) == 10
        for given, runs in ((slow, RUNS), (tuned, RUNS_OF_TWO)):
            one_s = given.timing_s(2) - given.timing_s(1) - given.open_s
            pair_s, rounds = 2 * FASTER * 0.6, 12 + 3  # of three passes, each with a warm-up
            assert rounds * pair_s < one_s < 1.25 * rounds * pair_s * runs / RUNS


def test_files_are_run_while_there_is_room() -> None:
    given = clock(60, 2.0)
    assert given.has_room(3, 2.0)
    assert not given.has_room(3, 57.0)
    given.file_took(20.0)
    given.file_took(5.0)
    assert given.next_file_s == 20.0
    assert (given.rest_s(), given.rest_s(4.0)) == (1.5, 6.0)
    assert given.after_recovery_s(2) == pytest.approx(2 * 21.5 + 2 + given.timing_s(2))
