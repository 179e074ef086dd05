"""Write the README of one point of a front: its numbers, and the lines that run the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.export.arithmetic import arithmetic_words
from autocompress.export.artifact import (
    DECODER,
    FLAT_SHAPES,
    GRAPH,
    INTEGER_ENDS,
    read_recipe,
)
from autocompress.export.genai.builder import CONFIG
from autocompress.export.genai.package import program as program_of
from autocompress.measure.robustness import PARTS
from autocompress.results.files import (
    MODEL_FILE,
    NOTES_FILE,
    TFLITE_FILE,
    model_path,
    read_json,
    write_atomic,
)
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import (
    LATENCY_WORDS,
    Measurement,
    left_out_words,
    score_words,
)
from autocompress.targets.device.sessions import LITERT, SessionSettings
from autocompress.task.task import ERRORS, Pretrained

UNPACKED = (
    "Packed weights are unpacked when a session is created, to 8-bit integers for integer kernels "
    "and to float for the others."
)
PACKED = "Weights of 2, 4 and 8 bits in groups stay packed in memory."
FLAT = (
    "Weights of 4 and 8 bits have a scale per channel. The file takes inputs of the task's example "
    "shapes only; feed larger batches in parts of that size, as `evaluate` does."
)
DISTURBED = {f"accuracy_{name}": name.replace("_", " ") for name in PARTS}
DYNAMIC_RANGES = (
    "Linear modules with 8-bit activations take their range from each batch, so that outputs "
    "depend slightly on the batch they are in."
)


def option_lines(settings: SessionSettings) -> list[str]:
    """Return the lines of Python that import the runtime and make `options` of its sessions.

    Args:
        settings: how sessions are opened.
    """
    if settings.runtime == LITERT.runtime:
        return [
            "from ai_edge_litert.interpreter import Interpreter",
            f"options = {{'num_threads': {settings.threads}}}".replace("'", '"'),
        ]
    if settings.runtime == "openvino":
        config = f'{{"INFERENCE_NUM_THREADS": {settings.threads}, "NUM_STREAMS": 1}}'
        return ["import openvino", f"options = {config}"]
    lines = [
        "import onnxruntime",
        "options = onnxruntime.SessionOptions()",
        f"options.intra_op_num_threads = {settings.threads}",
    ]
    if not settings.spinning:
        lines.append('options.add_session_config_entry("session.intra_op.allow_spinning", "0")')
    return lines


def session_line(settings: SessionSettings) -> str:
    """Return the line of Python that opens a model.onnx as `session`, with `options`.

    Args:
        settings: how sessions are opened.
    """
    if settings.runtime == LITERT.runtime:
        return f'session = Interpreter("{TFLITE_FILE}", **options)'
    if settings.runtime == "openvino":
        model = f'"{MODEL_FILE}", "{settings.provider}", options'
        return f"session = openvino.Core().compile_model({model})"
    disabled = (
        f", disabled_optimizers={list(settings.disabled_optimizers)}"
        if settings.disabled_optimizers
        else ""
    )
    arguments = f'"{MODEL_FILE}", options, providers=["{settings.provider}"]{disabled}'
    return f"session = onnxruntime.InferenceSession({arguments})"


def _flat_lines(feed: str, integer_ends: bool) -> list[str]:
    """Return the lines that run a file in LiteRT, where inputs and outputs may be integers."""
    if integer_ends:
        return [
            "session.allocate_tensors()",
            f"feed = {{{feed}}}",
            "for one in session.get_input_details():",
            '    (scale, zero), value = one["quantization"], feed[one["name"]]',
            "    if scale:  # integers stand for (q - zero) * scale",
            '        value = (value / scale).round().astype("int32") + zero',
            '        value = value.clip(-128, 127).astype("int8")',
            '    session.set_tensor(one["index"], value)',
            "session.invoke()",
            "outputs = []",
            "for one in session.get_output_details():",
            '    (scale, zero), value = one["quantization"], session.get_tensor(one["index"])',
            '    outputs.append((value.astype("float32") - zero) * scale if scale else value)',
        ]
    return [
        "session.allocate_tensors()",
        f"feed = {{{feed}}}",
        "for one in session.get_input_details():",
        '    session.set_tensor(one["index"], feed[one["name"]])',
        "session.invoke()",
        'outputs = [session.get_tensor(one["index"]) for one in session.get_output_details()]',
    ]


def remarks(point: FrontPoint, recipe: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of the weights, the arithmetic and the latency of a point.

    Args:
        point: the measured point.
        recipe: of its file.
    """
    lines = []
    configs = dict(point.candidate.modules)
    kinds = {name: recipe["modules"][name]["kind"] for name in configs}
    integer = [name for name, config in configs.items() if config.integer(kinds[name])]
    if any(config.weight_bits <= 8 for config in configs.values()):
        lines.append(PACKED if recipe.get(GRAPH) == DECODER else UNPACKED)
    flat = FLAT_SHAPES in recipe
    if flat:
        lines = [FLAT]
    if integer:
        lines.append(arithmetic_words(recipe["portable"]))
    dynamic = [name for name in integer if not configs[name].static(kinds[name])]
    if not flat and any(kinds[name] == "linear" for name in dynamic):
        lines.append(DYNAMIC_RANGES)
    return [*lines, LATENCY_WORDS[point.measured.latency_source]]


def table_lines(
    point: FrontPoint,
    baseline: Measurement,
    target: str,
    known: Pretrained | None = None,
) -> list[str]:
    """Return the table of before and after, and a line for each number that is missing.

    Args:
        point: the measured point.
        baseline: the float file's numbers.
        target: name of the target.
        known: the model folder, which names the metrics; its errors are shown without the sign.
    """
    metric, sign = ("accuracy", 1.0) if known is None else (known.metric, known.metric_sign)
    m = point.measured

    def score(value: float | None) -> str:
        return "not measured" if value is None else score_words(sign * value)

    part = "" if baseline.test_share == 1 else f", {baseline.test_share:.0%} of it"
    smaller = f"{baseline.size_bytes / m.size_bytes:.2f}x smaller"
    speed = f"{baseline.latency_ms / m.latency_ms:.2f}x as fast"
    lines = [
        "| | before | after | ratio |",
        "|---|---|---|---|",
        f"| size (bytes) | {baseline.size_bytes} | {m.size_bytes} | {smaller} |",
        f"| latency (ms, {target}) | {baseline.latency_ms:.3f} | {m.latency_ms:.3f} | {speed} |",
        f"| {metric} (validation) | {score(baseline.accuracy)} | {score(m.accuracy)} | |",
        f"| {metric} (test{part}) | {score(baseline.test_accuracy)} | {score(m.test_accuracy)} | |",
    ]
    if baseline.memory_bytes is not None and m.memory_bytes is not None:
        row = f"| in memory (bytes) | {baseline.memory_bytes} | {m.memory_bytes} | |"
        lines.insert(3, row)
    if baseline.activation_bytes is not None and m.activation_bytes is not None:
        row = f"| activations (bytes) | {baseline.activation_bytes} | {m.activation_bytes} | |"
        lines.insert(4 if "in memory" in lines[3] else 3, row)
    for name, value in m.metrics.items():
        if name in baseline.metrics:
            before, words = baseline.metrics[name], name.replace("_", " ")
            own = -1.0 if known is not None and name in ERRORS else 1.0
            if name in DISTURBED:
                words, own = f"{metric} {DISTURBED[name]}", sign
            cells = f"{score_words(own * before)} | {score_words(own * value)}"
            lines.append(f"| {words} (validation) | {cells} | |")
    for words in left_out_words([baseline, m]):
        lines += ["", words]
    return lines


def write_notes(
    folder: Path,
    point: FrontPoint,
    baseline: Measurement,
    input_names: tuple[str, ...],
    target: str,
    settings: SessionSettings,
    known: Pretrained | None = None,
) -> None:
    """Write README.md: a table of before and after, and the lines that run the model.

    Args:
        folder: holds the recipe.
        point: the measured point.
        baseline: the float file's numbers.
        input_names: of the file.
        target: name of the target.
        settings: how sessions are opened.
        known: the model folder, if the task is of one.

    Raises:
        RunFolderError: the file cannot be written.
    """
    feed = ", ".join(f'"{name}": {name}' for name in input_names)
    call = "session.run(None, " if settings.runtime == "onnxruntime" else "session("
    opening = [*option_lines(settings), session_line(settings)]
    program = [*opening, f"outputs = {call}{{{feed}}})"]
    if settings.runtime == LITERT.runtime:
        program = [*opening, *_flat_lines(feed, INTEGER_ENDS in read_recipe(folder))]
    if (folder / CONFIG).is_file():  # a package of onnxruntime-genai
        program = [*program_of(read_json(folder / CONFIG))]
    lines = [
        f"# {model_path(folder).name}, trial {point.trial}",
        "",
        *table_lines(point, baseline, target, known),
        "",
        *remarks(point, read_recipe(folder)),
        "",
        "```python",
        *program,
        "```",
        "",
    ]
    write_atomic(folder / NOTES_FILE, "\n".join(lines))
