"""Compare the front of a run folder with ONNX Runtime's own dynamic quantization of its float file.

Bytes, latency, test accuracy.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process

from autocompress import load_task, read_front
from autocompress.results.files import MODEL_FILE
from benchmarks.bench import feed_of, file_accuracy, open_session
from benchmarks.bench_latency import timed
from benchmarks.output import parser_of, write_figures

PICKS = ("smallest", "fastest", "accurate", "knee")
DROP = 0.01  # largest loss of accuracy of a pick


PRODUCTS = ("MatMul", "Gemm")


def prepared(source: Path, target: Path) -> Path:
    """Write the file that ONNX Runtime prepares for quantization; return its path.

    Constants are folded in it. Exported files transpose weights at run time, and tools that look
    for constant weights find none there.

    Args:
        source: the float file.
        target: what will be made of it; the prepared file lies beside it.
    """
    logging.getLogger().setLevel(logging.ERROR)
    path = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
    return path


def quantize_dynamic(
    source: Path, target: Path, operators: Sequence[str] | None = PRODUCTS
) -> None:
    """Write ONNX Runtime's dynamic int8 quantization, per channel, of the prepared file.

    Args:
        source: the float file.
        target: what is written.
        operators: what is quantized; None takes ONNX Runtime's default, which includes
            convolutions and embeddings.
    """
    quantization.quantize_dynamic(
        str(prepared(source, target)),
        str(target),
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=None if operators is None else list(operators),
    )


@dataclass
class Feeds(CalibrationDataReader):  # type: ignore[misc]
    """Give ONNX Runtime's calibration one batch of inputs after the other."""

    feeds: Iterator[Mapping[str, Any]]

    def get_next(self) -> Mapping[str, Any] | None:
        """Return the next inputs by name, or None."""
        return next(self.feeds, None)


def quantize_static(source: Path, target: Path, feeds: Iterable[Mapping[str, Any]]) -> None:
    """Write ONNX Runtime's static int8 quantization, QDQ and per channel, of the prepared file."""
    quantization.quantize_static(
        str(prepared(source, target)),
        str(target),
        Feeds(iter(feeds)),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--run", default="reports/demo", help="folder of a finished search")
    parser.add_argument("--task", default="autocompress.tasks:easy_vqa")
    arguments = parser.parse_args()
    run, task = Path(arguments.run), load_task(arguments.task)
    test = list(task.test or task.validation)[: 20 if arguments.quick else None]
    front = read_front(run)
    baseline = run / "models" / "baseline" / MODEL_FILE
    with tempfile.TemporaryDirectory() as folder:
        dynamic = Path(folder) / "dynamic.onnx"
        quantize_dynamic(baseline, dynamic)
        files = {"float": baseline, "onnxruntime_dynamic": dynamic}
        for what in PICKS:
            point = front.pick(what, max_accuracy_drop=DROP).point
            files[what] = run / point.artifact / MODEL_FILE
        names = tuple(i.name for i in open_session(str(baseline)).get_inputs())
        feed = feed_of(task.example_inputs, names)
        figures: dict[str, float] = {}
        print(f"{'file':22}{'bytes':>12}{'smaller':>10}{'faster':>10}{'test accuracy':>16}")
        for name, path in files.items():
            onnx.checker.check_model(str(path))
            timing = timed(str(baseline), [str(path)], feed, 20 if arguments.quick else 100)
            accuracy = file_accuracy(task, str(path), test)
            size = path.stat().st_size
            figures |= {
                f"bytes_{name}": size,
                f"latency_ratio_{name}": timing.ratios[0],
                f"accuracy_{name}": accuracy,
            }
            smaller, faster = baseline.stat().st_size / size, 1 / timing.ratios[0]
            print(
                f"{name:22}{size:12d}{smaller:9.2f}x{faster:9.2f}x{accuracy:16.4f}",
                flush=True,
            )
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
