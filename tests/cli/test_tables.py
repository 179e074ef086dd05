"""Print tables whose cells were computed by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from autocompress import Candidate, FrontPoint, Measurement, ParetoFront
from autocompress.cli import tables
from autocompress.cli.tables import (
    latency_notes,
    notes,
    print_front,
    print_latency,
    print_modules,
)
from autocompress.model.channel_group import ChannelGroup, Member, all_of
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.model.uncovered import Uncovered
from autocompress.results.files import write_json
from autocompress.results.front import SearchResult
from autocompress.results.limits import Limits
from autocompress.search.problem.ranks import RankVerdict

BASE = Measurement(1000, 2.0, 0.9, None, {"accuracy_contrast": 0.85, "f1": 0.8}, True, 4000)


def point(trial: int, size: int, ms: float, accuracy: float, **changes: object) -> FrontPoint:
    # The clean accuracy on disturbed samples stands in the report; here it would hide the picks.
    metrics = {"accuracy_undisturbed": 0.9, "accuracy_contrast": 0.8, "f1": 0.75}
    measured = Measurement(size, ms, accuracy, None, metrics, True, 2000)
    found = FrontPoint(trial, Candidate(), measured, measured, f"models/{trial:04d}")
    return replace(found, **changes)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """Cells of the rows that were printed since."""
    console = Console(width=300, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    monkeypatch.setattr(tables, "console", console)

    def cells() -> list[list[str]]:
        lines = console.export_text().splitlines()
        rows = [line.strip().replace("┃", "│") for line in lines]
        inside = [row.removeprefix("│").removesuffix("│").split("│") for row in rows]
        return [[cell.strip() for cell in row] for row in inside]

    yield cells
    console.file.close()


def test_the_front_before_and_after(shown: Callable[[], list[list[str]]]) -> None:
    points = [point(7, 250, 0.5, 0.85, deployed_gap=-0.001), point(3, 500, 1.6, 0.895)]
    print_front(ParetoFront.of(BASE, points))
    rows = [row for row in shown() if len(row) > 1]
    header = rows[0]
    assert header == [
        "point",
        "pick",
        "KB",
        "KB in memory",
        "smaller",
        "ms",
        "faster",
        "validation",
        "test",
        "f1",
        "contrast",
        "gap",
    ]
    cells = "float baseline,,1.0,4.0,1.00x,2.000,1.00x,0.9000,,0.8000,0.8500,"
    assert rows[1] == cells.split(",")
    by_point = {row[0]: dict(zip(header, row, strict=True)) for row in rows[1:]}
    assert by_point["trial 7"]["smaller"] == "4.00x"
    assert by_point["trial 7"]["faster"] == "4.00x"
    assert by_point["trial 7"]["gap"] == "-0.0010"
    assert by_point["trial 3"]["pick"] == "smallest, fastest, accurate, knee", "within a hundredth"


LONG = ("latency at prefill (ms)", "latency at decode (ms)", "greedy tokens as simulated")


def wide_front() -> ParetoFront:
    """A front of a language model with long names of metrics, whose decode phase decides."""

    def measured(size: int, ms: float) -> Measurement:
        metrics = dict(zip(LONG, (100 * ms, ms, 0.987654), strict=True))
        metrics |= {"accuracy": 0.5, "accuracy_token_dropout": -130.0}
        return Measurement(size, ms, -123.4567, -124.5678, metrics, True, 987654321)

    points = []
    for trial, size, ms in ((1, 123_456_789, 12.345), (2, 223_456_789, 11.345)):
        own = measured(size, ms)
        points.append(FrontPoint(trial, Candidate(), own, own, f"models/{trial:04d}"))
    return ParetoFront.of(measured(538_000_000, 45.678), points)


def printed(monkeypatch: pytest.MonkeyPatch, width: int, is_terminal: bool) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(
            soft_wrap=True, width=width, force_terminal=is_terminal, record=True, file=nowhere
        )
        monkeypatch.setattr(tables, "console", console)
        print_front(wide_front())
        return console.export_text()


def test_a_file_gets_whole_numbers_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, 100, False)
    assert "…" not in text
    assert "no room" not in text
    for word in ("smallest, ", "123456.8", "4.36x", "12.345", "-123.4567", LONG[0], LONG[2]):
        assert word in text
    assert "1234.5000" in text, "of the other phase"
    assert LONG[1] not in text, "it decides, so it is the latency"
    assert "12.3450" not in text


@pytest.mark.parametrize(
    ("width", "names"),
    [
        (160, "dropped, accuracy, greedy tokens as simulated"),
        (80, f"dropped, accuracy, {LONG[2]}, {LONG[0]}, KB in memory, gap, faster, smaller"),
    ],
)
def test_a_terminal_shows_the_columns_that_it_has_room_for(
    monkeypatch: pytest.MonkeyPatch, width: int, names: str
) -> None:
    text = printed(monkeypatch, width, True)
    lines = text.splitlines()
    assert max(map(len, lines[:-1])) <= width
    assert lines[-1] == f"no room for: {names}; report.html shows all"
    assert "…" not in text
    for word in ("smallest,", "123456.8", "12.345", "-123.4567", "-124.5678"):
        assert word in text


def result(tmp_path: Path, *points: FrontPoint, limits: Limits = Limits()) -> SearchResult:  # noqa: B008
    return SearchResult(ParetoFront.of(BASE, points), tmp_path, limits)


def test_a_front_that_is_as_it_should_be_needs_no_notes(tmp_path: Path) -> None:
    assert notes(result(tmp_path, point(1, 500, 1.0, 0.9))) == []


def test_notes_name_points_that_run_differently_or_became_fragile(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"latency_note": "predictions are rough"})
    points = [
        point(1, 500, 1.0, 0.9, deployed_gap=0.006),
        point(2, 400, 1.1, 0.8, deployed_gap=-0.02, fragile=("contrast", "gaussian_noise")),
        point(3, 300, 1.2, 0.7, deployed_gap=0.005),
    ]
    found = notes(result(tmp_path, *points, limits=Limits(100.0)))
    assert found == [
        "no point meets the limits; the nearest has 300 B, 200 B above the limit",
        "deployed accuracy differs from the simulated one by more than 0.005 at trial 2, 1",
        "trial 2 is fragile under contrast, gaussian_noise: it loses more accuracy there than on "
        "clean inputs",
        "latency model: predictions are rough",
    ]


def test_a_run_without_a_note_says_nothing_of_its_model(tmp_path: Path) -> None:
    assert latency_notes(tmp_path) == []
    write_json(tmp_path / "run.json", {"latency_note": ""})
    assert latency_notes(tmp_path) == []


def test_modules_groups_ranks_and_the_rest(shown: Callable[[], list[list[str]]]) -> None:
    module = CompressibleModule(
        "fc", "linear", (1000, 20), True, 20000, 1, "text", "mlp", "fc", ("tied",)
    )
    member = Member("fc", "out", all_of(1000), all_of(1000))
    groups = (
        ChannelGroup("fc", "neurons", 1000, 1, (member, replace(member, side="in"))),
        ChannelGroup("q", "heads", 64, 16, (member,), reason="it is an output"),
    )
    rest = (Uncovered("norm", "BatchNorm", 0.25, 0.125), Uncovered("x", "MatMul", 0.0, 0.5))
    ranks = [
        RankVerdict("fc", 0.25, "svd", 5100, 20000, 1.5),
        RankVerdict("fc", 0.5, "svd", 10200, 20000, None),
    ]
    print_modules(ModuleMap((module,), groups, rest, 1, 1), ranks)
    rows = [row for row in shown() if len(row) > 1]
    assert ["fc", "linear", "1000 x 20", "21,000", "20,000", "text", "mlp", "fc", "tied"] in rows
    assert ["fc", "neurons", "1000", "1", "yes"] in rows, "a module counts once, whatever its sides"
    assert ["q", "heads", "4", "1", "no: it is an output"] in rows
    assert ["fc", "0.25", "svd", "0.26x", "1.50x", ranks[0].words] in rows
    assert ["fc", "0.5", "svd", "0.51x", "", ranks[1].words] in rows
    assert ["norm", "BatchNorm", "25.00%", "12.50%"] in rows
    assert ["total", "", "25.00%", "62.50%"] in rows


def test_where_the_time_goes(shown: Callable[[], list[list[str]]]) -> None:
    latency = {
        "milliseconds": 2.0,
        "modules_share": 0.75,
        "modules": [
            {
                "module": "a",
                "share": 0.5,
                "milliseconds": 1.0,
                "forms": {"float": 0.8, "int8": 0.2},
            },
            {
                "module": "b",
                "share": 0.25,
                "milliseconds": 0.5,
                "forms": {"float": 0.1, "int16": 0.2},
            },
        ],
        "operators": [{"operator": "Softmax", "share": 0.25, "milliseconds": 0.5}],
        "note": "predictions are rough",
    }
    print_latency(latency)
    rows = shown()
    assert ["module or operator", "share", "ms", "as int8", "as int16"] in rows
    assert ["a", "50.0%", "1.0000", "0.25x", ""] in rows
    assert ["b", "25.0%", "0.5000", "", "2.00x slower"] in rows
    assert ["(Softmax)", "25.0%", "0.5000", "", ""] in rows
    assert ["in modules, compressible", "75.0%", "1.5000", "", ""] in rows
    assert ["in (operators) between them", "25.0%", "0.5000", "", ""] in rows
    assert rows[-1] == ["latency model: predictions are rough"]
