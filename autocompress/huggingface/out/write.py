"""Export a point; one whose model came from a folder becomes a folder of the same kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.export.artifact import copy_artifact, read_recipe
from autocompress.huggingface.folder import CONFIG_FILE
from autocompress.huggingface.out.card import write_card
from autocompress.huggingface.out.files import copy_files, inner_folder
from autocompress.huggingface.out.settings import (
    flat_modules,
    read_object,
    without_cache,
    write_ort_config,
)
from autocompress.huggingface.out.snippets import Facts
from autocompress.results.files import MODEL_FILE, RUN_FILE, read_json
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import Measurement
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.task.task import Pretrained


def write_point(run_folder: Path, point: FrontPoint, baseline: Measurement, to: Path) -> list[str]:
    """Write a point to a folder.

    model.onnx, recipe.yaml and model.safetensors are written first, whatever became of the model
    folder.

    Args:
        run_folder: of the search.
        point: a point of its front.
        baseline: the float file's numbers.
        to: made if it is not there.

    Returns:
        Lines for the user on files of the model folder that are missing or changed.

    Raises:
        ExportError: the run folder lacks the file.
        RunFolderError: a file cannot be written.
    """
    copy_artifact(run_folder, point, to)
    recipe = read_recipe(to)
    origin = recipe["origin"].get("pretrained")
    if origin is None:
        return []
    known = Pretrained(origin["folder"], origin["task"], origin["metric"], (), origin["files"])
    lines = copy_files(known, to)
    flat_modules(to, inner_folder(known.files))
    if known.task == "text-generation":
        without_cache(to)
    settings = SessionSettings.from_json(recipe["session"])
    write_ort_config(to, settings)
    facts = _facts(to, known.task, settings)
    write_card(to, known, facts, point, baseline, read_json(run_folder / RUN_FILE), recipe)
    return lines


def _facts(to: Path, task: str, settings: SessionSettings) -> Facts:
    session: Any = open_session(str(to / MODEL_FILE))
    shapes = {value.name: tuple(value.shape) for value in session.get_inputs()}
    files = (CONFIG_FILE, "preprocessor_config.json", "tokenizer_config.json")
    return Facts(task, shapes, settings, *(read_object(to / name) for name in files))
