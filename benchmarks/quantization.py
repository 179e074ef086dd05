"""Measure one layer in every form: bytes, microseconds and error of its file, on one thread.

Bytes and times are ratios to float and to 8-bit dynamic.

Each form is timed in turn with the 8-bit file alone; ratios to float are quotients of two such
ratios. The error is the relative difference of the file's outputs from the simulation's. Integer
weights are portable unless a row says "signed" (all 8 bits, exact only where the processor sums
8-bit products in 32 bits) or "unsigned" (all 8 bits around 128, exact everywhere).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from autocompress import Candidate, ModuleConfig, Task
from autocompress.export.compressor import Compressor
from benchmarks.bench import compressor_of, open_session
from benchmarks.bench_latency import integers_saturate, timed
from benchmarks.output import parser_of, write_figures

ROUNDS = 45
ROUNDED = {
    True: "two 8-bit products in 16 bits, which saturates (no VNNI)",
    False: "8-bit products in 32 bits (exact)",
}


def forms(kind: str) -> dict[str, ModuleConfig]:
    """Return a config for each form of a linear or convolutional module."""
    mode = "dynamic" if kind == "linear" else "static"
    configs = {"float": ModuleConfig(), "float16 storage": ModuleConfig(16)}
    configs |= {
        f"int8 {m}": ModuleConfig(8, 8, activation_mode=m, algorithm="nearest")
        for m in ("dynamic", "static")
    }
    configs |= {
        f"{b} bit packed": ModuleConfig(b, 8, activation_mode=mode, algorithm="nearest")
        for b in (7, 6, 5, 4, 3, 2)
    }
    configs["4 bit packed, groups of 32"] = ModuleConfig(
        4, 8, 32, activation_mode=mode, algorithm="nearest"
    )
    configs["4 bit packed, zero-points"] = ModuleConfig(
        4, 8, symmetric=False, activation_mode=mode, algorithm="nearest"
    )
    if kind == "linear":
        configs |= {
            f"{b} bit weight-only, groups of 64": ModuleConfig(b, 32, 64, algorithm="nearest")
            for b in (8, 4, 2)
        }
    return configs


def layer_file(
    compressor: Compressor, config: ModuleConfig, x: torch.Tensor
) -> tuple[bytes, str, float]:
    """Return (file, its weight-only kernel or "", relative error against the simulation)."""
    candidate = Candidate.of({"0": config})
    proto = compressor.graph(candidate)
    with torch.no_grad():
        expected = compressor.module(candidate)(x).numpy()
    data = proto.SerializeToString()
    (output,) = open_session(data).run(None, compressor.builder.lowered.feed(x))
    levels = [
        a.i
        for n in proto.graph.node
        if n.op_type == "MatMulNBits"
        for a in n.attribute
        if a.name == "accuracy_level"
    ]
    error = float(np.linalg.norm(output - expected) / np.linalg.norm(expected))
    return data, f"MatMulNBits, level {levels[0]}" if levels else "", error


def measure(
    title: str, layer: nn.Module, x: torch.Tensor, kind: str, rounds: int
) -> dict[str, tuple[int, float, float]]:
    """Print the table of a layer; return (bytes, time relative to int8, error) by form."""
    torch.manual_seed(0)
    task = Task(title, nn.Sequential(layer).eval(), x, [(x, torch.zeros(len(x)))], lambda o, t: 0.0)
    compressor = compressor_of(task)
    made = {name: layer_file(compressor, config, x) for name, config in forms(kind).items()}
    usual = "int8 dynamic" if kind == "linear" else "int8 static"
    for form in ("signed", "unsigned") if kind == "linear" else ("signed",):
        made[f"{usual}, {form}"] = layer_file(compressor_of(task, form), forms(kind)[usual], x)
    reference, feed = made[usual][0], compressor.builder.lowered.feed(x)
    timing = timed(reference, [data for data, *_ in made.values()], feed, rounds)
    times = dict(zip(made, timing.ratios, strict=True))
    print(f"\n{title}: int8 takes {timing.baseline_ms * 1e3:.0f} us")
    print(
        f"{'form':34}{'bytes':>10}{'of float':>10}{'of int8':>10}"
        f"{'us':>8}{'of float':>10}{'of int8':>10}{'error':>10}"
    )
    for name, (data, kernel, error) in made.items():
        size, time = len(data), times[name]
        print(
            f"{name:34}{size:10d}{size / len(made['float'][0]):9.3f}x{size / len(reference):9.3f}x"
            f"{time * timing.baseline_ms * 1e3:8.0f}{time / times['float']:9.3f}x{time:9.3f}x"
            f"{error:10.1e}  {kernel}",
            flush=True,
        )
    return {name: (len(data), times[name], error) for name, (data, _, error) in made.items()}


def unsigned_convolution(channels: int, groups: int, size: int, rounds: int) -> float:
    """Return the time of a static 3 x 3 convolution with unsigned weights, relative to signed ones.

    Exported files never hold it.
    """
    generator = np.random.default_rng(0)
    weight = generator.integers(-64, 64, (channels, channels // groups, 3, 3))
    files = {}
    for dtype, middle in ((np.int8, 0), (np.uint8, 128)):
        constants = {
            "w": (weight + middle).astype(dtype),
            "ws": np.full(channels, 0.01, np.float32),
            "wz": np.full(channels, middle, dtype),
            "s": np.array(0.1, np.float32),
            "z": np.array(128, np.uint8),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
            helper.make_node("Conv", ["xd", "wd"], ["c"], group=groups, pads=[1] * 4),
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
            helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
        ]
        shape = (1, channels, size, size)
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")
        ]
        tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "convolution", ends[:1], ends[1:], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        files[dtype] = model.SerializeToString()
    x = generator.standard_normal(shape, dtype=np.float32)
    return timed(files[np.int8], [files[np.uint8]], {"x": x}, rounds).ratios[0]


def main() -> None:
    """Print the tables of all layers."""
    arguments = parser_of(__doc__).parse_args()
    rounds = 9 if arguments.quick else ROUNDS
    saturates = integers_saturate()
    print(f"this processor sums {ROUNDED[saturates]}")
    figures: dict[str, float] = {"products_saturate": float(saturates), "largest_error": 0.0}

    def keep(name: str, by_form: dict[str, tuple[int, float, float]]) -> None:
        """Keep errors and times of a layer.

        Signed weights are for processors with exact products; elsewhere their error stands apart.
        """
        for form, (_, time, error) in by_form.items():
            wrong = saturates and form.endswith(", signed")
            key = "largest_error_signed" if wrong else "largest_error"
            figures[key] = max(error, figures.get(key, 0.0))
            if form.endswith((", signed", ", unsigned")):
                figures[f"{form.rpartition(' ')[2]}_vs_int8_time_{name}"] = time

    for columns, outputs in ((384, 1536), (768, 3072)):
        for rows in (1, 64, 197):
            layer = nn.Linear(columns, outputs, bias=False)
            by_form = measure(
                f"MatMul {rows} x {columns} x {outputs}",
                layer,
                torch.randn(1, rows, columns),
                "linear",
                rounds,
            )
            keep(f"m{rows}_k{columns}", by_form)
            packed = {bits: by_form[f"{bits} bit packed"] for bits in (2, 3, 4, 5, 6)}
            worst = max(time for _, time, _ in packed.values())
            over = max(
                size - bits / 8 * columns * outputs - 4 * outputs
                for bits, (size, *_) in packed.items()
            )
            print(
                f"2 to 6 bits: at most {worst:.3f}x the time of int8, and bits/8 bytes a weight + "
                f"scales + {over:.0f} bytes"
            )
            figures["packed_bytes_over"] = max(over, figures.get("packed_bytes_over", over))
            if (rows, columns) == (64, 768):
                figures["int8_vs_float_time_m64"] = 1 / by_form["float"][1]
                for bits in (2, 3, 4, 5, 6):
                    figures[f"packed{bits}_vs_int8_time_m64"] = by_form[f"{bits} bit packed"][1]
                    figures[f"packed{bits}_bytes_per_weight"] = (
                        by_form[f"{bits} bit packed"][0] / columns / outputs
                    )
            figures[f"packed_worst_vs_int8_time_m{rows}_k{columns}"] = worst
    for channels, groups, size in ((16, 1, 28), (64, 1, 28), (256, 1, 14), (256, 256, 14)):
        layer = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        title = (
            f"{'depthwise ' if groups > 1 else ''}Conv {channels} channels, 3 x 3, {size} x {size}"
        )
        by_form = measure(title, layer, torch.randn(1, channels, size, size), "conv", rounds)
        name = f"conv{channels}" + ("_depthwise" if groups > 1 else "")
        keep(name, by_form)
        figures[f"int8_vs_float_time_{name}"] = 1 / by_form["float"][1]
        figures[f"packed3_vs_int8_time_{name}"] = by_form["3 bit packed"][1]
        figures[f"unsigned_vs_int8_time_{name}"] = ratio = unsigned_convolution(
            channels, groups, size, rounds
        )
        print(
            f"the kernel for unsigned weights: {ratio:.3f}x the time of the one for signed weights"
        )
    print(f"\nlargest error of a file against its simulation: {figures['largest_error']:.1e}")
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
