"""Angles of parts of pictures, compared with loops over tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from autocompress.export.genai.towers.grids import COSINES, INDEX, SINES, Grid
from autocompress.targets.device.sessions import open_session

ROWS, COLUMNS = 2, 3
RATES, AXES = (0.5, 0.25, 0.125, 0.0625), (0, 1, 2, 2)
PICTURE = [1, 2, 3, 4, 5, 6]


def session() -> Any:
    """Return a session that gives cosines, sines and their rows for each token."""
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.INT64, ["n", size]) for name, size in (("number", "l"),)]
    inputs.append(value("seen", TensorProto.INT64, ["n", "total"]))
    graph = helper.make_graph([], "grid", inputs, [])
    graph.node.extend(Grid(ROWS, COLUMNS, RATES, AXES).nodes(graph, "number", "seen"))
    for name in (COSINES, SINES, INDEX):
        graph.output.append(helper.make_empty_tensor_value_info(name))
    proto: ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    return open_session(proto.SerializeToString())


def positions(numbers: list[int]) -> list[tuple[int, int, int]]:
    """Return positions in time, row and column; a picture takes as many as its longer side."""
    made, following = list[tuple[int, int, int]](), 0
    for number in numbers:
        if number == 0:
            made.append((following,) * 3)
            following += 1
            continue
        if number == 1:
            begin = following
            following += max(ROWS, COLUMNS)
        made.append((begin, begin + (number - 1) // COLUMNS, begin + (number - 1) % COLUMNS))
    return made


@pytest.mark.parametrize(
    "numbers",
    [
        [0, 0, 0],
        [0, *PICTURE, 0, 0],
        [*PICTURE, 0, *PICTURE, *PICTURE, 0],
    ],
)
def test_differences_of_angles_are_those_of_the_positions(numbers: list[int]) -> None:
    """The last three tokens are read behind a cache, one at a time."""
    run, whole = session(), [*numbers, 0, 0, 0]
    cosines, sines = [], []
    for start, end in ((0, len(numbers)), *((i, i + 1) for i in range(len(numbers), len(whole)))):
        feed = {"number": np.array([whole[start:end]]), "seen": np.ones((1, end), np.int64)}
        made = run.run(None, feed)
        assert made[2].tolist() == [[*range(end - start)]]
        cosines.append(made[0])
        sines.append(made[1])
    angles = np.arctan2(np.concatenate(sines), np.concatenate(cosines))
    chosen = np.array(positions(whole))[:, AXES]
    wanted = chosen * np.array(RATES)
    turns = (angles - angles[:1]) - (wanted - wanted[:1])
    assert np.abs(np.sin(turns)).max() < 1e-5
    assert np.cos(turns).min() > 0.9


def test_all_rows_of_a_batch_have_their_own_angles() -> None:
    feed = {"number": np.array([[0, *PICTURE], [*PICTURE, 0]]), "seen": np.ones((2, 7), np.int64)}
    cosines, _, index = session().run(None, feed)
    assert index.tolist() == [[*range(7)], [*range(7, 14)]]
    assert not np.array_equal(cosines[:7], cosines[7:])
