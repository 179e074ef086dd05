"""The command line: what it prints, and one line with the right exit code for every bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from autocompress.cli import file_commands
from autocompress.cli.main import main
from autocompress.compress.assemble.fake_quant import SimulatedModule
from autocompress.targets.device.sessions import SessionSettings

pytestmark = pytest.mark.slow

SPACE = {"modules": [{"match": "*", "weight_bits": [4, 8], "activation_bits": [8, 32]}]}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def folder(cnn_spec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    (path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "search",
                cnn_spec,
                "--space",
                str(path / "space.yaml"),
                "--trials",
                "6",
                "--seed",
                "3",
                "--out",
                str(path / "run"),
            ]
        )
    assert caught.value.code == 0
    return path


def test_front_export_bench_evaluate_and_report(
    folder: Path, cnn_spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "front", folder / "run")
    assert code == 0
    assert "float baseline" in out
    code, out, _ = run(capsys, "front", folder / "run", "--json")
    data = json.loads(out)
    assert data["baseline"]["size_bytes"] > data["points"][0]["size_bytes"]
    code, out, _ = run(
        capsys,
        "export",
        folder / "run",
        "--pick",
        "smallest",
        "--max-accuracy-drop",
        "0.5",
        "--to",
        folder / "best",
    )
    assert code == 0
    assert (folder / "best" / "model.onnx").is_file()
    assert f"{data['points'][0]['size_bytes']} B" in out
    code, out, _ = run(
        capsys,
        "export",
        folder / "run",
        "--pick",
        "fastest",
        "--max-size",
        "1B",
        "--to",
        folder / "none",
    )
    assert code == 0
    assert "no point meets the limits; the nearest has" in out
    baseline = folder / "run" / "models" / "baseline" / "model.onnx"
    code, out, _ = run(
        capsys, "bench", folder / "best" / "model.onnx", "--against", baseline, "--rounds", "10"
    )
    assert code == 0
    assert "x smaller" in out
    assert "95 % interval" in out
    code, out, _ = run(capsys, "bench", folder / "best" / "model.onnx", "--rounds", "5")
    assert code == 0
    code, out, _ = run(
        capsys, "evaluate", folder / "best" / "model.onnx", cnn_spec, "--split", "test"
    )
    assert code == 0
    assert f"accuracy {data['points'][0]['test_accuracy']:.4f} on 192 samples of test" in out
    (folder / "run" / "report.html").unlink()
    assert run(capsys, "report", folder / "run")[0] == 0
    assert (folder / "run" / "report.html").is_file()


@pytest.mark.parametrize("model", ["cnn", pytest.param("transformer", marks=pytest.mark.extensive)])
def test_a_newcomers_first_search(
    model: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a user's own file, with the default space and no other option than where to put it."""
    code, out, error = run(
        capsys,
        "search",
        request.getfixturevalue(f"{model}_spec"),
        "--trials",
        "6",
        "--out",
        tmp_path / "run",
    )
    assert code == 0
    assert "before / after" in out
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out
    assert "random unseen candidates: mean error" in error
    data = json.loads((tmp_path / "run" / "front.json").read_text())
    assert data["points"]
    assert all(
        point["verified"] and (tmp_path / "run" / point["artifact"] / "model.onnx").is_file()
        for point in data["points"]
    )
    assert data["points"][0]["size_bytes"] < data["baseline"]["size_bytes"] / 2


def test_a_database_keeps_the_study(
    cnn_spec: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "search",
        cnn_spec,
        "--space",
        folder / "space.yaml",
        "--storage",
        f"sqlite:///{tmp_path}/study.db",
    )
    assert run(capsys, *arguments, "--trials", 3, "--out", tmp_path / "run")[0] == 0
    assert run(capsys, *arguments, "--trials", 5, "--out", tmp_path / "run")[0] == 0
    assert len((tmp_path / "run" / "trials.csv").read_text().splitlines()) == 6
    assert not (tmp_path / "run" / "study.journal").exists()


def test_inspect(cnn_spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", cnn_spec)
    assert code == 0
    assert "5 compressible modules" in out
    assert "no: its channels are the model's output" in out
    assert "BatchNorm2d" in out
    data = json.loads(run(capsys, "inspect", cnn_spec, "--json")[1])
    assert {m["name"] for m in data["modules"]} == {
        "stem.0",
        "body.0.conv1",
        "body.0.conv2",
        "body.2",
        "fc",
    }
    assert "what is simulated is what runs: the simulation differs from the model by" in out
    assert data["identity"]["simulation"] < 1e-5
    assert data["identity"]["float_file"] < 1e-5
    assert data["identity"]["rounded_file"] < 0.05


def test_inspect_names_the_module_whose_file_differs(
    transformer_spec: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = SimulatedModule.forward
    monkeypatch.setattr(SimulatedModule, "forward", lambda self, x: forward(self, x) * 1.1)
    code, out, error = run(capsys, "inspect", transformer_spec)
    assert code == 1
    assert "compressible modules" in out, "what can be said is said"
    assert "the simulation of the untouched model differs from the model at module embed" in error
    assert len(error.splitlines()) == 1
    assert (
        "differs from the model at module"
        in json.loads(run(capsys, "inspect", transformer_spec, "--json")[1])["identity"]["error"]
    )


def test_inspect_marks_ranks_without_gain(
    cnn_spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "ranks.yaml"
    space.write_text("modules: [{match: '*', weight_bits: [4, 8], rank_ratio: [0.25, 0.95, 1.0]}]")
    code, out, _ = run(capsys, "inspect", cnn_spec, "--space", space)
    assert code == 0
    rows = [line for line in out.splitlines() if "0.95" in line and "auto" in line]
    assert len(rows) == 5
    assert all("no gain" in line for line in rows if "fc" not in line)
    ranks = json.loads(run(capsys, "inspect", cnn_spec, "--space", space, "--json")[1])["ranks"]
    assert {(r["module"], r["verdict"]) for r in ranks if r["rank_ratio"] == 0.25} >= {
        ("body.2", "gain"),
        ("fc", "gain"),
    }
    table = tmp_path / "table.json"
    run(capsys, "profile", cnn_spec, "--space", space, "--out", table)
    assert set(json.loads(table.read_text())["multiples"]) == {"linear", "conv"}
    timed = json.loads(
        run(capsys, "inspect", cnn_spec, "--space", space, "--target-table", table, "--json")[1]
    )["ranks"]
    assert all(r["time_ratio"] > 0 for r in timed)
    assert {r["verdict"] for r in timed} <= {
        "gain",
        "no gain",
        "no gain in size",
        "no gain in time",
    }


def test_profile_writes_a_table_that_a_search_takes(
    cnn_spec: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys, "profile", cnn_spec, "--target", "onnxruntime-cpu", "--out", tmp_path / "table.json"
    )
    assert code == 0
    assert "random unseen candidates: mean error" in out
    arguments = (
        "search",
        cnn_spec,
        "--space",
        folder / "space.yaml",
        "--target-table",
        tmp_path / "table.json",
        "--trials",
        2,
    )
    code, out, _ = run(capsys, *arguments, "--out", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out)["points"]
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["latency_check"]
        == json.loads((tmp_path / "table.json").read_text())["check"]
    )


def test_probes_tables_and_where_the_time_goes(
    cnn_spec: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = ("--space", folder / "space.yaml")
    code, out, _ = run(
        capsys,
        "export-probes",
        cnn_spec,
        *space,
        "--target",
        "onnxruntime-cpu",
        "--to",
        tmp_path / "probes",
    )
    assert code == 0
    assert (
        "models; on the device: python measure.pyz; then: autocompress search TASK --target "
        "onnxruntime-cpu --target-table" in out
    )
    assert {"measure.pyz", "probes.json", "inputs.npz"} <= {
        path.name for path in (tmp_path / "probes").iterdir()
    }
    table = tmp_path / "table.json"
    assert run(capsys, "profile", cnn_spec, *space, "--out", table)[0] == 0
    assert (
        run(capsys, "profile", cnn_spec, *space, "--merge", table, "--out", tmp_path / "both.json")[
            0
        ]
        == 0
    )
    counts = [len(json.loads(path.read_text())["runs"]) for path in (table, tmp_path / "both.json")]
    assert counts[1] > 1.5 * counts[0]
    code, out, _ = run(capsys, "inspect", cnn_spec, *space, "--latency", "--target-table", table)
    assert code == 0
    assert "where the time goes: float model" in out
    assert "in modules, compressible" in out
    assert "as int8" in out
    latency = json.loads(run(capsys, "inspect", cnn_spec, *space, "--latency", "--json")[1])[
        "latency"
    ]
    assert {row["module"] for row in latency["modules"]} == {
        "stem.0",
        "body.0.conv1",
        "body.0.conv2",
        "body.2",
        "fc",
    }


def test_bench_opens_files_as_their_recipe_says(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    opened = []
    real = file_commands.open_session
    monkeypatch.setattr(
        file_commands,
        "open_session",
        lambda path, settings: opened.append(settings) or real(path, settings),
    )
    assert run(capsys, "export", folder / "run", "--to", tmp_path / "best")[0] == 0
    recipe = tmp_path / "best" / "recipe.yaml"
    data = yaml.safe_load(recipe.read_text())
    data["session"] |= {"threads": 2, "disabled_optimizers": ["NchwcTransformer"]}
    recipe.write_text(yaml.safe_dump(data))
    assert run(capsys, "bench", tmp_path / "best" / "model.onnx", "--rounds", "3")[0] == 0
    assert opened[-1] == SessionSettings(threads=2, disabled_optimizers=("NchwcTransformer",))
    assert (
        run(capsys, "bench", tmp_path / "best" / "model.onnx", "--rounds", "3", "--threads", "1")[0]
        == 0
    )
    assert opened[-1].threads == 1


BAD = [
    (["search", "no_such_package_x:task"], 1, "no module 'no_such_package_x'"),
    (
        ["search", "{tasks}/cnn.py:not_a_task"],
        1,
        "not_a_task returned dict; it must return autocompress.Task",
    ),
    (["search", "{tasks}/cnn.py:failing_forward"], 1, "model.forward fails on example_inputs"),
    (["search", "{tasks}/cnn.py:empty_loader"], 1, "validation is empty"),
    (["search", "{tasks}/cnn.py:nan_metric"], 1, "metric returned nan"),
    (
        ["search", "{tasks}/cnn.py:task", "--space", "{tmp}/nothing.yaml"],
        1,
        "rule 1 {'match': 'vison.*'} matches no module",
    ),
    (
        ["search", "{tasks}/cnn.py:task", "--space", "{tmp}/unknown.yaml"],
        1,
        "unknown key 'weigth_bits'; nearest: weight_bits",
    ),
    (
        ["search", "{tasks}/cnn.py:task", "--space", "{tmp}/nine.yaml"],
        1,
        "weight_bits 9 cannot be stored by target onnxruntime-cpu; nearest valid value: 8",
    ),
    (
        ["search", "{tasks}/cnn.py:task", "--target", "tpu"],
        2,
        "target 'tpu' is unknown; nearest: litert-cpu; valid: litert-cpu, litert-micro, ",
    ),
    (
        ["search", "{tasks}/cnn.py:task", "--target", "{tmp}/device.yaml"],
        1,
        "bandwidth_gb_s 0 is impossible; nearest valid value: 0.0001",
    ),
    (
        ["search", "{tasks}/cnn.py:task", "--target-table", "{tmp}/unknown.yaml"],
        1,
        "not a latency table",
    ),
    (
        ["inspect", "{tasks}/cnn.py:task", "--target-table", "{tmp}/none.json"],
        2,
        "none.json: no such file; nearest: ",
    ),
    (["search", "{tasks}/cnn.py:task", "--max-size", "10B"], 1, "contradicts the search space"),
    (
        ["search", "{tasks}/cnn.py:task", "--max-size", "big"],
        2,
        "expected a value such as 2MB or 25%",
    ),
    (
        ["search", "{tasks}/cnn.py:task", "--seed", "-1"],
        2,
        "expected a whole number from 0 to 4294967295, got '-1'; nearest: 0",
    ),
    (
        ["search", "{tasks}/cnn.py:task", "--trials", "0"],
        2,
        "expected a whole number of at least 1",
    ),
    (
        ["search", "{tasks}/cnn.py:task", "--timeout", "soon"],
        2,
        "expected a duration such as 90s, 10m or 2h",
    ),
    (["search", "{tasks}/cnn.py:task", "--task-arg", "novalue"], 2, "expected name=value"),
    (["serach"], 2, "unknown command 'serach'; nearest: search"),
    (["front", "{tmp}"], 1, "not the folder of a finished search"),
    (["bench", "{tmp}/none.onnx"], 1, "none.onnx: no such file"),
    (["bench", "{tmp}/nine.yaml"], 1, "ONNX Runtime cannot load it"),
    (
        ["evaluate", "{best}", "{tasks}/transformer.py:task", "--split", "test"],
        1,
        "task words: has no test split",
    ),
    (
        ["evaluate", "{best}", "{tasks}/transformer.py:task"],
        1,
        "a batch has x of shape (32, 12), the file takes ('batch', 1, 8, 8)",
    ),
    (
        ["worker", "--storage", "{tmp}/empty.journal", "{tasks}/cnn.py:task"],
        1,
        "holds no study 'autocompress'",
    ),
]


@pytest.mark.parametrize(("arguments", "expected", "text"), BAD, ids=lambda value: str(value)[:60])
def test_bad_input(
    arguments,
    expected,
    text,
    folder: Path,
    task_files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "nothing.yaml").write_text("modules: [{match: 'vison.*', weight_bits: [8]}]")
    (tmp_path / "unknown.yaml").write_text("modules: [{match: '*', weigth_bits: [8]}]")
    (tmp_path / "nine.yaml").write_text("modules: [{match: '*', weight_bits: [9]}]")
    figures = {
        name: {"value": 1, "source": "none"} for name in ("float_gops", "int8_gops", "overhead_us")
    }
    device = {
        "runtime": "analytic",
        "device": {**figures, "bandwidth_gb_s": {"value": 0, "source": "none"}},
    }
    (tmp_path / "device.yaml").write_text(yaml.safe_dump(device))
    best = folder / "run" / "models" / "baseline" / "model.onnx"
    filled = [a.format(tasks=task_files, tmp=tmp_path, best=best) for a in arguments]
    if arguments[0] == "search":
        filled += ["--out", str(tmp_path / "out")]
    code, _, error = run(capsys, *filled)
    assert code == expected
    assert text in error
    assert "Traceback" not in error
    if expected == 1:
        assert error.splitlines()[-1].startswith("autocompress: "), "phases may be shown before it"
        assert error.count("autocompress: ") == 1


def test_damaged_journals_and_foreign_folders(
    folder: Path, cnn_spec: str, task_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = folder / "run" / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(b"{broken\n" + whole)
    arguments = (
        "search",
        cnn_spec,
        "--space",
        folder / "space.yaml",
        "--out",
        folder / "run",
        "--trials",
        7,
    )
    code, _, error = run(capsys, *arguments)
    journal.write_bytes(whole)
    assert code == 1
    assert "study.journal: line 1 is damaged" in error
    code, _, error = run(capsys, "search", f"{task_files}/cnn.py:named", "--out", folder / "run")
    assert code == 1
    assert "is the run folder of task 'quarters', not of 'other'" in error


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "search", "no_such_package_x:task", "--debug")
    assert code == 1
    assert "Traceback" in error
