"""A profile that cannot be right is not used, and a wrong model is said.

Made-up times, no clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

import autocompress as ac
from autocompress.cli.tables import latency_notes
from autocompress.errors import TargetError
from autocompress.report.page import write_report
from autocompress.targets.device.sessions import DEFAULT
from autocompress.targets.latency_model import profile
from autocompress.targets.latency_model.breakdown import where_time_goes
from autocompress.targets.latency_model.fitting.fit import LatencyModel
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.quality import (
    held_out,
    held_out_errors,
    missing_time,
    prediction_errors,
)
from autocompress.targets.latency_model.run import REST, Run
from autocompress.targets.workload import Kernel, Work

# Microseconds of a kernel by shape, form and whether half of its inputs are removed.
COST = {
    ("a", "float"): (30.0, 17.0),
    ("a", "int8"): (12.0, 7.0),
    ("b", "float"): (130.0, 70.0),
    ("b", "int8"): (36.0, 20.0),
}
OUTPUTS = {"a": 64, "b": 256}
AROUND, BORDER = 25.0, 6.0
ROWS, WIDTH = 8, 64
RATE = (
    ROWS * WIDTH**2 / 20.0
)  # multiply-adds per microsecond of the best product: a third faster than these kernels
Spent = Mapping[str, tuple[float, float]]


def run(forms: str, narrow: str, role: str = "profiled") -> Run:
    """Four modules of two shapes, each in float or on integers and whole or half as wide.

    A change of form costs a conversion.
    """
    kernels, spent, around = {}, {}, AROUND
    for i, (letter, half) in enumerate(zip(forms, narrow, strict=True)):
        shape, form = "ab"[i % 2], {"f": "float", "i": "int8"}[letter]
        kept = WIDTH // 2 if half == "h" else WIDTH
        kernels[f"m{i}"] = Kernel(
            f"linear {shape}", ROWS, form, kept, OUTPUTS[shape], float(kept * OUTPUTS[shape])
        )
        spent[f"m{i}"] = (COST[shape, form][half == "h"], 1.0)
    changes = sum(one != other for one, other in pairwise(forms))
    around += BORDER * changes
    spent[REST] = (around, 3.0)
    ms = sum(us for us, _ in spent.values()) / 1e3
    amounts = {"model": 1.0, "changes": float(changes)}
    return Run(
        role,
        Work(kernels, amounts),
        ms,
        (ms, ms),
        spent if role == "profiled" else {},
        {"Softmax": around},
    )


def runs() -> list[Run]:
    mixtures = [
        (*map("".join, pair),) for pair in product(product("fi", repeat=4), product("wh", repeat=4))
    ]
    order = np.random.default_rng(0).permutation(len(mixtures))
    chosen = [("ffff", "wwww"), *(mixtures[i] for i in order[:39])]
    return [run(*one) for one in chosen] + [run(*mixtures[i], "checked") for i in order[39:63]]


def table(found: list[Run]) -> LatencyTable:
    return LatencyTable(
        "onnxruntime-cpu", {}, DEFAULT, {}, found[0].milliseconds, tuple(found), product_rate=RATE
    )


def with_spent(found: list[Run], change) -> list[Run]:
    """The same runs, their profiles attributed otherwise."""
    return [replace(one, spent=change(one.spent)) if one.spent else one for one in found]


def lost(spent: Spent) -> Spent:
    """As on a BERT whose products were renamed: 2 % of the modules' time is found."""
    rest = sum(us for name, (us, _) in spent.items() if name != REST)
    return {name: (0.02 * us, n) for name, (us, n) in spent.items() if name != REST} | {
        REST: (spent[REST][0] + 0.98 * rest, 7.0)
    }


def levelled(spent: Spent) -> Spent:
    """Every module has the same: all of their time is there, at the wrong places."""
    modules = [us for name, (us, _) in spent.items() if name != REST]
    return {
        name: part if name == REST else (sum(modules) / len(modules), 1.0)
        for name, part in spent.items()
    }


def test_a_right_profile_is_used_and_nothing_is_said() -> None:
    right = table(runs())
    assert (right.doubt, right.note) == ("", "")
    assert right.model == LatencyModel.of(right.runs)
    assert right.check["mape"] < 0.01


def test_a_lost_attribution_is_told_by_the_multiply_adds() -> None:
    found = table(with_spent(runs(), lost))
    assert found.note.startswith(
        "operators' times are not used: the profile gives modules with 100% of the float "
        "multiply-adds less time than products can "
        "take here, such as m"
    )
    assert found.note.endswith("; 40 whole models are regressed instead")
    assert "\n" not in found.note
    assert found.model == LatencyModel.of(found.runs, attributed=False)
    assert found.check["mape"] < 0.03
    assert found.check["kendall_tau"] > 0.9
    broken = held_out_errors(LatencyModel.of(found.runs), held_out(found.runs))
    assert broken["mape"] > 2 * found.check["mape"], "the fault is one"


def test_one_lost_module_is_enough() -> None:
    def without(spent: Spent) -> Spent:
        return {name: (0.0, 1.0) if name == "m2" else part for name, part in spent.items()}

    assert missing_time(runs(), RATE) == ""
    assert missing_time(with_spent(runs(), without), RATE).endswith("such as m2")
    assert missing_time(with_spent(runs(), without), 0.0) == "", (
        "of a machine whose products are unknown nothing can be said"
    )


def test_what_takes_no_time_to_speak_of_may_lack_it() -> None:
    """A product of constants is computed when the session is created."""

    def folded(one: Run) -> Run:
        return replace(
            one,
            work=one.work._replace(
                kernels={**one.work.kernels, "c": Kernel("linear c", 1, "float", 64, 64, 4096.0)}
            ),
        )

    assert missing_time([folded(one) for one in runs()], RATE) == ""


def test_an_error_beyond_15_percent_on_unseen_candidates_falls_back() -> None:
    found = table(with_spent(runs(), levelled))
    assert missing_time(found.runs, RATE) == ""
    broken = held_out_errors(LatencyModel.of(found.runs), held_out(found.runs))["mape"]
    assert broken > 0.15
    assert found.note == (
        "operators' times are not used: with them, candidates that the model has not seen were "
        f"predicted {broken:.0%} wrong; "
        "40 whole models are regressed instead"
    )
    assert found.check["mape"] < 0.03


def test_where_neither_is_right_it_is_said() -> None:
    generator = np.random.default_rng(1)
    noisy = [
        replace(one, milliseconds=one.milliseconds * float(np.exp(generator.normal(0, 0.5))))
        for one in runs()
    ]
    found = table(noisy)
    assert found.check["mape"] > 0.15
    assert f"predictions are rough (mean error {found.check['mape']:.0%})" in found.note
    both = table(with_spent(noisy, lost))
    assert both.note.startswith("operators' times are not used: ")
    assert both.note.endswith(f"; predictions are rough (mean error {both.check['mape']:.0%})")


def test_a_table_keeps_what_its_note_follows_from(tmp_path: Path) -> None:
    found = table(with_spent(runs(), lost))
    found.save(tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text())["note"] == found.note
    again = LatencyTable.load(tmp_path / "table.json")
    assert again == found
    assert again.note == found.note
    assert again.product_rate == RATE


@pytest.mark.slow
def test_a_search_with_a_lost_attribution_says_so_everywhere(
    cnn_task, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The times are computed, so that they are the same on every machine."""

    def nothing(profile_, model, owners, work):
        return {REST: (sum(node.microseconds for node in profile_), float(len(profile_)))}, {
            "Conv": 1.0
        }

    monkeypatch.setattr(profile, "attribute", nothing)
    monkeypatch.setenv(
        "AUTOCOMPRESS_CACHE", str(tmp_path / "cache")
    )  # such a table is for nobody else
    space = {
        "modules": [
            {
                "match": "*",
                "weight_bits": [4, 8],
                "activation_bits": [8, 32],
                "pruning_ratio": [0.0, 0.5],
            }
        ]
    }
    space["distillation"] = {"steps": 0}
    ac.search(cnn_task, space=space, target="analytic:microcontroller", n_trials=2, out=tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["latency_note"].startswith(
        "operators' times are not used: the profile gives modules with 100% of the float"
    )
    assert run["time"]["modules_share"] > 0.5, "the regression finds the modules again"
    line = f"latency model: {run['latency_note']}"
    assert line in " ".join(capsys.readouterr().err.split())
    assert latency_notes(tmp_path) == [line]
    text = write_report(tmp_path).read_text()
    assert "times are not used: the profile gives modules with 100% of the float" in text


def test_shares_of_a_doubted_profile_are_the_models_own() -> None:
    right, doubted = table(runs()), table(with_spent(runs(), lost))

    class NoModules:
        module_map, digest = (), "of no modules"

    own = [replace(one, structure=NoModules.digest) for one in (right, doubted)]
    shares = [where_time_goes(one, NoModules()) for one in own]
    assert doubted.note == shares[1]["note"]
    assert [row["operator"] for row in shares[1]["operators"]] == ["all operators"]
    assert shares[0]["modules_share"] == pytest.approx(320 / 345, abs=0.02)
    assert shares[1]["modules_share"] > 0.7


def test_the_check_says_on_how_many_models_it_rests() -> None:
    check = table(runs()).check
    assert (check["candidates"], check["models"]) == (24, 40)
    assert table(runs()[:40]).check == {}


def test_a_table_is_made_before_anything_is_measured(tmp_path: Path) -> None:
    empty = LatencyTable("onnxruntime-cpu", {}, DEFAULT, {}, 1.0, ())
    assert (empty.check, empty.note, empty.doubt) == ({}, "", "")
    empty.save(tmp_path / "table.json")
    with pytest.raises(TargetError, match="no profiled model"):
        LatencyTable.load(tmp_path / "table.json")


def test_verified_files_serve_a_table_of_few_runs() -> None:
    """The forms of a file that no profile shows are learned from it."""
    verified = [run("iiii", "wwww", "front"), run("ifif", "whwh", "front")]
    works, ms = [one.work for one in verified], [one.milliseconds for one in verified]
    for first in ((), (run("ffff", "wwww"),)):
        learned = LatencyTable("onnxruntime-cpu", {}, DEFAULT, {}, 1.0, first)
        learned = learned.with_front(works, ms)
        predicted = [learned.predict(work) for work in works]
        assert predicted == pytest.approx(ms, rel=0.15)
        assert learned.deviation_ms(works[0]) > 0


def test_errors_are_json_although_one_side_is_constant() -> None:
    errors = prediction_errors([1.0, 1.0], [1.0, 2.0])
    assert errors["kendall_tau"] is None
    assert json.loads(json.dumps(errors, allow_nan=False)) == errors
    assert prediction_errors([1.0, 2.0], [1.0, 2.0])["kendall_tau"] == 1.0
