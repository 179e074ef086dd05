"""Keep the table of sensitivities, and say how it was obtained."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.candidate import ModuleConfig
from autocompress.search.propose.sensitivity_table import (
    Row,
    Sensitivity,
    divergences,
    read_rows,
    write_rows,
)

BITS4 = ModuleConfig(weight_bits=4)
ROWS = [
    Row("a.b", BITS4, 0.125, 1000, 2.5),
    Row("c, d", ModuleConfig(rank_ratio=0.25, decomposition="tucker"), 0.0, 7, 1e-3),
]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.csv"
    write_rows(path, ROWS)
    assert read_rows(path) == ROWS
    assert divergences(ROWS) == {("a.b", BITS4): 0.125, ("c, d", ROWS[1].config): 0.0}
    write_rows(path, [])
    assert read_rows(path) == []


@pytest.mark.parametrize(
    "text",
    [
        "module,config\na,{}\n",
        "module,config,divergence,bytes,ms\na,{,0.1,1,1\n",
        'module,config,divergence,bytes,ms\na,"{""depth"": 1}",0.1,1,1\n',
        "module,config,divergence,bytes,ms\na,{},much,1,1\n",
        "module,config,divergence,bytes,ms\na,{},0.1\n",
    ],
)
def test_a_damaged_table_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sensitivity.csv"
    assert read_rows(path) == []
    path.write_text(text)
    assert read_rows(path) == []


def test_words_say_what_was_measured_and_how_good_the_rest_is() -> None:
    rows = ROWS * 2
    assert Sensitivity(rows, 4, 1.0, 12.4, None, None).words == (
        "sensitivity: 4 of 4 choices measured in 12 s"
    )
    found = Sensitivity(rows, 3, 1.25, 12.4, 0.987, 1.26)
    assert found.words == (
        "sensitivity: 3 of 4 choices measured in 12 s, the others estimated in 1.2 s "
        "(the estimate is off by a factor of 1.3 in the median, rank correlation 0.99)"
    )
    part = Sensitivity(rows, 1, 1.25, 12.4, None, None, 2)
    assert part.words == (
        "sensitivity: 1 of 4 choices measured in 12 s, 2 estimated in 1.2 s; "
        "1 take the median of other modules"
    )
    blind = Sensitivity(rows, 0, 70.0, 0.0, None, None, 0)
    assert blind.words.startswith(
        "sensitivity: 0 of 4 choices measured in 0 s, none estimated: there was no time; until"
    )
    assert found.summary == {
        "measured": 3,
        "estimate_s": 1.25,
        "measure_s": 12.4,
        "rank_correlation": 0.987,
        "factor": 1.26,
    }
