"""Masks with which parts of a picture see each other, compared with loops over tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from autocompress.export.genai.towers.blocks import Blocks
from autocompress.targets.device.sessions import open_session

HEADS, GROUPS, SIZE, PARTS = 4, 2, 16, 3
# Two pictures beside each other, words between, before and behind, and one picture at the end.
NUMBERS = [0, 1, 2, 3, 1, 2, 3, 0, 0, 1, 2, 3]
ENDS = ("query", "key", "value", "past_key", "past_value", "lengths", "all")


def attention(windows: tuple[int, ...]) -> Any:
    """Return a session with one attention per window, on one cache."""
    value, floats = helper.make_tensor_value_info, TensorProto.FLOAT
    shapes = (("query", HEADS), ("key", GROUPS), ("value", GROUPS))
    inputs = [value(name, floats, ["n", "length", count * SIZE]) for name, count in shapes]
    inputs += [value(f"past_{k}", floats, ["n", GROUPS, "past", SIZE]) for k in ("key", "value")]
    inputs += [value("lengths", TensorProto.INT32, ["n"]), value("all", TensorProto.INT32, [])]
    nodes, outputs = [], []
    for i, window in enumerate(windows):
        made = [f"output{i}", f"new_key{i}", f"new_value{i}"]
        nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [*ENDS, "", ""],
                made,
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=GROUPS,
                local_window_size=window or -1,
            )
        )
        outputs += [helper.make_empty_tensor_value_info(name) for name in made]
    graph = helper.make_graph(nodes, "attention", inputs, outputs)
    mask = Blocks(PARTS, windows).nodes(graph, "number", "seen")
    layers = list(graph.node)
    del graph.node[:]
    graph.node.extend([*mask, *layers])
    graph.input.append(value("number", TensorProto.INT64, ["n", "length"]))
    graph.input.append(value("seen", TensorProto.INT64, ["n", "total"]))
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    proto: ModelProto = helper.make_model(graph, opset_imports=sets, ir_version=10)
    return open_session(proto.SerializeToString())


def expected(query: NDArray[Any], key: NDArray[Any], value: NDArray[Any], window: int) -> Any:
    """Return the output of attention, one token at a time."""
    length, rows = len(NUMBERS), []
    picture = np.cumsum(np.array(NUMBERS) == 1) * (np.array(NUMBERS) > 0)
    for i in range(length):
        seen = [
            (j <= i or (NUMBERS[i] > 0 and picture[i] == picture[j]))
            and not (window and j <= i - window)
            for j in range(length)
        ]
        row = []
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            scores = key[group][seen] @ query[i, head] / np.sqrt(SIZE)
            shares = np.exp(scores - scores.max())
            row.append((shares / shares.sum()) @ value[group][seen])
        rows.append(np.concatenate(row))
    return np.stack(rows)


@pytest.mark.parametrize("steps", [[12], [7, 1, 1, 3], [8, 4]])
def test_attention_sees_the_whole_picture_within_the_window(steps: list[int]) -> None:
    """What was read before lies in the cache; each picture is read at once."""
    draw, windows = np.random.default_rng(0), (0, 2, 5)
    session = attention(windows)
    tensors = {
        name: draw.standard_normal((1, len(NUMBERS), count * SIZE), np.float32)
        for name, count in (("query", HEADS), ("key", GROUPS), ("value", GROUPS))
    }
    cache = {
        f"past_{name}": np.zeros((1, GROUPS, 0, SIZE), np.float32) for name in ("key", "value")
    }
    start, outputs = 0, []
    for step in steps:
        end = start + step
        feed = {name: tensor[:, start:end] for name, tensor in tensors.items()}
        feed |= {"number": np.array([NUMBERS[start:end]]), "seen": np.ones((1, end), np.int64)}
        feed |= {"lengths": np.array([end - 1], np.int32), "all": np.array(end, np.int32)}
        made = session.run(None, {**feed, **cache})
        outputs.append(made[::3])
        cache = {"past_key": made[1], "past_value": made[2]}
        start = end
    query = tensors["query"][0].reshape(-1, HEADS, SIZE)
    key, value = (tensors[k][0].reshape(-1, GROUPS, SIZE).swapaxes(0, 1) for k in ("key", "value"))
    for i, window in enumerate(windows):
        whole = np.concatenate([output[i][0] for output in outputs])
        assert np.abs(whole - expected(query, key, value, window)).max() < 1e-5
