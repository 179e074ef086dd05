"""Write the sections of the page as HTML, the decision first."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping
from typing import Any

from autocompress.report.figures.latency import prediction_words
from autocompress.report.info import RunInfo
from autocompress.report.latency_info import settings_words, time_info
from autocompress.report.tables import (
    points_table,
    robustness_table,
    robustness_words,
    steps_table,
    towers_table,
    trust_table,
)
from autocompress.report.words import bytes_words, metric_words, ms_words
from autocompress.results.front import ParetoFront
from autocompress.results.measurement import LATENCY_WORDS

# Name -> title in the navigation, in the order of the page.
SECTIONS = {
    "decide": "Which one?",
    "front": "Front",
    "modules": "Modules",
    "spending": "Bytes and time",
    "robustness": "Robustness",
    "trust": "Trust",
    "search": "Search",
}


def sections(info: RunInfo, figures: Collection[str]) -> list[str]:
    """Return the sections of the page.

    Args:
        info: content of a run folder.
        figures: names of the figures that the page has.
    """
    return [
        _decide(info),
        _front(info),
        _modules(),
        _spending(info),
        _robustness(info),
        _trust(info),
        _search(info, figures),
    ]


def _section(name: str, title: str, *parts: str) -> str:
    return f"<section id='{name}'><h2>{title}</h2>{''.join(parts)}</section>"


def _drawing(name: str, label: str) -> str:
    label = html.escape(label, quote=True)
    return f"<div class='figure' data-figure='{name}' role='img' aria-label='{label}'></div>"


def _folded(title: str, *parts: str) -> str:
    return f"<details><summary>{title}</summary>{''.join(parts)}</details>"


def _paragraph(words: str) -> str:
    return f"<p>{html.escape(words)}</p>" if words else ""


def baseline_words(info: RunInfo) -> str:
    """Return a line on the float model and on the points.

    Args:
        info: content of a run folder.
    """
    base, metric = info.front.baseline, metric_words(info.run)
    test = "" if base.test_accuracy is None else f" and {metric.value(base.test_accuracy)} on test"
    count = f"{len(info.front)} verified point" + "s" * (len(info.front) != 1)
    return html.escape(
        f"Float model: {bytes_words(base.size_bytes)}, {ms_words(base.latency_ms)}, "
        f"{metric.name} {metric.value(base.accuracy)} on validation{test}. {count}."
    )


def _source_words(front: ParetoFront) -> str:
    """Return where the latencies of a front come from; a resumed run may have two sources."""
    sources = [front.baseline, *(point.measured for point in front.points)]
    return " ".join(
        LATENCY_WORDS[name] for name in dict.fromkeys(m.latency_source for m in sources)
    )


def _made_words(front: ParetoFront) -> str:
    """Return how the numbers of the points came about."""
    if all(point.measured.latency_source == "measured" for point in front.points):
        return "that were run and measured"
    return "whose size and accuracy were measured; the text above says where latencies come from"


def _decide(info: RunInfo) -> str:
    metric = metric_words(info.run)
    asks = "Accuracy that I can lose" if metric.sign > 0 else f"{metric.name} that I can add"
    left_out = "".join(_paragraph(words) for words in info.front.left_out())
    return (
        "<section id='decide'><h2>Which one do I take?</h2>"
        "<p id='answer' aria-live='polite'></p>"
        f"<div id='dial'><label for='drop'>{html.escape(asks[0].upper() + asks[1:])}</label>"
        "<input id='drop' type='range' min='0' step='1' list='drops'><output for='drop'></output>"
        f"</div><div id='cards'></div>{_paragraph(_source_words(info.front))}{left_out}</section>"
    )


def _front(info: RunInfo) -> str:
    metric = metric_words(info.run)
    text = (
        f"Coloured points are ONNX files {_made_words(info.front)}. Grey points are trials, "
        "at the values that the search predicted; a double click shows those outside, too. Letters "
        "are the recommended points (B balanced, S smallest, F fastest, A most accurate). A click "
        "on a point, or on a row of the table, chooses it in all figures and tables."
    )
    pair = "".join(
        f"<div><h3>{title}</h3>{_drawing(name, f'{metric.axis} against {title.lower()}')}</div>"
        for name, title in (("front-size", "Size"), ("front-latency", "Latency"))
    )
    downloads = (
        "<p class='downloads'><button data-save='front.csv'>front.csv</button>"
        "<button data-save='front.json'>front.json</button></p>"
    )
    return _section(
        "front",
        "The front",
        _paragraph(text),
        f"<div class='pair'>{pair}</div>",
        points_table(info),
        downloads,
        _folded("The front in three dimensions", _drawing("front-3d", "the front")),
    )


def _modules() -> str:
    text = (
        "One row per module, in towers and blocks; rows of sums show means over parameters. Empty "
        "cells are untouched. A pruning ratio is shown at the root of its channel group."
    )
    return _section(
        "modules",
        "What was done where",
        _paragraph(text),
        "<div class='controls'><label>Point <select class='points'></select></label>"
        "<label>Show <select id='columns'></select></label>"
        "<label>Find <input id='find' type='search' placeholder='part of a name'></label>"
        "<span><button id='unfold'>Unfold all</button><button id='fold'>Fold all</button></span>"
        "</div><div class='wide tall'><table id='tree'></table></div>",
    )


def _spending(info: RunInfo) -> str:
    parts = [
        "<div class='controls'><label>Point <select class='points'></select></label></div>"
        "<div id='spent'></div>"
    ]
    towers = towers_table(info)
    if towers:
        text = (
            "Each tower alone is compressed as in the point, without recovery, while the others "
            "stay as they are; on up to 512 samples of the validation split. Losses of towers need "
            "not add up."
        )
        parts.append(f"<h3>Which tower lost what</h3>{_paragraph(text)}{towers}")
    if info.run.get("time"):
        share = time_info(info).modules_share
        text = (
            f"Modules, which can be compressed, take {share:.0%} of the float model's time. "
            f"Operators between them take the rest. {settings_words(info)}"
        )
        drawn = _drawing("time", "time of the float model by module and operator")
        parts.append(_folded("Where the time of the float model goes", _paragraph(text), drawn))
    return _section("spending", "Where bytes and time went", *parts)


def _robustness(info: RunInfo) -> str:
    table = robustness_table(info)
    text = robustness_words() if table else "No file was run on disturbed inputs."
    return _section("robustness", "Robustness", _paragraph(text), table)


def _trust(info: RunInfo) -> str:
    text = (
        "What the search predicted, against what was measured of the files. Predictions steer the "
        "search; the numbers of the points are the measured ones."
    )
    return _section(
        "trust",
        "Can the numbers be trusted?",
        _paragraph(text),
        trust_table(info),
        *(_paragraph(f"Of the task: {note}.") for note in info.run.get("notes") or []),
        "<h3>Latency, predicted and measured</h3>",
        _paragraph(prediction_words(info)),
        _drawing("predictions", "predicted against measured latency"),
        _paragraph(_refit_words(info.run)),
    )


def _refit_words(run: Mapping[str, Any]) -> str:
    """Return a text on the latency model: its quality, a busy machine, a second fit."""
    words = [f"Latency model: {run['latency_note']}."] if run.get("latency_note") else []
    check = run.get("front_check") or {}
    if check.get("warning"):
        words.append(f"While the front was timed, {check['warning']}.")
    refit = run.get("refit") or {}
    before = refit.get("before")
    if before is not None:
        words.append(
            f"The mean prediction error on the front was {before:.1%}, so the "
            f"model was fitted again to the front's measurements (error {refit['mape']:.1%} "
            "on the same points)."
        )
    return " ".join(words)


def _search(info: RunInfo, figures: Collection[str]) -> str:
    parts = [
        _paragraph(_search_words(info)),
        "<h3>Progress</h3>",
        _paragraph(
            "The hypervolume is the share of the box below the float model's size and latency, and "
            "a tenth of its accuracy, that the trials so far dominate."
        ),
        _drawing("hypervolume", "hypervolume by trial"),
    ]
    if "recovery" in figures:
        text = (
            "Each line is a trained trial: its accuracy loss after each rung of training, and "
            "after the final training of the front."
        )
        drawn = _drawing("recovery", "accuracy loss over training steps")
        parts += ["<h3>Recovery</h3>", _paragraph(text), drawn]
    if len(info.sensitivity):
        text = (
            "Divergence of the outputs when one module alone is compressed, on calibration "
            "samples; sensitivity.csv has all modules and choices."
        )
        drawn = f"<div class='wide'>{_drawing('sensitivity', 'divergence by module')}</div>"
        parts.append(_folded("Sensitivity of modules", _paragraph(text), drawn))
    steps = steps_table(info)
    parts.append(_folded("Where the time of the search went", steps) if steps else "")
    return _section("search", "How the search went", *parts)


def _search_words(info: RunInfo) -> str:
    """Return how many trials there were, and how long they took."""
    count = sum(info.states.values())
    states = {"COMPLETE": "completed", "PRUNED": "stopped early", "FAIL": "failed"}
    ends = [f"{n} {states.get(name, name.lower())}" for name, n in info.states.items()]
    words = f"{count} trials: {', '.join(ends)}." if count else "No trial was recorded."
    seconds = info.run.get("seconds")
    return words + ("" if seconds is None else f" The search took {seconds / 60:.1f} minutes.")
