"""Compare .tflite files of integers with the float file: bytes, accuracy, and time in LiteRT.

    python -m benchmarks.litert_integers --json figures.json

"int8" reads and writes 8 bits in every convolution and linear layer; "weights" has 8-bit weights
alone in convolutions, and inputs that are rounded row by row in linear layers. The networks of
digits are trained here first; the others have random weights, whose accuracy says nothing. Nothing
is searched; `benchmarks.litert` puts searches beside another quantizer. docs/benchmarks/litert.md
explains the keys.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor, nn

from autocompress import ModuleConfig, Task, export_onnx, find_modules
from benchmarks.bench import LITERT, feed_of, file_accuracy, open_session
from benchmarks.bench_latency import timed_in_litert
from benchmarks.digits import DigitsNet, digits_task
from benchmarks.networks import network
from benchmarks.output import parser_of, require, write_figures

TARGET = "litert-cpu"
INT8, WEIGHTS = "int8", "weights"


class Separable(nn.Module):
    """Map (n, 1, 16, 16) pictures to (n, 10) logits with depthwise convolutions."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU6()]
        for stride in (1, 2, 1, 2):
            wide = width * stride
            layers += [
                nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU6(),
                nn.Conv2d(width, wide, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU6(),
            ]
            width = wide
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the output of the module."""
        return self.head(self.layers(image).mean((2, 3)))


def configs_of(task: Task, static: bool) -> dict[str, ModuleConfig]:
    """Return the configs of all modules: 8 bits throughout, or without integer convolutions."""
    configs = {}
    for module in find_modules(task.model, task.example_inputs):
        if static:
            configs[module.name] = ModuleConfig(8, 8, activation_mode="static")
        else:
            configs[module.name] = ModuleConfig(8, 8 if module.kind == "linear" else 32)
    return configs


def input_names(path: Path) -> list[str]:
    """Return the names of the inputs of a .tflite file."""
    return [value.name for value in open_session(str(path), LITERT).get_inputs()]


def measure(name: str, task: Task, trained: bool, rounds: int) -> dict[str, float]:
    """Print a table of one network; return its figures."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        float_file = export_onnx(task, {}, folder / "float.tflite", target=TARGET)
        files: dict[str, Path] = {}
        for method, static in ((INT8, True), (WEIGHTS, False)):
            path = folder / f"{method}.tflite"
            files[method] = export_onnx(task, configs_of(task, static), path, target=TARGET)
        feed = feed_of(task.example_inputs, input_names(float_file))
        models = [str(path) for path in files.values()]
        times = {
            threads: timed_in_litert(str(float_file), models, feed, threads, rounds)
            for threads in (1, 2)
        }
        splits = task.test if trained and task.test is not None else []
        base = file_accuracy(task, str(float_file), splits, in_litert=True) if trained else 0.0
        milliseconds = times[1].baseline_ms
        figures[f"{name}_float_bytes"] = float_file.stat().st_size
        figures[f"{name}_float_ms"] = milliseconds
        print(f"\n{name}: float {float_file.stat().st_size} bytes, {milliseconds:.3f} ms")
        for i, (method, path) in enumerate(files.items()):
            ratio = path.stat().st_size / float_file.stat().st_size
            figures[f"{name}_bytes_ratio_{method}"] = ratio
            figures[f"{name}_time_ratio_{method}"] = times[1].ratios[i]
            figures[f"{name}_time_ratio_{method}_2_threads"] = times[2].ratios[i]
            line = f"{method:14} bytes {ratio:.3f}, time {times[1].ratios[i]:.3f}"
            line += f", 2 threads {times[2].ratios[i]:.3f}"
            if trained:
                gap = base - file_accuracy(task, str(path), splits, in_litert=True)
                figures[f"{name}_acc_gap_{method}"] = gap
                line += f", accuracy {base:.4f} - {gap:.4f}"
            print(line, flush=True)
    return figures


def main() -> None:
    """Run the benchmark."""
    arguments = parser_of(__doc__).parse_args()
    require("ai_edge_litert", "litert")
    rounds = 5 if arguments.quick else 30
    figures: dict[str, float] = {}
    for name, model in (("digits_residual", DigitsNet), ("digits_separable", Separable)):
        figures |= measure(name, digits_task(model), True, rounds)
    for name in () if arguments.quick else ("resnet", "mobilenet"):
        figures |= measure(name, network(name), False, rounds)
    write_figures(arguments.json, figures, settings=LITERT)


if __name__ == "__main__":
    main()
