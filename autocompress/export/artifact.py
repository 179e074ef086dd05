"""Write and read the files of one point of a front.

model.onnx holds the model, recipe.yaml records how it was made, and model.safetensors holds the
weights of its PyTorch module. `notes.py` writes the README beside them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from onnx import ModelProto
from safetensors.torch import save

from autocompress.candidate import Candidate
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.assemble.trained import Trained
from autocompress.errors import ExportError, RunFolderError
from autocompress.export.arithmetic import saturation_warning
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.export.float_graph.large_files import data_of, digest_of
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.genai.builder import CONFIG
from autocompress.model.plain.plain import form_of
from autocompress.results.files import (
    MODEL_FILE,
    NOTES_FILE,
    RECIPE_FILE,
    TFLITE_FILE,
    WEIGHTS_FILE,
    disk_error,
    model_path,
    write_atomic,
)
from autocompress.results.front_point import FrontPoint
from autocompress.targets.device.memory import release_memory
from autocompress.targets.device.sessions import (
    TOWERS,
    SessionSettings,
    open_session,
    tower_file,
)
from autocompress.task.batches import Inputs, describe_inputs
from autocompress.task.copies import named_state

RECIPE_FORMAT = 4
GRAPH, DECODER = "graph", "decoder"  # entry of a recipe: a decoder with a cache
INTEGER_ENDS = "integer_ends"  # entry of a recipe: the file has int8 inputs and outputs
FLAT_SHAPES = "flat_shapes"  # entry of a recipe: input shapes of a .tflite file


def write_model(folder: Path, proto: ModelProto) -> int:
    """Write model.onnx.

    Args:
        folder: made if it is not there.
        proto: the content.

    Returns:
        The size of the file in bytes.

    Raises:
        RunFolderError: the file cannot be written.
    """
    return write_graph(folder / MODEL_FILE, proto)


def write_file(folder: Path, builder: Builder, proto: ModelProto) -> int:
    """Write model.onnx, or model.tflite for LiteRT.

    Args:
        folder: made if it is not there.
        builder: knows the format.
        proto: the graph.

    Returns:
        The size of the file in bytes.

    Raises:
        RunFolderError: the file cannot be written.
    """
    if builder.flat_shapes is None:
        return write_model(folder, proto)
    content = builder.content(proto)
    write_atomic(folder / builder.file_name, content)
    return len(content)


def open_graph(proto: ModelProto, silent: bool = False) -> Any:
    """Open a session of a graph from a temporary file, or from memory where the disk is full.

    Args:
        proto: the content; it leaves the memory before the file is opened if nobody else holds it.
        silent: True to log nothing.

    Returns:
        A session of ONNX Runtime.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        try:
            write_graph(path, proto)
        except (OSError, RunFolderError):
            return open_session(proto.SerializeToString(), silent=silent)
        del proto
        release_memory()
        return open_session(str(path), silent=silent)


def write_graph(path: Path, proto: ModelProto) -> int:
    """Write an ONNX file, equal graphs as equal bytes.

    Weights that one file cannot hold lie in a file beside it.

    Args:
        path: the file; its folder is made if it is not there.
        proto: the content.

    Returns:
        The size of the file in bytes, with the one beside it.

    Raises:
        RunFolderError: the file cannot be written.
    """
    return SharedGraph(proto).write(path)


def write_weights(
    folder: Path, stitcher: Stitcher, candidate: Candidate, trained: Trained | None
) -> None:
    """Write model.safetensors: stored weights, kept channels, and all other parameters.

    Args:
        folder: made if it is not there.
        stitcher: simulates the candidate; it holds `candidate` afterwards.
        candidate: the configs of the modules.
        trained: weights and ranges after recovery, or None.

    Raises:
        RunFolderError: the file cannot be written.
    """
    model = stitcher.apply(candidate, trained)
    others = {
        name: value.cpu() for name, value in named_state(model).items() if name in stitcher.state
    }
    learned = trained.variants if trained else {}
    variants = {}
    for name, owner in stitcher.owners.items():
        variants[name] = learned.get(name) or stitcher.variant(name, owner, candidate)
    masks = trained.masks if trained else stitcher.pruner.masks(candidate)
    write_atomic(folder / WEIGHTS_FILE, save(Trained(variants, others, {}, masks).to_tensors()))


def write_recipe(
    folder: Path,
    compressor: Compressor,
    candidate: Candidate,
    trained: Trained | None,
    example: Inputs,
    origin: Mapping[str, Any],
    settings: SessionSettings,
) -> None:
    """Write recipe.yaml: what was done, in order, from what, and how sessions are opened.

    Args:
        folder: holds the model's file; its hash is recorded.
        compressor: made the file.
        candidate: the configs of the modules.
        trained: weights and ranges after recovery, or None.
        example: inputs of the model; shapes and types are recorded.
        origin: task, source, seed, versions and threads of the run.
        settings: how sessions are opened.

    Raises:
        RunFolderError: the file cannot be written.
    """
    builder = compressor.builder
    recipe, flat = builder.recipe(candidate, {}, trained), builder.flat_shapes
    ranges = {
        name: {"scale": r.scale, "zero_point": r.zero_point, "low": r.low, "high": r.high}
        for name, r in recipe.ranges.items()
    }
    data = {
        "format": RECIPE_FORMAT,
        "origin": dict(origin),
        "order": ["prune", "smooth", "reconstruct", "factorise", "sparsify", "distil", "quantise"],
        "candidate": candidate.to_json(),
        "trained": trained is not None,
        "portable": recipe.portable or builder.kernels.rows,
        "kernels": {
            "matmul_levels": dict(recipe.levels),
            "gather_blocks": dict(recipe.blocks),
            "multiples": dict(builder.multiples),
            "integer_forms": {name: str(form) for name, form in recipe.forms.items()},
        },
        **({GRAPH: DECODER} if builder.lowered.caches else {}),
        **({} if flat is None else {FLAT_SHAPES: {name: [*flat[name]] for name in flat}}),
        **({INTEGER_ENDS: True} if builder.integer_ends else {}),
        "form": form_of(builder.teacher),
        "inputs": describe_inputs(example),
        "modules": _described_modules(builder, candidate),
        "activation_ranges": ranges,
        "session": _session(settings),
        "weights": WEIGHTS_FILE,
        "sha256": digest_of(folder / builder.file_name),
    }
    write_atomic(folder / RECIPE_FILE, yaml.safe_dump(data, sort_keys=False))


def renew_recipe(folder: Path, places: Mapping[str, Any], settings: SessionSettings) -> None:
    """Write to recipe.yaml where the task is, and how sessions are opened.

    All that says how the file was made stays: another process may have other threads, ranges or
    seeds.

    Args:
        folder: of a file that an earlier process made.
        places: entries of the recipe's origin that say where the task is.
        settings: how sessions are opened.

    Raises:
        ExportError: there is no recipe of this format.
        RunFolderError: the file cannot be written.
    """
    recipe = read_recipe(folder)
    data = {**recipe, "origin": {**recipe["origin"], **places}, "session": _session(settings)}
    write_atomic(folder / RECIPE_FILE, yaml.safe_dump(data, sort_keys=False))


def _session(settings: SessionSettings) -> dict[str, Any]:
    return {**asdict(settings), "disabled_optimizers": list(settings.disabled_optimizers)}


def _described_modules(builder: Builder, candidate: Candidate) -> dict[str, Any]:
    """Return kind, owner, calls and block size of each module, by all of its names."""
    modules = {}
    for module in builder.module_map:
        config = candidate.config(module.name)
        for name in (module.name, *module.aliases):
            modules[name] = {
                "kind": module.kind,
                "owner": module.name,
                "calls": [asdict(call) for call in builder.plan.calls.get(module.name, ())],
                "block_size": builder.plan.block_size(module, config),
            }
    return modules


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read recipe.yaml.

    Args:
        folder: written by `autocompress export`.

    Returns:
        The content of the file.

    Raises:
        ExportError: there is no recipe of this format.
    """
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise ExportError(
            f"{folder}: has no {RECIPE_FILE}; give the folder that `autocompress export` wrote"
        )
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ExportError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or data.get("format") != RECIPE_FORMAT:
        raise ExportError(f"{path}: not a recipe of format {RECIPE_FORMAT}; export the point again")
    return data


def session_settings(path: Path) -> SessionSettings | None:
    """Return how sessions of a model.onnx are opened, as the recipe beside it says.

    Args:
        path: the file.

    Returns:
        The settings, or None if there is no recipe.

    Raises:
        ExportError: the recipe cannot be read.
    """
    session = _recipe_beside(path).get("session")
    return None if session is None else SessionSettings.from_json(session)


def session_warning(path: Path, settings: SessionSettings) -> str:
    """Return one line if this machine's integer products are not those that a file was made for.

    Args:
        path: the file.
        settings: how its sessions are opened.

    Returns:
        The warning, or "".
    """
    return saturation_warning(path, settings, _recipe_beside(path).get("portable"))


def _recipe_beside(path: Path) -> dict[str, Any]:
    """Return the recipe of a model.onnx, empty if there is none."""
    return (
        read_recipe(path.parent)
        if path.name in (MODEL_FILE, TFLITE_FILE) and (path.parent / RECIPE_FILE).is_file()
        else {}
    )


def copy_artifact(run_folder: Path, point: FrontPoint, to: Path) -> Path:
    """Copy the files of a point.

    Args:
        run_folder: the run folder of the search.
        point: a point of its front.
        to: made if it is not there.

    Returns:
        `to`.

    Raises:
        ExportError: the run folder lacks one of the files, or it cannot be read.
        RunFolderError: the files cannot be written.
    """
    source = run_folder / point.artifact
    model = model_path(source).name
    names: tuple[str, ...] = (model, RECIPE_FILE, WEIGHTS_FILE, NOTES_FILE)
    for name in names:  # all of them, before the first one is copied
        if not (source / name).is_file():
            raise ExportError(
                f"{source}: has no {name}; run the search again, it rebuilds what is missing"
            )
        if not os.access(source / name, os.R_OK):
            raise ExportError(f"{source / name}: cannot be read (Permission denied)")
    if (source / CONFIG).is_file():  # a package, with the files of its tokenizer
        names = tuple(file.name for file in source.iterdir() if file.is_file())
    elif data_of(source / model).is_file():
        names = (*names, data_of(source / model).name)
    try:
        to.mkdir(parents=True, exist_ok=True)
        beside = data_of(to / MODEL_FILE).name
        towers = {tower_file(to / MODEL_FILE, name).name for name in TOWERS}
        others = {CONFIG, MODEL_FILE, TFLITE_FILE, beside} | towers
        for other in others - {*names}:  # of another point
            (to / other).unlink(missing_ok=True)
        for name in names:
            shutil.copyfile(source / name, to / name)
    except OSError as error:
        raise disk_error(to, error) from error
    return to
