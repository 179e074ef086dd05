"""Decide what a report shows, by hand-made runs."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autocompress import Measurement, ParetoFront
from autocompress.errors import RunFolderError
from autocompress.report.info import (
    RunInfo,
    before_after,
    hypervolume_history,
    read_run,
    recovery,
)
from autocompress.report.latency_info import (
    MOST_MODULES,
    predictions,
    settings_words,
    time_info,
)
from autocompress.report.module_rows import module_facts
from autocompress.results.files import write_json
from autocompress.results.front import read_front


def test_what_is_shown(run: Path) -> None:
    info = read_run(run)
    assert list(info.trials["number"]) == [1, 2, 3, 4]
    table = before_after(info.front)
    assert list(table["point"]) == ["float baseline", "trial 3", "trial 2", "trial 1"]
    assert table["smaller"][2] == 4.0
    assert info.folder == str(run)
    assert info.states == {"COMPLETE": 4, "FAIL": 1}
    history = hypervolume_history(info)
    assert len(history) == 4
    assert all(b >= a for a, b in pairwise(history))
    assert predictions(info).check_mape == 0.045


def test_the_point_that_keeps_a_floor_is_shown_where_a_better_one_misses_it(
    run: Path, front: ParetoFront
) -> None:
    first = front.points[0]
    m = replace(first.measured, metrics={"f1": 0.7})
    worse = replace(m, size_bytes=m.size_bytes + 1, metrics={"f1": 0.9})
    points = [replace(first, measured=m), replace(first, trial=99, measured=worse)]
    baseline = replace(front.baseline, metrics={"f1": 0.95})
    found = ParetoFront.of(baseline, points)
    assert [point.trial for point in found] == [first.trial]
    write_json(run / "front.json", found.to_json())
    content = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**content, "limits": {"floors": {"f1": 0.8}}})
    assert [point.trial for point in read_run(run).front] == [99]


def test_a_repeated_header_is_no_trial(run: Path) -> None:
    whole = read_run(run)
    for name in ("trials.csv", "sensitivity.csv"):
        lines = (run / name).read_text().splitlines(keepends=True)
        (run / name).write_text("".join([lines[0], *lines]))
    info = read_run(run)
    assert list(info.trials["number"]) == list(whole.trials["number"])
    assert hypervolume_history(info) == hypervolume_history(whole)
    assert list(info.sensitivity["divergence"]) == [0.1]


@pytest.mark.parametrize("content", ["", "\n", "number,state", "a,b\n1,2\n3,4,5\n", "\x00"])
def test_rows_that_cannot_be_read_are_missing(run: Path, content: str) -> None:
    for name in ("trials.csv", "sensitivity.csv"):
        (run / name).write_text(content)
    info = read_run(run)
    assert len(info.trials) == len(info.sensitivity) == 0
    assert hypervolume_history(info) == []
    assert info.states == {}


def test_fragile_points_are_named(run: Path, front: ParetoFront) -> None:
    assert "fragile under" not in before_after(front).columns
    point = replace(front.points[1], fragile=("gaussian_noise", "contrast"))
    write_json(
        run / "front.json",
        replace(front, points=(front.points[0], point, *front.points[2:])).to_json(),
    )
    table = before_after(read_front(run))
    assert list(table["fragile under"]) == ["", "", "gaussian noise, contrast", ""]


def test_figures_of_some_files_are_shown(front: ParetoFront) -> None:
    first, *others = front.points
    some = {"accuracy_contrast": 0.6, "latency at 8 (ms)": 9.0}
    first = replace(first, measured=replace(first.measured, metrics=some))
    table = before_after(replace(front, points=(first, *others)))
    for column, value in (("accuracy (contrast)", 0.6), ("latency at 8 (ms)", 9.0)):
        assert table[column][1] == value
        assert list(table[column].isna()) == [True, False, True, True]


def test_a_metric_with_the_name_of_a_column_has_one_of_its_own(front: ParetoFront) -> None:
    first, *others = front.points
    first = replace(first, measured=replace(first.measured, metrics={"faster": 9.0}))
    before, after = before_after(front), before_after(replace(front, points=(first, *others)))
    assert list(after["faster"]) == list(before["faster"])
    assert after["metric_faster"][1] == 9.0


def test_recovery_is_drawn_where_something_was_trained(run: Path, front: ParetoFront) -> None:
    data = json.loads((run / "run.json").read_text())
    base = front.baseline.accuracy
    rungs = {"0": base - 0.3, "100": base + 0.01, "30": base - 0.1}
    data["recovery"] = [{"trial": 2, "alpha": 0.25, "temperature": 4.0, "accuracy": rungs}]
    write_json(run / "run.json", data)
    found = recovery(read_run(run))
    assert (found.trials, found.alphas, found.temperatures) == ([2], [0.25], [4.0])
    assert [steps for steps, _ in found.curves[0]] == [0, 30, 100]
    np.testing.assert_allclose([lost for _, lost in found.curves[0]], [0.3, 0.1, 0.0])


def info(front: ParetoFront, run: dict | None = None, **parts: object) -> RunInfo:
    trials = pd.DataFrame(columns=["number", "size_bytes", "latency_ms", "accuracy"])
    return RunInfo(
        **{
            "run": run or {},
            "front": front,
            "trials": trials,
            "sensitivity": pd.DataFrame(),
            **parts,
        }
    )


def test_a_folder_without_a_front_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not the folder of a finished search"):
        read_run(tmp_path)


def test_rows_hold_ratios_to_the_baseline(front: ParetoFront) -> None:
    rows = before_after(front).set_index("point")
    assert rows.loc["float baseline", ["smaller", "faster"]].tolist() == [1.0, 1.0]
    assert rows.loc["trial 3", "smaller"] == 5.0
    assert rows.loc["trial 3", "faster"] == 2.5
    assert rows.loc["trial 3", "recommended as"] == ""
    assert rows["size (KB)"].tolist() == [1.0, 0.2, 0.25, 0.5]
    assert rows["in memory (KB)"].isna().all()


def test_metrics_have_columns_where_any_point_has_them(front: ParetoFront) -> None:
    def having(m: Measurement, *names: str) -> Measurement:
        return replace(m, metrics=dict.fromkeys(names, 0.5))

    names = ("f1", "accuracy_contrast", "auc", "accuracy_gaussian_noise")
    base = having(front.baseline, *names)
    points = [replace(p, measured=having(p.measured, *names)) for p in front.points]
    points[0] = replace(points[0], measured=having(points[0].measured, *names[:2]))
    table = before_after(replace(front, baseline=base, points=tuple(points)))
    shown = {"f1", "accuracy (contrast)", "auc", "accuracy (gaussian noise)"}
    assert shown < set(table.columns)
    assert "accuracy_contrast" not in table.columns
    for name in ("auc", "accuracy (gaussian noise)"):
        assert list(table[name].isna()) == [False, True, False, False]


def test_small_operators_are_added_up_and_other_forms_are_ratios(front: ParetoFront) -> None:
    time = {
        "modules_share": 0.6,
        "modules": [
            {
                "module": "a",
                "milliseconds": 0.6,
                "share": 0.6,
                "forms": {"float": 0.5, "int8": 0.25, "int16": 1.0},
            },
            {"module": "b", "milliseconds": 0.0, "share": 0.0, "forms": {"int8": 0.25}},
        ],
        "operators": [
            {"operator": "Softmax", "milliseconds": 0.39, "share": 0.39},
            {"operator": "Add", "milliseconds": 0.004, "share": 0.004},
            {"operator": "Mul", "milliseconds": 0.003, "share": 0.003},
            {"operator": "Div", "milliseconds": 0.005, "share": 0.005},
        ],
    }
    found = time_info(info(front, {"time": time}))
    assert [tuple(row) for row in found.modules] == [
        ("a", 0.6, 0.6, "<br>int8: 0.50x<br>int16: 2.00x (slower)"),
        ("b", 0.0, 0.0, ""),
    ]
    assert [row.name for row in found.operators] == ["(Softmax)", "(Div)", "(2 other operators)"]
    assert found.operators[-1].milliseconds == pytest.approx(0.007)
    assert found.modules_share == 0.6
    assert time_info(info(front)) == ([], [], 0.0)


def test_of_many_modules_the_slowest_are_shown(front: ParetoFront) -> None:
    modules = []
    for i in range(MOST_MODULES + 2):
        modules.append({"module": f"m{i}", "milliseconds": 2.0, "share": 0.01, "forms": {}})
    time = {"modules_share": 0.6, "modules": modules, "operators": []}
    found = time_info(info(front, {"time": time})).modules
    assert len(found) == MOST_MODULES + 1
    assert found[-1] == ("(2 other modules)", 4.0, 0.02, "")


def test_settings_are_words(front: ParetoFront) -> None:
    assert settings_words(info(front)) == ""
    tried = [
        {"setting": "2 threads", "ratios": [0.5, 0.75], "taken": True},
        {"setting": "without A", "ratios": [1.0], "taken": False},
    ]
    used = {"threads": 2, "disabled_optimizers": ["B", "C"]}
    assert settings_words(info(front, {"settings": {"used": used, "tried": tried}})) == (
        "Sessions: 2 thread(s), optimiser passes switched off: B, C. 2 threads: 0.50x and 0.75x "
        "of the time (taken). "
        "without A: 1.00x of the time (not taken)."
    )
    plain = {"used": {"threads": 1}, "tried": []}
    assert settings_words(info(front, {"settings": plain})) == (
        "Sessions: 1 thread(s), optimiser passes switched off: none."
    )


def test_the_hypervolume_grows_with_what_a_trial_adds(front: ParetoFront) -> None:
    """Boxes of (1 - size) (1 - latency) (1 - lost / 0.1).

    A half cubed at first, then the same point, then a larger box.
    """
    rows = [(1, 500, 1.0, 0.85), (2, 600, 1.5, 0.8), (3, 250, 1.0, 0.95)]
    trials = pd.DataFrame(rows, columns=["number", "size_bytes", "latency_ms", "accuracy"])
    found = hypervolume_history(info(front, trials=trials))
    assert found == pytest.approx([0.125, 0.125, 0.75 * 0.5])
    assert hypervolume_history(info(front, trials=trials[:0])) == []
    # A perplexity of 90 loses a tenth of 90.
    perplexities = trials.assign(accuracy=-90 * (1 + 0.9 - trials["accuracy"]))
    baseline = replace(front.baseline, accuracy=-90.0)
    of_90 = hypervolume_history(info(replace(front, baseline=baseline), trials=perplexities))
    assert of_90 == pytest.approx(found)


def test_predictions_of_a_run_without_a_check(front: ParetoFront) -> None:
    found = predictions(info(front, {"latency_check": None, "front_check": None}))
    assert found.check == ([], [])
    assert (found.check_mape, found.front_mape) == (None, 0.0), "the files were exact"
    assert found.front[1] == [0.8, 0.9, 1.0, 1.5], "dominated points were measured too"


def test_modules_of_a_sequence_have_numbers_for_names(run: Path) -> None:
    (run / "sensitivity.csv").write_text("module,config,divergence\n0,4 bits,0.1\n2,4 bits,0.2\n")
    found = read_run(run)
    assert list(found.sensitivity["module"]) == ["0", "2"]
    assert {fact.name for fact in module_facts(found)} >= {"0", "2"}
