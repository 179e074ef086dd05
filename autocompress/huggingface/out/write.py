"""Export a point; one whose model came from a folder becomes a folder of the same kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.errors import ExportError
from autocompress.export.artifact import copy_artifact, read_recipe
from autocompress.export.genai.builder import CONFIG
from autocompress.export.parts.towers import TOWERS, check_towers, write_towers
from autocompress.huggingface.folder import CONFIG_FILE, EMBEDDINGS
from autocompress.huggingface.models.prompts import default_prompt
from autocompress.huggingface.out.card import write_card
from autocompress.huggingface.out.files import (
    GENERATION_FILE,
    PROCESSORS,
    copy_files,
    inner_folder,
)
from autocompress.huggingface.out.settings import (
    TOKENIZER_FILE,
    flat_modules,
    known_tokenizer,
    read_object,
    without_cache,
    write_ort_config,
)
from autocompress.huggingface.out.snippets import Facts
from autocompress.results.files import MODEL_FILE, RECIPE_FILE, RUN_FILE, model_path, read_json
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import Measurement
from autocompress.targets.device.sessions import DEFAULT, SessionSettings, open_session
from autocompress.task.task import Pretrained


def write_point(
    run_folder: Path,
    point: FrontPoint,
    baseline: Measurement,
    to: Path,
    split_towers: bool = False,
) -> list[str]:
    """Write a point to a folder.

    model.onnx, recipe.yaml and model.safetensors are written first, whatever became of the model
    folder.

    Args:
        run_folder: of the search.
        point: a point of its front.
        baseline: the float file's numbers.
        to: made if it is not there.
        split_towers: write a file per tower too.

    Returns:
        Lines for the user on files of the model folder that are missing or changed.

    Raises:
        ExportError: the run folder lacks the file, or the model has no towers to split.
        RunFolderError: a file cannot be written.
    """
    source = run_folder / point.artifact
    origin = None
    if (source / RECIPE_FILE).is_file():
        origin = read_recipe(source)["origin"].get("pretrained")
    if origin is not None and to.resolve() == Path(origin["folder"]).resolve():
        raise ExportError(
            f"{to}: is the model folder itself, whose weights would be lost; nearest: {to}-small"
        )
    if split_towers and model_path(source).name != MODEL_FILE:
        raise ExportError(
            f"{model_path(source)}: is no ONNX file, whose towers can be split; nearest: no "
            "--split-towers"
        )
    if split_towers and (source / MODEL_FILE).is_file():
        check_towers(source / MODEL_FILE)  # before anything is written
    copy_artifact(run_folder, point, to)
    for name in TOWERS.values():
        (to / name).unlink(missing_ok=True)  # of an earlier export
    recipe = read_recipe(to)
    settings = SessionSettings.from_json(recipe["session"])
    lines = [] if origin is None else _write_papers(run_folder, point, baseline, to, recipe)
    if split_towers:
        write_towers(to, settings)
    return lines


def _write_papers(
    run_folder: Path,
    point: FrontPoint,
    baseline: Measurement,
    to: Path,
    recipe: dict[str, Any],
) -> list[str]:
    """Write what makes a folder complete, and return lines on missing or changed files."""
    origin, settings = recipe["origin"]["pretrained"], SessionSettings.from_json(recipe["session"])
    known = Pretrained(origin["folder"], origin["task"], origin["metric"], (), origin["files"])
    lines = copy_files(known, to)
    flat_modules(to, inner_folder(known.files))
    known_tokenizer(to)
    if known.task == "text-generation" and not (to / CONFIG).is_file():
        without_cache(to)
    if model_path(to).name == MODEL_FILE:
        write_ort_config(to, settings)
    facts = _facts(to, known.task, settings)
    write_card(to, known, facts, point, baseline, read_json(run_folder / RUN_FILE), recipe)
    return lines


def _facts(to: Path, task: str, settings: SessionSettings) -> Facts:
    file = model_path(to)
    session: Any = open_session(str(file), DEFAULT if file.name == MODEL_FILE else settings)
    shapes = {value.name: tuple(value.shape) for value in session.get_inputs()}
    names = (CONFIG_FILE, TOKENIZER_FILE, GENERATION_FILE)
    config, tokenizer, generation = (read_object(to / name) for name in names)
    processor: dict[str, Any] = {}
    for name in PROCESSORS:
        processor = processor or read_object(to / name)
    prompt = default_prompt(to) if task in EMBEDDINGS else ""
    template = "chat_template" in {**processor, **tokenizer} or any(to.glob("chat_template.*"))
    papers = (config, processor, tokenizer, generation, prompt, template)
    return Facts(task, shapes, settings, *papers)
