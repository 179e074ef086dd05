"""Open files as the settings say, on each runtime."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from autocompress.targets.device import sessions
from autocompress.targets.device.profiler import profile_nodes
from autocompress.targets.device.sessions import (
    DEFAULT,
    ProviderError,
    SessionSettings,
    open_session,
    size_of,
)


def test_a_disabled_pass_does_not_run(layered: bytes, layered_feed) -> None:
    fused = {node.operator for node in profile_nodes(layered, layered_feed, DEFAULT, 1)}
    settings = SessionSettings(disabled_optimizers=("SkipLayerNormFusion",))
    plain = {node.operator for node in profile_nodes(layered, layered_feed, settings, 1)}
    assert "SkipLayerNormalization" in fused
    assert "SkipLayerNormalization" not in plain
    expected, found = (
        open_session(layered, s).run(None, layered_feed)[0] for s in (DEFAULT, settings)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_openvino_runs_the_same_file(layered: bytes, layered_feed, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "model.onnx"
    path.write_bytes(layered)
    expected = open_session(layered).run(None, layered_feed)[0]
    for model in (layered, str(path)):
        session = open_session(model, SessionSettings("openvino", "CPU"))
        assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
            ("x", [1, 8, 64], "tensor(float)")
        ]
        np.testing.assert_allclose(session.run(None, layered_feed)[0], expected, atol=0.05)
    profile = profile_nodes(layered, layered_feed, SessionSettings("openvino", "CPU"), 3)
    assert {"p0", "p1"} <= {name for node in profile for name in node.names}


def test_settings_are_read_back_from_plain_types() -> None:
    settings = SessionSettings("openvino", "CPU", 3, ("A", "B"), False)
    assert SessionSettings.from_json(json.loads(json.dumps(asdict(settings)))) == settings
    assert SessionSettings.from_json({"threads": 2}) == SessionSettings(threads=2)
    with pytest.raises(TypeError, match="speed"):
        SessionSettings.from_json({"speed": 1})


def test_options_of_a_session_are_those_of_its_settings(layered: bytes) -> None:
    settings = SessionSettings(threads=2, spinning=False)
    options = open_session(layered, settings).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.log_severity_level == 3
    plain = open_session(layered, level="BASIC", silent=True).get_session_options()
    assert plain.log_severity_level == 4
    assert plain.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert plain.get_session_config_entry("session.disable_prepacking") == "1"


def test_the_executed_graph_is_written_where_it_is_asked_for(
    layered: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "executed.onnx"
    open_session(layered, optimized=str(path))
    assert "SkipLayerNormalization" in {node.op_type for node in onnx.load(path).graph.node}


def test_a_large_model_is_opened_from_the_disk_and_not_kept(
    layered: bytes, layered_feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_session(layered).run(None, layered_feed)[0]
    monkeypatch.setattr(sessions, "SMALL_BYTES", len(layered))
    monkeypatch.setattr(sessions.tempfile, "tempdir", str(tmp_path))
    freed: list[int] = []
    monkeypatch.setattr(sessions, "release_memory", lambda: freed.append(1))

    @contextmanager
    def within() -> Iterator[None]:
        freed.append(2)
        yield

    monkeypatch.setattr(sessions, "large_blocks_freed_at_once", within)
    references = sys.getrefcount(layered)
    session = open_session(layered)
    assert sys.getrefcount(layered) == references, "the session does not hold the content"
    assert not list(tmp_path.iterdir())
    assert freed == [1, 2, 1], "what opening it took goes back to the system"
    np.testing.assert_array_equal(session.run(None, layered_feed)[0], expected)


def test_large_weights_of_the_executed_graph_lie_beside_it(
    layered: bytes, layered_feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "EXTERNAL_BYTES", 1000)
    path = tmp_path / "executed.onnx"
    expected = open_session(layered, optimized=str(path)).run(None, layered_feed)[0]
    assert size_of(str(path)) < size_of(layered) - 4000
    np.testing.assert_array_equal(open_session(str(path)).run(None, layered_feed)[0], expected)


def test_a_full_disk_opens_a_large_model_from_memory(
    layered: bytes, layered_feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    expected = open_session(layered).run(None, layered_feed)[0]
    monkeypatch.setattr(sessions, "SMALL_BYTES", len(layered))
    monkeypatch.setattr(Path, "write_bytes", full)
    np.testing.assert_array_equal(open_session(layered).run(None, layered_feed)[0], expected)


@pytest.mark.parametrize("opened", [["CPUExecutionProvider"], ["Other", "Wanted"], []])
def test_another_provider_than_the_wanted_one_is_an_error(
    layered: bytes, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    """ONNX Runtime falls back to the CPU without an error where CUDA cannot start."""
    calls: list[str] = []
    stand_in = SimpleNamespace(
        get_providers=lambda: opened, disable_fallback=lambda: calls.append("disable_fallback")
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: stand_in)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["Wanted"])
    with pytest.raises(ProviderError, match="cannot start Wanted here and runs on"):
        open_session(layered, SessionSettings(provider="Wanted"))
    opened.insert(0, "Wanted")
    assert open_session(layered, SessionSettings(provider="Wanted")) is stand_in
    assert calls, "a run that fails must not go on elsewhere either"
    with pytest.raises(ProviderError, match=r"^ONNX Runtime has no Other here; it has: Wanted$"):
        open_session(layered, SessionSettings(provider="Other"))


def test_weights_of_a_large_file_are_mapped_and_not_copied(
    layered: bytes, layered_feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_session(layered).run(None, layered_feed)[0]
    for name in ("SMALL_BYTES", "LARGE_BYTES", "EXTERNAL_BYTES"):
        monkeypatch.setattr(sessions, name, 1000)
    opened: list[object] = []
    real = onnxruntime.InferenceSession

    def session(source: object, *parts: object, **more: object) -> object:
        opened.append(source)
        return real(source, *parts, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    path = tmp_path / "model.onnx"
    path.write_bytes(layered)
    for model in (str(path), layered):
        found = open_session(model).run(None, layered_feed)[0]
        np.testing.assert_array_equal(found, expected)
    if sys.platform != "win32":
        assert [isinstance(source, bytes) and len(source) < 4000 for source in opened] == [True] * 2


def test_a_file_that_is_only_opened_lays_no_weight_out(layered: bytes) -> None:
    options = open_session(layered, runs=False).get_session_options()
    assert options.get_session_config_entry("session.disable_prepacking") == "1"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("beside", [False, True])
def test_a_large_file_may_be_a_link_to_another_name(
    beside: bool, layered: bytes, layered_feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the cache of the Hugging Face hub; its weights may lie in a file beside it."""
    expected = open_session(layered).run(None, layered_feed)[0]
    for name in ("SMALL_BYTES", "LARGE_BYTES", "EXTERNAL_BYTES"):
        monkeypatch.setattr(sessions, name, 1000)
    files, links = tmp_path / "blobs", tmp_path / "snapshot"
    for folder in (files, links):
        folder.mkdir()
    path, data = files / "model.onnx", "model.onnx.data"
    if beside:
        proto = onnx.load_from_string(layered)
        onnx.save(proto, path, save_as_external_data=True, location=data, size_threshold=100)
    else:
        path.write_bytes(layered)
    for i, file in enumerate(sorted(files.iterdir())):
        (links / file.name).symlink_to(file.rename(files / f"{i}"))
    found = open_session(str(links / "model.onnx")).run(None, layered_feed)[0]
    np.testing.assert_array_equal(found, expected)
