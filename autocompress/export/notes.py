"""Write the README of one point of a front: its numbers, and the lines that run the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.export.arithmetic import arithmetic_words
from autocompress.export.artifact import read_recipe
from autocompress.results.files import MODEL_FILE, NOTES_FILE, write_atomic
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import LATENCY_WORDS, Measurement, left_out_words
from autocompress.targets.device.sessions import SessionSettings

UNPACKED = (
    "Packed weights are unpacked when a session is created, to 8-bit integers for integer kernels "
    "and to float for the others."
)
DYNAMIC_RANGES = (
    "Linear modules with 8-bit activations take their range from each batch, so that outputs "
    "depend slightly on the batch they are in."
)


def _session_lines(settings: SessionSettings) -> str:
    if settings.runtime == "openvino":
        config = f'{{"INFERENCE_NUM_THREADS": {settings.threads}, "NUM_STREAMS": 1}}'
        model = f'"{MODEL_FILE}", "{settings.provider}", {config}'
        return f"import openvino\nsession = openvino.Core().compile_model({model})"
    lines = [
        "import onnxruntime",
        "options = onnxruntime.SessionOptions()",
        f"options.intra_op_num_threads = {settings.threads}",
    ]
    if not settings.spinning:
        lines.append('options.add_session_config_entry("session.intra_op.allow_spinning", "0")')
    disabled = (
        f", disabled_optimizers={list(settings.disabled_optimizers)}"
        if settings.disabled_optimizers
        else ""
    )
    arguments = f'"{MODEL_FILE}", options, providers=["{settings.provider}"]{disabled}'
    lines.append(f"session = onnxruntime.InferenceSession({arguments})")
    return "\n".join(lines)


def _weight_lines(point: FrontPoint, recipe: Mapping[str, Any]) -> list[str]:
    """Return the lines on integer weights and activations that apply to a point."""
    lines = []
    configs = dict(point.candidate.modules)
    kinds = {name: recipe["modules"][name]["kind"] for name in configs}
    integer = [name for name, config in configs.items() if config.integer(kinds[name])]
    if any(config.weight_bits <= 8 for config in configs.values()):
        lines.append(UNPACKED)
    if integer:
        lines.append(arithmetic_words(recipe["portable"]))
    if any(kinds[name] == "linear" and not configs[name].static(kinds[name]) for name in integer):
        lines.append(DYNAMIC_RANGES)
    return lines


def write_notes(
    folder: Path,
    point: FrontPoint,
    baseline: Measurement,
    input_names: tuple[str, ...],
    target: str,
    settings: SessionSettings,
) -> None:
    """Write README.md: a table of before and after, and the lines that run the model.

    Args:
        folder: holds the recipe.
        point: the measured point.
        baseline: the float file's numbers.
        input_names: of the file.
        target: name of the target.
        settings: how sessions are opened.

    Raises:
        RunFolderError: the file cannot be written.
    """
    m = point.measured
    feed = ", ".join(f'"{name}": {name}' for name in input_names)

    def percent(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.4f}"

    extra = ""
    for name, value in m.metrics.items():
        if name in baseline.metrics:
            before = baseline.metrics[name]
            extra += f"| {name.replace('_', ' ')} | {before:.4f} | {value:.4f} | |\n"
    part = "" if baseline.test_share == 1 else f", {baseline.test_share:.0%} of it"
    missing = "".join(f"\n{words}\n" for words in left_out_words([baseline, m]))
    smaller = f"{baseline.size_bytes / m.size_bytes:.2f}x smaller"
    speed = f"{baseline.latency_ms / m.latency_ms:.2f}x as fast"
    lines = [*_weight_lines(point, read_recipe(folder)), LATENCY_WORDS[m.latency_source]]
    text = f"""# {MODEL_FILE}, trial {point.trial}

| | before | after | ratio |
|---|---|---|---|
| size (bytes) | {baseline.size_bytes} | {m.size_bytes} | {smaller} |
| weights in a session (bytes) | {baseline.memory_bytes} | {m.memory_bytes} | |
| latency (ms, {target}) | {baseline.latency_ms:.3f} | {m.latency_ms:.3f} | {speed} |
| accuracy (validation) | {percent(baseline.accuracy)} | {percent(m.accuracy)} | |
| accuracy (test{part}) | {percent(baseline.test_accuracy)} | {percent(m.test_accuracy)} | |
{extra}{missing}
{chr(10).join(lines)}

```python
{_session_lines(settings)}
outputs = {"session.run(None, " if settings.runtime == "onnxruntime" else "session("}{{{feed}}})
```
"""
    write_atomic(folder / NOTES_FILE, text)
