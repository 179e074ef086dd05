"""Probes of .tflite files are measured where there is neither PyTorch nor ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ai_edge_litert")

from autocompress import Candidate, Task, find_modules
from autocompress.cli.main import main
from autocompress.errors import TargetError
from autocompress.export.probes import SCRIPT_FILE, export_probes
from autocompress.export.subject import builder_for, layout_of, subject_of
from autocompress.space.search_space import SearchSpace
from autocompress.targets.device.job import PROBES_FILE, RESULT_FILE
from autocompress.targets.latency_model.stored_tables import cached_table
from autocompress.targets.target import find_target

TARGET = find_target("litert-cpu")
# What `pip install ai-edge-litert` brings, and no more.
NEEDED = ("ai_edge_litert", "numpy", "flatbuffers", "backports", "google", "ml_dtypes", "tqdm")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment with the packages of LiteRT, and nothing else that is installed
    here.
    """
    folder = tmp_path_factory.mktemp("device")
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        source = Path(next(iter(spec.submodule_search_locations)))
        (folder / name).symlink_to(source)
        for beside in (*source.parent.glob(f"{name}.libs"), *source.parent.glob(f"{name}-*info")):
            (folder / beside.name).symlink_to(beside)
    spec = importlib.util.find_spec("typing_extensions")
    assert spec is not None
    (folder / "typing_extensions.py").symlink_to(str(spec.origin))
    return {"PYTHONPATH": str(folder), "PATH": ""}


@pytest.mark.slow
def test_a_device_with_litert_alone_measures_a_table(
    cnn_spec: str, cnn_task: Task, device: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-S", "-c", "import onnxruntime"]
    done = subprocess.run(command, env=device, capture_output=True, text=True, check=False)
    assert "No module named 'onnxruntime'" in done.stderr
    folder = tmp_path / "probes"
    with pytest.raises(SystemExit) as ended:
        main(["export-probes", cnn_spec, "--target", "litert-cpu", "--to", str(folder)])
    assert ended.value.code == 0
    written = json.loads((folder / PROBES_FILE).read_text())
    models = [written["baseline"], written["product"], *written["profiled"], *written["timed"]]
    assert sorted(models) == sorted(file.name for file in folder.glob("*.tflite"))
    assert not list(folder.glob("*.bin")), "no noise of ONNX files"
    assert set(written["plan"]["integer_forms"].values()) <= {"signed"}, "exact on all devices"
    (folder / PROBES_FILE).write_text(json.dumps({**written, "budget_s": 1.0}))
    command = [sys.executable, "-S", str(folder / SCRIPT_FILE)]
    done = subprocess.run(command, env=device, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    data = json.loads((folder / RESULT_FILE).read_text())
    assert set(data["versions"]) == {"machine", "processor", "litert"}
    assert data["settings"]["runtime"] == "litert"
    assert len(data["profiles"]) == len(written["profiled"])
    assert all(node[2] > 0 for profile in data["profiles"] for node in profile)

    modules = find_modules(cnn_task.model, cnn_task.example_inputs)
    builder = builder_for(cnn_task, modules, TARGET, table=folder / RESULT_FILE)
    space = SearchSpace.load(None).bind(builder.module_map, TARGET)
    subject = subject_of(cnn_task, builder, layout_of(builder), space)
    table = cached_table(subject, TARGET, folder / RESULT_FILE)
    assert table.predict_ms(subject.layout, Candidate()) == pytest.approx(
        table.baseline_ms, rel=0.5
    )
    for files in (data["plan"]["files"][::-1], []):
        plan = {**data["plan"], "files": files}
        (folder / "other.json").write_text(json.dumps({**data, "plan": plan}))
        with pytest.raises(TargetError, match=r"other\.json: was measured with files that .*; exp"):
            cached_table(subject, TARGET, folder / "other.json")
    data["plan"]["target"] = "litert-micro"
    (folder / RESULT_FILE).write_text(json.dumps(data))
    with pytest.raises(TargetError, match="of target litert-micro, not of litert-cpu"):
        cached_table(subject, TARGET, folder / RESULT_FILE)


def test_a_device_whose_latency_is_computed_measures_nothing(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        export_probes(None, find_target("litert-micro"), tmp_path / "probes")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "target litert-micro: its latency is computed from figures of the device, not measured; "
        "nearest: --target litert-cpu"
    )
    assert not (tmp_path / "probes").exists()
