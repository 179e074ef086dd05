"""Bytes and microseconds of one layer in every form, as ratios to float and to 8-bit dynamic, one thread.

Each form is timed in turn with the 8-bit file alone; ratios to float are quotients of two such ratios.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn

from autocompress import Candidate, ModuleConfig, Task, find_modules
from autocompress.compress.evidence import Evidence
from autocompress.compress.library import VariantLibrary
from autocompress.compress.stitch import Stitcher
from autocompress.export.build import prepare, stitched_variants
from autocompress.targets.kernels import KernelChoice
from benchmarks.bench import timed
from benchmarks.output import parser_of, write_figures

ROUNDS = 45
INT8 = ModuleConfig(8, 8, activation_mode="dynamic", algorithm="nearest")


def forms(kind: str) -> dict[str, ModuleConfig]:
    mode = "dynamic" if kind == "linear" else "static"
    found = {"float": ModuleConfig(), "float16 storage": ModuleConfig(16)}
    found |= {f"int8 {m}": ModuleConfig(8, 8, activation_mode=m, algorithm="nearest") for m in ("dynamic", "static")}
    found |= {f"{b} bit packed": ModuleConfig(b, 8, activation_mode=mode, algorithm="nearest") for b in (7, 6, 5, 4, 3, 2)}
    found["4 bit packed, groups of 32"] = ModuleConfig(4, 8, 32, activation_mode=mode, algorithm="nearest")
    found["4 bit packed, zero-points"] = ModuleConfig(4, 8, symmetric=False, activation_mode=mode, algorithm="nearest")
    if kind == "linear":
        found |= {f"{b} bit weight-only, groups of 64": ModuleConfig(b, 32, 64, algorithm="nearest") for b in (8, 4, 2)}
    return found


def measure(title: str, layer: nn.Module, x: torch.Tensor, kind: str, rounds: int) -> dict[str, tuple[int, float]]:
    """(bytes, time relative to int8) by form; prints the table."""
    torch.manual_seed(0)
    task = Task(title, nn.Sequential(layer).eval(), x, [(x, torch.zeros(len(x)))], lambda o, t: 0.0)
    builder = prepare(task, find_modules(task.model, x), KernelChoice())
    stitcher = Stitcher(
        builder.teacher, builder.module_map, VariantLibrary(Evidence(builder.teacher), saturates=builder.kernels.saturates), builder.plan
    )
    files, kernels = {}, {}
    for name, config in forms(kind).items():
        candidate = Candidate.of({"0": config})
        proto = builder.build(builder.recipe(candidate, stitched_variants(builder, stitcher, candidate)))
        files[name] = proto.SerializeToString()
        levels = [a.i for n in proto.graph.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "accuracy_level"]
        kernels[name] = f"MatMulNBits, level {levels[0]}" if levels else ""
    reference = files["int8 dynamic" if kind == "linear" else "int8 static"]
    timing = timed(reference, list(files.values()), builder.lowered.feed(x), rounds)
    times = dict(zip(files, timing.ratios, strict=True))
    print(f"\n{title}: int8 takes {timing.baseline_ms * 1e3:.0f} us")
    print(f"{'form':34}{'bytes':>10}{'of float':>10}{'of int8':>10}{'us':>8}{'of float':>10}{'of int8':>10}")
    for name, data in files.items():
        size, time = len(data), times[name]
        print(
            f"{name:34}{size:10d}{size / len(files['float']):9.3f}x{size / len(reference):9.3f}x"
            f"{time * timing.baseline_ms * 1e3:8.0f}{time / times['float']:9.3f}x{time:9.3f}x  {kernels[name]}",
            flush=True,
        )
    return {name: (len(files[name]), times[name]) for name in files}


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    rounds = 9 if arguments.quick else ROUNDS
    figures: dict[str, float] = {}
    for columns, outputs in ((384, 1536), (768, 3072)):
        for rows in (1, 64, 197):
            layer = nn.Linear(columns, outputs, bias=False)
            found = measure(f"MatMul {rows} x {columns} x {outputs}", layer, torch.randn(1, rows, columns), "linear", rounds)
            packed = {bits: found[f"{bits} bit packed"] for bits in (2, 3, 4, 5, 6)}
            worst = max(time for _, time in packed.values())
            over = max(size - bits / 8 * found["int8 dynamic"][0] - 4 * outputs for bits, (size, _) in packed.items())
            print(f"2 to 6 bits: at most {worst:.3f}x the time of int8, and bits/8 of its bytes + scales + {over:.0f} bytes")
            figures["packed_bytes_over"] = max(over, figures.get("packed_bytes_over", over))
            if (rows, columns) == (64, 768):
                figures["int8_vs_float_time_m64"] = 1 / found["float"][1]
                for bits in (2, 3, 4, 5, 6):
                    figures[f"packed{bits}_vs_int8_time_m64"] = found[f"{bits} bit packed"][1]
                    figures[f"packed{bits}_bytes_per_weight"] = found[f"{bits} bit packed"][0] / columns / outputs
            figures[f"packed_worst_vs_int8_time_m{rows}_k{columns}"] = worst
    for channels, groups, size in ((16, 1, 28), (64, 1, 28), (256, 1, 14), (256, 256, 14)):
        layer = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        title = f"{'depthwise ' if groups > 1 else ''}Conv {channels} channels, 3 x 3, {size} x {size}"
        found = measure(title, layer, torch.randn(1, channels, size, size), "conv", rounds)
        name = f"conv{channels}" + ("_depthwise" if groups > 1 else "")
        figures[f"int8_vs_float_time_{name}"] = 1 / found["float"][1]
        figures[f"packed3_vs_int8_time_{name}"] = found["3 bit packed"][1]
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
