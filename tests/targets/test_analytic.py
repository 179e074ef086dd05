"""An analytic target computes what the roofline says, operator by operator."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.export.prepare import prepare
from autocompress.export.subject import layout_of, subject_of
from autocompress.space.search_space import SearchSpace
from autocompress.targets.analytic import analytic_times, moved_bytes, node_operations
from autocompress.targets.device.profiler import NodeTime
from autocompress.targets.device.sessions import DEFAULT
from autocompress.targets.figures import Figures
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.latency import compare
from autocompress.targets.latency_model.profile import measure_table
from autocompress.targets.target import find_target

FIGURES = Figures(float_gops=1.0, int8_gops=8.0, bandwidth_gb_s=0.5, overhead_us=7.0)


def one(
    op_type: str,
    inputs: dict[str, tuple[int, ...]],
    weights: dict[str, np.ndarray],
    gives: int = TensorProto.FLOAT,
    **attributes,
):
    kinds = {"x": TensorProto.UINT8 if op_type == "MatMulInteger" else TensorProto.FLOAT}
    node = helper.make_node(op_type, [*inputs, *weights], ["y"], name="y", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info("y", gives, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()
    feed = {
        name: np.ones(shape, np.uint8 if kinds.get(name) == TensorProto.UINT8 else np.float32)
        for name, shape in inputs.items()
    }
    (found,) = analytic_times(model, feed, FIGURES, DEFAULT)
    return found


def test_a_product_is_bound_by_what_takes_longer() -> None:
    large = one("MatMul", {"x": (64, 128)}, {"w": np.ones((128, 32), np.float32)})
    assert large.microseconds == pytest.approx(7 + 2 * 64 * 128 * 32 / 1e3), "bound by operations"
    thin = one("MatMul", {"x": (1, 128)}, {"w": np.ones((128, 32), np.float32)})
    assert thin.microseconds == pytest.approx(7 + 4 * (128 + 128 * 32 + 32) / 0.5 / 1e3), (
        "bound by reading the weights"
    )


def test_integers_have_their_own_peak_and_width() -> None:
    found = one(
        "MatMulInteger", {"x": (64, 128)}, {"w": np.ones((128, 32), np.int8)}, TensorProto.INT32
    )
    operations, moved = 2 * 64 * 128 * 32 / 8e3, (64 * 128 + 128 * 32 + 4 * 64 * 32) / 0.5e3
    assert found.microseconds == pytest.approx(7 + max(operations, moved))


def test_convolutions_count_their_groups() -> None:
    whole = one("Conv", {"x": (1, 8, 10, 10)}, {"w": np.ones((16, 8, 3, 3), np.float32)})
    assert whole.microseconds == pytest.approx(7 + 2 * 16 * 8 * 8 * 8 * 9 / 1e3)
    depthwise = one(
        "Conv", {"x": (1, 8, 10, 10)}, {"w": np.ones((8, 1, 3, 3), np.float32)}, group=8
    )
    assert node_operations(depthwise) == (2 * 8 * 8 * 8 * 9, False)
    up = one(
        "ConvTranspose",
        {"x": (1, 8, 6, 6)},
        {"w": np.ones((8, 16, 2, 2), np.float32)},
        strides=[2, 2],
    )
    assert up.outputs[0][1] == (1, 16, 12, 12)
    assert node_operations(up) == (2 * 8 * 16 * 12 * 12, False), "each output has one product"
    lstm = NodeTime(
        "LSTM",
        ("y",),
        0.0,
        (("float", (5, 2, 3)), ("float", (1, 16, 3)), ("float", (1, 16, 4))),
        (("float", (5, 1, 2, 4)),),
    )
    assert node_operations(lstm) == (2 * 5 * 2 * (48 + 64), False)


def lookup(operator: str, *inputs: tuple[str, tuple[int, ...]]) -> NodeTime:
    return NodeTime(operator, ("y",), 0.0, inputs, (("float", (8, 64)),))


def test_a_lookup_moves_what_it_takes_and_not_its_table() -> None:
    taken = 8 * 64 * 4
    table, ids = ("float", (30000, 64)), ("int64", (8,))
    packed, scales = ("uint8", (30000, 32)), ("float", (30000, 2))
    for found, expected in (
        (lookup("Gather", table, ids), taken + 64),
        (lookup("GatherBlockQuantized", packed, ids, scales), taken + 64),
        (lookup("Slice", table, ids, ids), taken + 128),
        (lookup("EmbedLayerNormalization", ids, table, table, ("float", (64,))), taken + 64 + 256),
        (lookup("Add", table, table), taken + 2 * 30000 * 64 * 4),
        *((lookup(name, table, ids), 0) for name in ("Reshape", "Squeeze", "Identity")),
    ):
        assert moved_bytes(found) == expected, found.operator
    rows = one_lookup()
    assert rows.microseconds == pytest.approx(7 + (taken + 64) / 0.5 / 1e3)


def one_lookup() -> NodeTime:
    """The operator of a file that looks up eight rows of a table."""
    node = helper.make_node("Gather", ["w", "x"], ["y"], name="y")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((3000, 64), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feed = {"x": np.arange(8)}
    (found,) = analytic_times(model.SerializeToString(), feed, FIGURES, DEFAULT)
    return found


def test_what_only_renames_a_tensor_takes_no_time() -> None:
    assert one("Flatten", {"x": (64, 8, 8)}, {}).microseconds == 0


@pytest.mark.slow
def test_a_table_of_an_analytic_target_predicts_the_files(cnn_task) -> None:
    target = find_target("analytic:microcontroller")
    builder = prepare(
        cnn_task,
        find_modules(cnn_task.model, cnn_task.example_inputs),
        KernelChoice(weight_only=False, present=False),
    )
    space = SearchSpace.load(None).bind(builder.module_map, target)
    subject = subject_of(cnn_task, builder, layout_of(builder), space)
    table = measure_table(subject, target)
    assert table.check["mape"] < 0.05
    assert table.check["kendall_tau"] > 0.9
    integer = Candidate.of({m.name: ModuleConfig(8, 8) for m in builder.module_map})
    timing = compare(
        builder.baseline, [subject.noise_file(integer)[0]], subject.feed, target, table.settings, 5
    )
    assert timing.baseline_ms == pytest.approx(table.baseline_ms), (
        "nothing is measured, so that nothing varies"
    )
    assert timing.ratios[0] < 0.9, "integers are faster there"
    assert table.tuning == (), "there is nothing to tune"
