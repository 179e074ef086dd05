"""Use the page as a reader does, in a headless Chromium, where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import report_runs
from chromium import Chromium, chromium_path

from autocompress import ParetoFront
from autocompress.report.page import write_report
from autocompress.results.files import write_json

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium_path() is None, reason="there is no Chromium"),
]
PHONE = (390, 844)
# Parts of the page that are wider than the window, and do not scroll inside themselves.
WIDER = """[...document.querySelectorAll("body *")].filter((part) =>
  part.getBoundingClientRect().right > innerWidth + 1 && part.checkVisibility()
  && !part.closest(".wide, nav, .js-plotly-plot")).map((part) => part.outerHTML.slice(0, 200))"""
TRIALS = "[...document.querySelectorAll('.card')].map((card) => Number(card.dataset.trial))"
SET = """(() => {{ const slider = document.getElementById("drop"); slider.value = {};
  slider.dispatchEvent(new Event("input")); }})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(report_runs.write_run(tmp_path_factory.mktemp("large")))


def check(browser: Chromium) -> None:
    """Nothing went wrong, nothing was fetched, and nothing is cut off."""
    assert browser.problems == []
    assert browser.requests == []
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run(WIDER) == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(1440, 900), PHONE])
def test_a_large_run_is_readable(
    browser: Chromium, large: Path, size: tuple[int, int], dark: bool
) -> None:
    browser.open(large, *size, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    browser.run("new Promise((end) => setTimeout(end, 500))")
    check(browser)
    places = browser.run("document.querySelectorAll('.figure').length")
    assert browser.run("document.querySelectorAll('.figure[data-drawn] svg').length") >= places
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 384) == dark


def test_the_answer_is_on_the_first_screen(browser: Chromium, large: Path) -> None:
    for size in ((1440, 900), PHONE):
        browser.open(large, *size)
        below = "document.querySelector('.card .facts').getBoundingClientRect().bottom"
        assert browser.run(below) < size[1]


def test_the_slider_moves_the_recommendation(browser: Chromium, large: Path) -> None:
    browser.open(large)
    seen = []
    for stop in range(browser.run("view.stops.length")):
        browser.run(SET.format(stop))
        trials = browser.run(TRIALS)
        assert trials == browser.run(f"view.stops[{stop}].choices.map((choice) => choice.trial)")
        assert browser.run("document.getElementById('answer').textContent").startswith(
            f"Take trial {trials[0]}: "
        )
        drawn = "document.querySelector('[data-figure=front-size]')"
        assert len(browser.run(f"{drawn}.data[3].x")) == len(trials)
        assert browser.run(f"{drawn}.layout.shapes[0].y0 === view.stops[{stop}].drop")
        seen.append(trials)
    assert len({trials[0] for trials in seen}) > 3, "the balanced point moves"
    assert browser.problems == []


def test_a_choice_is_shown_everywhere(browser: Chromium, large: Path) -> None:
    browser.open(large)
    browser.run("document.querySelector('tr[data-trial=\"15\"]').click()")
    assert browser.run("document.querySelectorAll('tr.chosen[data-trial=\"15\"]').length") == 2
    assert (
        browser.run("[...document.querySelectorAll('select.points')].map((s) => s.value)")
        == ["15"] * 2
    )
    for name in ("front-size", "front-latency"):
        figure = f"document.querySelector('[data-figure={name}]')"
        axis = {"front-size": "bytes", "front-latency": "ms"}[name]
        assert browser.run(f"{figure}.data[4].x[0] === view.points[15].{axis}")
    # A click on a marker of one figure reaches the other one.
    figure = "document.querySelector('[data-figure=front-size]')"
    browser.run(f"{figure}.emit('plotly_click', {{points: [{{customdata: [12, '']}}]}})")
    other = "document.querySelector('[data-figure=front-latency]')"
    assert browser.run(f"{other}.data[4].x[0] === view.points[12].ms")
    assert browser.run("document.querySelector('#spent .bars') !== null")


def test_modules_fold_and_are_found(browser: Chromium, large: Path) -> None:
    count = "document.querySelectorAll('#tree tbody tr').length"
    browser.open(large)
    assert browser.run(count) == 3 + 50, "towers and blocks"
    browser.run("document.querySelector('#tree button').click()")
    assert browser.run(count) == 3 + 25, "the first tower is folded"
    browser.run("document.getElementById('unfold').click()")
    assert browser.run(count) == 3 + 50 + 300
    browser.run("document.getElementById('fold').click()")
    assert browser.run(count) == 3
    browser.run(
        "(() => { const find = document.getElementById('find'); find.value = 'layers.7.mlp.UP'; "
        "find.dispatchEvent(new Event('input')); })()"
    )
    assert browser.run(count) == 6, "two modules, in a block and a tower each"
    browser.run(
        "(() => { const list = document.getElementById('columns'); list.value = 'weight_bits'; "
        "list.dispatchEvent(new Event('change')); })()"
    )
    assert browser.run("document.querySelectorAll('#tree thead th').length") == 2 + 12
    check(browser)


@pytest.mark.parametrize("size", [(1440, 900), PHONE])
@pytest.mark.parametrize("case", ["one point", "errors", "limits", "no test", "empty"])
def test_other_runs_are_readable(
    browser: Chromium, tmp_path: Path, case: str, size: tuple[int, int]
) -> None:
    of = {
        "one point": {"points": 1},
        "errors": {"run": {"metric": "perplexity"}, "accuracy": -20.0},
        "limits": {"run": {"limits": {"max_size_bytes": 10.0, "max_latency_ms": 0.1}}},
        "no test": {"test": False},
        "empty": {"points": 1},
    }[case]
    folder = report_runs.write_run(tmp_path / "run", **{"points": 4, "modules": 7, **of})
    if case == "empty":
        base = report_runs.front(1, report_runs.names(1)).baseline
        write_json(folder / "front.json", ParetoFront.of(base, []).to_json())
    browser.open(write_report(folder), *size)
    check(browser)
    cards = browser.run(TRIALS)
    assert bool(cards) == (case != "empty")
    answer = browser.run("document.getElementById('answer').textContent")
    begin = {"limits": "No point meets", "empty": "The search has no"}.get(case, "Take trial ")
    assert answer.startswith(begin)
