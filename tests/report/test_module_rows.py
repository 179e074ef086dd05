"""Group modules by tower and block, and sum up what was done to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import report_runs

from autocompress import Candidate, FrontPoint, Measurement, ModuleConfig, ParetoFront
from autocompress.report.info import RunInfo, read_run
from autocompress.report.module_rows import (
    ModuleFacts,
    module_facts,
    module_rows,
    rows_of_float,
    rows_of_point,
)
from autocompress.results.front_point import ModulePart


def info(front: ParetoFront, run: dict | None = None, modules: tuple[str, ...] = ()) -> RunInfo:
    return RunInfo(run or {}, front, pd.DataFrame(), pd.DataFrame({"module": modules}))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("vision.blocks.0.attention.q", "vision.blocks.0"),
        ("layer1.0.conv1", "layer1.0"),
        ("layers.3.experts.17.up", "layers.3"),
        ("stem.0", "stem"),
        ("conv1", ""),
    ],
)
def test_a_block_ends_with_the_first_number(name: str, block: str) -> None:
    assert ModuleFacts(name, "tower").block == block


def test_rows_are_towers_blocks_and_modules() -> None:
    names = ("v.b.0.q", "v.b.0.k", "v.b.1.q", "v.stem", "t.embedding", "t.up")
    facts = [ModuleFacts(name, name[0]) for name in names]
    rows = [(row.depth, row.label, row.members) for row in module_rows(facts)]
    assert rows == [
        (0, "v", (0, 1, 2, 3)),
        (1, "b.0", (0, 1)),
        (2, "q", (0,)),
        (2, "k", (1,)),
        (1, "b.1.q", (2,)),
        (1, "stem", (3,)),
        (0, "t", (4, 5)),
        (1, "embedding", (4,)),
        (1, "up", (5,)),
    ]


def test_modules_are_in_the_order_of_the_network(front: ParetoFront) -> None:
    measured = Measurement(1500, 1.0, 0.9)
    configs = {"z": ModuleConfig(8), "new": ModuleConfig(4), "a": ModuleConfig(4)}
    point = FrontPoint(9, Candidate.of(configs), measured, measured, "")
    shown = info(replace(front, points=(point,)), modules=("z", "a", "z", "untouched"))
    assert [module.name for module in module_facts(shown)] == ["z", "a", "untouched", "new"]
    assert [module.tower for module in module_facts(shown)] == ["model"] * 4


def test_facts_of_the_run_are_taken(front: ParetoFront) -> None:
    row = {"module": "a", "tower": "t", "kind": "conv", "shape": [8, 3, 3, 3], "parameters": 216}
    run = {"modules": [row], "time": {"modules": [{"module": "a", "share": 0.25}]}}
    (facts,) = module_facts(info(front, run))
    assert facts == ModuleFacts("a", "t", "conv", "8 x 3 x 3 x 3", 216, 0.5)
    table = rows_of_float(module_rows([facts]), [facts])
    assert [row["about"] for row in table] == ["1 module", "conv 8 x 3 x 3 x 3"]
    assert [(row["bytes"], row["ms"]) for row in table] == [(864, 0.5)] * 2


def test_times_are_those_of_the_student_that_is_compressed(front: ParetoFront) -> None:
    shares = {"modules": [{"module": "a", "share": 0.25}]}
    run = {"time": shares, "baseline": {"latency_ms": 2.0}, "float_ms": 0.2}
    (facts,) = module_facts(info(front, run))
    assert facts.milliseconds == pytest.approx(0.05)


def test_sums_of_rows_are_means_over_parameters() -> None:
    facts = [ModuleFacts("t.a", "t", parameters=300), ModuleFacts("t.b", "t", parameters=100)]
    configs = {"t.a": ModuleConfig(4, pruning_ratio=0.5, symmetric=False, group_size=32)}
    measured = Measurement(1500, 1.0, 0.9)
    parts = {"t.a": ModulePart(100, 0.5), "t.b": ModulePart(50, None)}
    point = FrontPoint(9, Candidate.of(configs), measured, measured, "", parts=parts)
    columns = rows_of_point(point, module_rows(facts), facts)
    assert columns["weight_bits"] == [(300 * 4 + 100 * 32) / 400, 4.0, None]
    assert columns["pruning_ratio"] == [0.375, 0.5, None]
    assert columns["rank_ratio"] == columns["sparsity"] == [None] * 3
    assert columns["bytes"] == [150, 100, 50]
    assert columns["ms"] == [0.5, 0.5, None]
    assert columns["more"] == ["", "group size 32, asymmetric", ""]


def test_what_a_run_does_not_tell_is_none(front: ParetoFront) -> None:
    facts = module_facts(info(front))
    columns = rows_of_point(front.points[0], module_rows(facts), facts)
    assert columns["bytes"] == columns["ms"] == [None, None]
    assert columns["weight_bits"] == [4.0, 4.0]
    table = rows_of_float(module_rows(facts), facts)
    assert [(row["bytes"], row["ms"]) for row in table] == [(None, None)] * 2


def test_hundreds_of_modules_have_few_rows_on_top(tmp_path: Path) -> None:
    shown = read_run(report_runs.write_run(tmp_path, points=2, modules=300))
    rows = module_rows(module_facts(shown))
    assert [row.label for row in rows if row.depth == 0] == ["vision", "language", "head"]
    assert sum(row.is_module for row in rows) == 300
    assert sum(row.depth == 1 and not row.is_module for row in rows) == 50
    assert len({(row.depth, row.name) for row in rows}) == len(rows)


def test_bits_and_groups_are_those_of_the_file(front: ParetoFront) -> None:
    rows = [
        {"module": "m.a", "kind": "linear", "integer_form": "reduced"},
        {"module": "m.b", "kind": "linear", "integer_form": "unsigned"},
        {"module": "m.c", "kind": "embedding", "integer_form": "reduced"},
        {"module": "m.d", "kind": "linear"},  # of an earlier version
    ]
    facts = module_facts(info(front, {"modules": rows}))[:4]
    configs = {module.name: ModuleConfig(8, 8, group_size=32) for module in facts}
    measured = Measurement(1500, 1.0, 0.9)
    point = FrontPoint(9, Candidate.of(configs), measured, measured, "")
    columns = rows_of_point(point, module_rows(facts), facts)
    assert columns["weight_bits"][1:] == [7.0, 8.0, 8.0, 8.0]
    assert columns["activation_bits"][1:] == [8.0, 8.0, None, 8.0]
    assert columns["more"][1:] == ["", "", "group size 32", "group size 32"]
