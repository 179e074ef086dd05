"""Write the model card of an exported folder: README.md with the front matter that hubs read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from autocompress.export.genai.builder import CONFIG
from autocompress.export.genai.package import program
from autocompress.export.notes import remarks, table_lines
from autocompress.huggingface.folder import EMBEDDINGS, MODULES_FILE
from autocompress.huggingface.out.lines import WRITTEN
from autocompress.huggingface.out.snippets import (
    QUESTIONS,
    Facts,
    input_lines,
    optimum_lines,
    runtime_lines,
)
from autocompress.integer_form import IntegerForm
from autocompress.results.files import (
    MODEL_FILE,
    NOTES_FILE,
    RECIPE_FILE,
    WEIGHTS_FILE,
    model_path,
    read_json,
    write_atomic,
)
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import Measurement
from autocompress.targets.device.sessions import TOWERS
from autocompress.task.batches import CACHE
from autocompress.task.source import DATA, PRETRAINED
from autocompress.task.task import Pretrained

# Entries of the model folder's own card that hold for the exported model too.
KEPT = ("language", "license", "license_name", "license_link")
OF_CACHE = re.compile(r"^models--(?P<owner>.+?)--(?P<name>.+)$")  # a folder in the hub's cache
ROWS, PATTERNS = 40, 6  # most rows, and most patterns of names in a row
DECODER = (
    "The file holds encoder and decoder, without a cache of keys and values: each new token runs "
    "all of it again."
)
PACKAGE = (
    "The folder is a package of onnxruntime-genai (`pip install onnxruntime-genai`). The file has "
    "a cache of keys and values. genai_config.json names its inputs and the tuned settings."
)
OF_TOWERS = (
    "It runs a file per tower: FILES. `model.onnx` has all towers in one graph; the figures of "
    "this page were measured with it. All of them read their weights from `model.onnx.data`."
)
ANSWERING = (
    "The file reads a picture and a prompt (`input_ids`, without its last token) and gives the "
    "logits behind each of `decoder_input_ids`: the last token of the prompt, then the answer. It "
    "has no cache of keys and values: each new token runs all of it again."
)
NO_CACHE = (
    "The file has no cache of keys and values: each new token reads the whole text again. "
    "`use_cache` is off in the configs, and optimum needs `use_cache=False`."
)


def write_card(
    to: Path,
    known: Pretrained,
    facts: Facts,
    point: FrontPoint,
    baseline: Measurement,
    run: Mapping[str, Any],
    recipe: Mapping[str, Any],
) -> None:
    """Write README.md.

    Args:
        to: the exported folder, with all other files.
        known: the model folder.
        facts: of the exported folder.
        point: the exported point.
        baseline: the float file's numbers.
        run: content of run.json.
        recipe: of the file.

    Raises:
        RunFolderError: the file cannot be written.
    """
    name, measured = Path(known.folder).name, point.measured
    smaller = baseline.size_bytes / measured.size_bytes
    faster = baseline.latency_ms / measured.latency_ms
    sign = known.metric_sign
    format_name = "ONNX" if model_path(to).name == MODEL_FILE else ".tflite"
    lines = [
        "---",
        yaml.safe_dump(_front_matter(to, known), sort_keys=False).rstrip(),
        "---",
        f"# {name}, compressed",
        f"{name} for {known.task} as one {format_name} file: {smaller:.2f}x smaller and "
        f"{faster:.2f}x as fast as the float file on {run['target']}, {known.metric} "
        f"{sign * measured.accuracy:.4f} instead of {sign * baseline.accuracy:.4f} on the "
        "validation split.",
        "",
        "## Before and after",
        *table_lines(point, baseline, run["target"], known),
        "",
        *remarks(point, recipe),
        "",
        "## How to run it",
        *_how_to_run(to, facts),
        "## How it was made",
        *_how_it_was_made(point, run, recipe),
        "",
    ]
    write_atomic(to / NOTES_FILE, "\n".join(lines))


def _front_matter(to: Path, known: Pretrained) -> dict[str, Any]:
    own = _own_card(Path(known.folder))
    if model_path(to).name != MODEL_FILE:
        library, tags = "tflite", ["tflite", "autocompress"]
    else:
        sentences = (to / MODULES_FILE).is_file()
        library = "sentence-transformers" if sentences else "onnx"
        tags = ["onnx", "onnxruntime", "autocompress"]
    matter: dict[str, Any] = {}
    for part in Path(known.folder).parts:
        cached = OF_CACHE.match(part)
        if cached:
            matter["base_model"] = f"{cached['owner']}/{cached['name']}"
            matter["base_model_relation"] = "quantized"
    return {
        **matter,
        **{key: own[key] for key in KEPT if key in own},
        "library_name": library,
        "pipeline_tag": known.task,
        "tags": tags,
    }


def _own_card(folder: Path) -> dict[str, Any]:
    """Return the front matter of the model folder's card; {} without one."""
    try:
        text = (folder / NOTES_FILE).read_text()
        found = re.match(r"---\n(.*?)\n---", text, flags=re.S)
        matter = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return matter if isinstance(matter, dict) else {}


def _how_to_run(to: Path, facts: Facts) -> list[str]:
    shapes = []
    for name, shape in facts.inputs.items():
        shapes.append(f"`{name}` ({', '.join(map(str, shape))})")
    if any(name.startswith(CACHE) for name in facts.inputs):
        config = read_json(to / CONFIG)
        towers = [config["model"][name] for name in TOWERS if name in config["model"]]
        files = ", ".join(f"`{tower['filename']}`" for tower in towers)
        lines = [PACKAGE, *([OF_TOWERS.replace("FILES", files)] if len(towers) > 1 else [])]
        return [*lines, "", "In this folder:", *_code(program(config, input_lines(facts)))]
    onnx = model_path(to).name == MODEL_FILE
    free = "Dimensions with a name are free." if onnx else "The file takes these sizes alone."
    lines = [f"Inputs: {', '.join(shapes)}. {free}", ""]
    if facts.task == "text-generation":
        lines += [NO_CACHE, ""]
    if facts.task == QUESTIONS:
        lines += [ANSWERING, ""]
    elif WRITTEN in facts.inputs:
        lines += [DECODER, ""]
    lines += ["In this folder:", *_code(runtime_lines(facts))]
    optimum = optimum_lines(facts)
    if optimum:
        lines += ["With optimum (`pip install optimum-onnx[onnxruntime]`):", *_code(optimum)]
    if facts.task in EMBEDDINGS and onnx and _has_dense(to):
        lines += [DENSE, ""]
    elif facts.task in EMBEDDINGS and onnx:
        lines += ["With sentence-transformers (`pip install sentence-transformers[onnx]`):"]
        lines += _code(SENTENCES)
    return lines


DENSE = (
    "Dense layers behind the pooling are inside the file: `sentence_embedding` has passed them. "
    "sentence-transformers does not load this folder, since it looks for their weights beside it."
)
SENTENCES = [
    "from sentence_transformers import SentenceTransformer",
    'model = SentenceTransformer(".", backend="onnx")',
    'print(model.encode(["A text.", "Another one."]))',
]


def _has_dense(to: Path) -> bool:
    modules = to / MODULES_FILE
    return modules.is_file() and "Dense" in modules.read_text()


def _code(lines: Sequence[str]) -> list[str]:
    return ["```python", *lines, "```", ""]


def _how_it_was_made(
    point: FrontPoint, run: Mapping[str, Any], recipe: Mapping[str, Any]
) -> list[str]:
    """Return the modules by what their weights in the file are, and the commands."""
    forms = recipe["kernels"].get("integer_forms", {})
    rows: dict[str, dict[str, int]] = {}
    for name, config in point.candidate.modules:
        kind, form = recipe["modules"][name]["kind"], forms.get(name)
        stored = config.executed(kind)
        if form is not None:
            stored = stored.for_kernel(kind, IntegerForm(form))
        changed = stored.effective().to_json()
        words = ", ".join(f"{key} {value}" for key, value in changed.items())
        pattern = re.sub(r"\d+", "*", name)
        patterns = rows.setdefault(words or "untouched", {})
        patterns[pattern] = patterns.get(pattern, 0) + 1
    lines = ["| modules | what was done |", "|---|---|"]
    for words, patterns in list(rows.items())[:ROWS]:
        names = [f"`{name}` ({count})" for name, count in list(patterns.items())[:PATTERNS]]
        if len(patterns) > PATTERNS:
            names.append(f"{sum(list(patterns.values())[PATTERNS:])} others")
        lines.append(f"| {', '.join(names)} | {words} |")
    if len(rows) > ROWS:
        lines.append(f"| {len(rows) - ROWS} further kinds | `{RECIPE_FILE}` |")
    steps = point.candidate.distillation.steps
    if steps:
        lines += ["", f"Trained from the float model's answers for {steps} steps."]
    lines += [
        "",
        f"Trial {point.trial} of this search with autocompress; `autocompress reproduce` makes the "
        f"file again from `{RECIPE_FILE}`, and `autocompress.load` reads `{WEIGHTS_FILE}`, "
        "which is no checkpoint of transformers, as a PyTorch module.",
        "```",
        _command(run, recipe),
        "```",
    ]
    return lines


def _command(run: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Return the command of the search, with names of files instead of paths."""
    source = recipe["origin"].get("source") or {}
    words = ["autocompress", "search"]
    if source.get("spec") == PRETRAINED:
        arguments = dict(source.get("arguments", {}))
        words.append(Path(str(arguments.pop("folder"))).name)
        for name, value in arguments.items():
            words += _option(name, value)
    else:
        words.append(Path(str(source.get("spec", run["task"]))).name)
    space = run.get("space", {}).get("file")
    if space and space not in ("None", "inline"):
        words += ["--space", Path(space).name]
    words += ["--target", str(run["target"])]
    for name, value in (run.get("asked") or {}).items():
        words += _asked(name, value)
    return shlex.join([*words, "--seed", str(run["seed"])])


def _asked(name: str, value: Any) -> list[str]:
    """Return what the user asked of a search as options of the command line."""
    if name == "timeout_s":
        return ["--timeout", f"{value:g}s"]
    if isinstance(value, Mapping):
        return [word for item in value.items() for word in _named(name, "=".join(map(str, item)))]
    return _named(name, str(value))


def _named(name: str, value: str) -> list[str]:
    return [f"--{name.replace('_', '-')}", value]


def _option(name: str, value: Any) -> list[str]:
    """Return an argument of `from_pretrained` as options of the command line."""
    option = {"columns": "column", "seed": "data-seed"}.get(name, name.replace("_", "-"))
    if isinstance(value, bool):
        return [f"--{option}"] * value
    if isinstance(value, Mapping):
        values = [f"{part}={column}" for part, column in value.items()]
    elif isinstance(value, (list, tuple)):
        values = [str(item) for item in value]
    else:
        values = [Path(str(value)).name if name in DATA else str(value)]
    return [word for item in values for word in (f"--{option}", item)]
