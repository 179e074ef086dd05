"""Probes are measured where there is no PyTorch, and what was measured there serves as a table
here.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress import Candidate, find_modules
from autocompress.errors import TargetError
from autocompress.export import probes
from autocompress.export.prepare import prepare
from autocompress.export.probes import SCRIPT_FILE, export_probes
from autocompress.export.subject import layout_of, subject_of
from autocompress.space.search_space import SearchSpace
from autocompress.targets.device.job import RESULT_FILE
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.latency_model.plan import Subject
from autocompress.targets.latency_model.stored_tables import cached_table, table_multiples
from autocompress.targets.target import find_target

pytestmark = pytest.mark.slow

TARGET = find_target("onnxruntime-cpu")
NEEDED = ("numpy", "onnxruntime", "flatbuffers", "packaging", "google")


@pytest.fixture(scope="module", autouse=True)
def tables(whole_tables) -> Iterator[None]:
    with whole_tables():
        yield


@pytest.fixture(scope="module")
def subject(cnn_task) -> Subject:
    builder = prepare(
        cnn_task, find_modules(cnn_task.model, cnn_task.example_inputs), KernelChoice()
    ).with_multiples({"conv": 8})
    space = SearchSpace.load(None).bind(builder.module_map, TARGET)
    return subject_of(cnn_task, builder, layout_of(builder), space)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that has ONNX Runtime and numpy, and nothing else that is installed
    here.
    """
    folder = tmp_path_factory.mktemp("device")
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            source = Path(next(iter(spec.submodule_search_locations)))
            (folder / name).symlink_to(source)
            for libraries in source.parent.glob(f"{name}.libs"):
                (folder / libraries.name).symlink_to(libraries)
    return folder


@pytest.fixture(scope="module")
def measured(subject: Subject, device: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            probes, "job_of", lambda *arguments: replace(job_of(*arguments), budget_s=2.0)
        )
        export_probes(subject, TARGET, folder)
    environment = {"PYTHONPATH": str(device), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-S", folder / SCRIPT_FILE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


job_of = probes.job_of


def test_there_is_no_pytorch_where_they_are_measured(device: Path) -> None:
    for name in ("torch", "onnx", "autocompress"):
        command = [sys.executable, "-S", "-c", f"import {name}"]
        done = subprocess.run(
            command,
            env={"PYTHONPATH": str(device)},
            cwd=device,
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"No module named '{name}'" in done.stderr


def test_a_graph_whose_weights_lie_beside_it_is_written_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.arange(64.0 * 64, dtype=np.float32).reshape(64, 64)
    small = np.ones(3, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(small, "unused")],
    )
    model = helper.make_model(graph)
    content, path = model.SerializeToString(), tmp_path / "apart.onnx"
    onnx.save(model, path, save_as_external_data=True, location="apart.data", size_threshold=100)
    written = []
    for place, source in (("whole", content), ("apart", str(path))):
        (tmp_path / place).mkdir()
        needed = dict.fromkeys(probes.NOISE_FILES, 0)
        probes._write_models(tmp_path / place, "baseline", [lambda found=source: found], needed)
        assert needed == {"float": 64 * 64 * 4, "half": 0, "bytes": 0}
        written.append((tmp_path / place / "baseline000.onnx").read_bytes())
    assert written[0] == written[1]
    monkeypatch.setattr(probes, "FILE_BYTES", 1000)
    with pytest.raises(TargetError, match=r"the float model takes 0\.0 GB, and probes have one"):
        probes._read(content)


def test_what_was_measured_there_serves_as_a_table_here(subject: Subject, measured: Path) -> None:
    table = cached_table(subject, TARGET, measured / RESULT_FILE)
    assert table.check["candidates"] == 24
    assert table.predict_ms(subject.layout, Candidate()) == pytest.approx(
        table.baseline_ms, rel=0.3
    )
    assert table_multiples(measured / RESULT_FILE) == {"conv": 8}
    path = measured / "table.json"
    table.save(path)
    assert cached_table(subject, TARGET, path) == table


def test_probes_of_another_space_or_damaged_ones_are_refused(
    subject: Subject, measured: Path, tmp_path: Path
) -> None:
    text = (measured / RESULT_FILE).read_text()
    path = tmp_path / "found.json"
    path.write_text(text[:-50])
    with pytest.raises(TargetError, match="not a latency table"):
        cached_table(subject, TARGET, path)
    data = json.loads(text)
    data["plan"]["model"] = "another"
    path.write_text(json.dumps(data))
    with pytest.raises(TargetError, match="was measured with the probes of another model"):
        cached_table(subject, TARGET, path)
    data = json.loads(text)
    data["plan"]["target"] = "openvino-cpu"
    path.write_text(json.dumps(data))
    with pytest.raises(TargetError, match="of target openvino-cpu, not of onnxruntime-cpu"):
        cached_table(subject, TARGET, path)


def test_probes_are_small_since_they_share_their_weights(subject: Subject, measured: Path) -> None:
    files = list(measured.glob("*.onnx"))
    assert len(files) > 40
    assert sum(file.stat().st_size for file in files) / len(files) < 0.6 * len(subject.baseline())
