"""Put numbers into words."""

from __future__ import annotations

import pytest

from autocompress import Candidate, ModuleConfig
from autocompress.candidate import Distillation
from autocompress.report.words import (
    bytes_words,
    done_words,
    metric_words,
    ms_words,
    own_names,
    times_words,
)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 KB"),
        (1500, "1.50 KB"),
        (306_624, "307 KB"),
        (999_700, "1.00 MB"),
        (10_869_475, "10.9 MB"),
        (2.5e9, "2.50 GB"),
        (99_960_000, "100 MB"),
    ],
)
def test_sizes(size: float, words: str) -> None:
    assert bytes_words(size) == words


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (0.0123, "0.0123 ms"),
        (0.5636, "0.564 ms"),
        (2.24, "2.24 ms"),
        (99.96, "100 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (12_340, "12.3 s"),
    ],
)
def test_times(ms: float, words: str) -> None:
    assert ms_words(ms) == words


def test_ratios_say_which_way() -> None:
    assert times_words(10.0, 2.0, "smaller", "larger") == "5.00x smaller"
    assert times_words(354.0, 10.0, "faster", "slower") == "35.4x faster"
    assert times_words(2.0, 3.0, "faster", "slower") == "1.50x slower"
    assert times_words(2.0, 2.001, "faster", "slower") == "as fast as before"
    assert times_words(2.0, 2.0, "smaller", "larger") == "same size"


def test_a_metric_without_a_name_is_accuracy() -> None:
    metric = metric_words({})
    assert metric.value(0.9) == "0.9000"
    assert (metric.lost(0.01), metric.lost(-0.01)) == ("loses 0.0100", "gains 0.0100")
    assert (metric.lost(0.0), metric.most(0.0)) == ("loses nothing", "lose nothing")
    assert metric.most(0.01, one=True) == "loses at most 0.01"
    assert metric.axis == "accuracy lost"
    assert metric.gap(-0.5) == "-0.5000"
    assert metric.label("accuracy (test)") == "accuracy (test)"
    assert metric.sign_of("perplexity") == 1.0


def test_errors_are_shown_without_their_sign() -> None:
    metric = metric_words({"metric": "squared_error"})
    assert metric.value(-0.25) == "0.2500"
    assert metric.lost(0.5) == "adds 0.5000 squared error"
    assert metric.lost(-0.5) == "saves 0.5000 squared error"
    assert metric.most(0.5) == "add at most 0.5 squared error"
    assert (metric.gap(-0.5), metric.gap(0.0)) == ("+0.5000", "+0.0000")
    assert metric.axis == "squared error added"
    assert metric.label("accuracy (test)") == "squared error (test)"
    assert metric.sign_of("accuracy (test)") == metric.sign_of("perplexity") == -1.0
    assert metric.sign_of("f1") == 1.0
    assert metric_words({"metric": "f1"}).value(0.25) == "0.2500"


def test_columns_of_metrics_are_unlike_all_others() -> None:
    names = own_names(["f1", "a", "metric_a", "b"], ["a", "b", "metric_b"])
    assert names == {"f1": "f1", "a": "metric_metric_a", "metric_a": "metric_a"} | {
        "b": "metric_metric_b"
    }
    assert list(own_names(["a", "metric_a"], ["a", "metric_a"]).values()) == [
        "metric_metric_a",
        "metric_metric_metric_a",
    ]


def test_what_was_done_is_one_line() -> None:
    configs = {
        "a": ModuleConfig(4, 8, pruning_ratio=0.5),
        "b": ModuleConfig(2, rank_ratio=0.5, sparsity=0.5),
    }
    words = "3-bit weights on average, 8-bit inputs in 1 module, pruning in 1 module, lower "
    words += "rank in 1 module, zeros in 1 module"
    assert done_words(Candidate.of(configs)) == words
    trained = Candidate.of({"a": ModuleConfig(4)}, Distillation(steps=80))
    parameters = {"a": 300, "untouched": 100}
    assert done_words(trained, parameters) == "11-bit weights on average, 80 steps of training"
    assert done_words(Candidate()) == "untouched"
