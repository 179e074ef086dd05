"""Sessions of LiteRT behind the calls of ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from autocompress.targets.device.litert.flat_file import FlatFile, Rows
from autocompress.targets.device.litert.product import flat_product
from autocompress.targets.device.litert.session import quiet
from autocompress.targets.device.sessions import LITERT, SessionSettings, open_session
from autocompress.targets.runtime import bytes_in_memory, random_feed


def test_a_session_of_bytes_and_of_a_path_compute_the_same(tmp_path: Path) -> None:
    content = flat_product()
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    outputs = []
    for source in (content, str(path)):
        session = open_session(source, LITERT)
        (value,) = session.get_inputs()
        assert (value.name, value.type) == ("x", "tensor(float)")
        assert [one.name for one in session.get_outputs()] == ["y"]
        feed = random_feed(session.get_inputs(), {"x": value.shape})
        outputs.append(session.run(None, feed)[0])
    np.testing.assert_array_equal(*outputs)
    assert bytes_in_memory(content, LITERT) > len(content), "activations count too"


def test_outputs_are_copies() -> None:
    session = open_session(flat_product(), SessionSettings("litert", "XNNPACK", threads=2))
    shape = session.get_inputs()[0].shape
    (first,) = session.run(None, {"x": np.ones(shape, np.float32)})
    before = first.copy()
    session.run(None, {"x": np.zeros(shape, np.float32)})
    np.testing.assert_array_equal(first, before)


def test_wrong_inputs_and_outputs_are_refused() -> None:
    session = open_session(flat_product(), LITERT)
    x = np.ones(session.get_inputs()[0].shape, np.float32)
    (expected,) = session.run(["y"], {"x": x})
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)
    for feed in ({}, {"z": x}, {"x": x, "z": x}):
        with pytest.raises(ValueError, match=r"the file has the inputs \['x'\], got"):
            session.run(None, feed)
    with pytest.raises(ValueError, match=r"the file has the outputs \['y'\], got 'z'"):
        session.run(["z"], {"x": x})
    with pytest.raises(ValueError, match=r"input x has the shape .* in this file, got"):
        session.run(None, {"x": x[:1]})


def test_notes_of_the_runtime_stay_away_from_the_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with quiet():
        os.write(2, b"a note")
    os.write(2, b"an error")
    assert capfd.readouterr().err == "an error"


def test_ends_of_integers_are_fed_and_read_as_floats() -> None:
    file = FlatFile()
    step = Rows(np.array([0.5], np.float32), 0, 3)
    wide = Rows(np.array([0.25], np.float32), 0, -7)
    file.inputs = [file.tensor((1, 4), "int8", "x", step)]
    file.outputs = [file.tensor((1, 4), "int8", "y", wide)]
    file.add("QUANTIZE", file.inputs, file.outputs, "QuantizeOptions")
    session = open_session(file.content(), LITERT)
    (value,) = session.get_inputs()
    assert value.type == "tensor(float)"
    x = np.array([[0.0, 1.2, -4.0, 900.0]], np.float32)
    (y,) = session.run(None, {"x": x})
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, [[0.0, 1.0, -4.0, (127 + 7) * 0.25]])
    (raw,) = session.run(None, {"x": np.array([[3, 5, -5, 127]], np.int8)})
    np.testing.assert_array_equal(raw, y)
