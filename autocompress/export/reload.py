"""Load the module of a point from its files, or make its model.onnx again.

Behind `autocompress.load` and `autocompress.reproduce`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.candidate import Candidate, Distillation
from autocompress.compress.assemble.between import Place
from autocompress.compress.assemble.calls import Call
from autocompress.compress.assemble.simulated_model import ActivationPlan, SimulatedModel
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.recover import recover
from autocompress.compress.recover.student import taught
from autocompress.compress.recover.teacher import Teacher, changed_weights
from autocompress.errors import ExportError, TaskError
from autocompress.export.artifact import (
    BETWEEN,
    DECODER,
    FLAT_SHAPES,
    GRAPH,
    INTEGER_ENDS,
    read_recipe,
    write_file,
)
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.export.float_graph.large_files import digest_of
from autocompress.export.genai.source import DecoderSource
from autocompress.export.prepare import prepare
from autocompress.integer_form import IntegerForm
from autocompress.measure.prepare import prepared
from autocompress.model.float_copy import float_copy
from autocompress.model.modules import find_modules
from autocompress.model.plain.plain import in_form
from autocompress.space.keys import ACTIVATION_RANGE
from autocompress.targets.device.processors import processors
from autocompress.targets.device.sessions import LITERT
from autocompress.targets.kernels import KernelChoice
from autocompress.task.batches import described_inputs
from autocompress.task.copies import copied
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError


def load_module(folder: Path, model: nn.Module) -> nn.Module:
    """Return the compressed module of a point, as the search simulated it.

    Args:
        folder: holds recipe.yaml and model.safetensors.
        model: gives the architecture; its weights are not used, and it is not changed.

    Returns:
        A module in eval mode, on the CPU.

    Raises:
        ExportError: a file is missing or damaged, or the architecture is another one.
    """
    recipe = read_recipe(folder)
    tensors = _weights(folder, recipe)
    candidate = Candidate.from_json(recipe["candidate"])
    stored = Trained.from_tensors(tensors)
    modules = recipe["modules"]
    calls = {
        entry["owner"]: tuple(Call(**call) for call in entry["calls"]) for entry in modules.values()
    }
    plan = ActivationPlan(_ranges(recipe), calls, rows=FLAT_SHAPES in recipe)
    try:
        kinds = {name: (entry["kind"], entry["owner"]) for name, entry in modules.items()}
        simulated = SimulatedModel(_plain(model, recipe), kinds, plan)
        for name, entry in modules.items():
            owner = entry["owner"]
            simulated.set_variant(
                name,
                owner,
                stored.variants[name],
                candidate.config(owner),
                stored.masks,
                entry["block_size"],
            )
        simulated.load(stored.others, stored.masks)
        simulated.round_between(
            {Place(e["function"], e["call"]): e["range"] for e in recipe.get(BETWEEN, [])}
        )
    except (AttributeError, KeyError, RuntimeError, TaskError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ExportError(
            f"{folder}: the model has another architecture than the one that was compressed: "
            f"{reason}"
        ) from error
    return simulated.model


def _plain(model: nn.Module, recipe: dict[str, Any]) -> nn.Module:
    """Return the model in its plain form, as it was compressed."""
    inputs = described_inputs(recipe["inputs"])
    try:
        return in_form(recipe["form"], float_copy(model, inputs), inputs)
    except UserCodeError as error:
        raise TaskError(
            "it does not run on zeros of the shapes in the recipe, with which its program is "
            f"traced ({error})"
        ) from error


def _weights(folder: Path, recipe: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / recipe["weights"]
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path}: cannot be read ({error}); export the point again") from error


def _ranges(recipe: dict[str, Any]) -> dict[str, ActivationRange]:
    return {name: ActivationRange(**at) for name, at in recipe["activation_ranges"].items()}


def reproduce_model(folder: Path, task: Task, to: Path) -> Path:
    """Make model.onnx of a point again, from the original weights and the recipe.

    Weights that recovery trained are read from model.safetensors. Without that file they are
    trained again, which needs training batches in the same order. All other weights are compressed
    anew, without a cache.

    Args:
        folder: holds recipe.yaml, and model.safetensors if there is one.
        task: the task of the search.
        to: folder of the new file.

    Returns:
        The path of the new model.onnx.

    Raises:
        ExportError: the weights are not those of the search, or the result differs from the
            recorded file in a byte, since another version, machine or calibration set rounds
            differently.
    """
    recipe = read_recipe(folder)
    threads = torch.get_num_threads()
    # Before the model is made plain: the sum behind a norm depends on the number of threads.
    torch.set_num_threads(int(recipe["origin"].get("threads", processors())))
    try:
        task = prepared(task, beside=recipe.get(GRAPH) == DECODER)
        _check_weights(folder, recipe, task)
        builder, graph = _graph_again(folder, recipe, task)
        write_file(to, builder, graph)
    finally:
        torch.set_num_threads(threads)
    path = to / builder.file_name
    if digest_of(path) != recipe["sha256"]:
        versions = recipe["origin"].get("versions")
        raise ExportError(
            f"{path}: differs from the file that {folder} records; versions then: {versions}"
        )
    return path


def _check_weights(folder: Path, recipe: dict[str, Any], task: Task) -> None:
    """Raise ExportError if the task's weights are not those of the search."""
    changed = changed_weights(task, recipe["origin"])
    if changed:
        raise ExportError(
            f"{folder}: the {changed}'s weights differ from those of the search, of which alone "
            f"the file can be made again; nearest: task {recipe['origin']['task']!r} with the "
            "weights that it had then"
        )


def _graph_again(folder: Path, recipe: dict[str, Any], task: Task) -> tuple[Builder, ModelProto]:
    """Build the graph of a recipe, with the kernels and ranges that it records."""
    origin, kernels = recipe["origin"], recipe["kernels"]
    candidate = Candidate.from_json(recipe["candidate"])
    lesson = Distillation.from_json(origin["student"])
    threads = torch.get_num_threads()
    torch.set_num_threads(int(origin.get("student_threads", threads)))
    seed = origin.get("student_seed", origin["seed"])
    known = origin.get("student_dtype")  # not in recipes of earlier versions
    dtype = None if known is None else getattr(torch, known)
    learner = taught(task, lesson, seed, torch.device("cpu"), None, None, dtype)
    torch.set_num_threads(threads)
    module_map = find_modules(learner.model, learner.example_inputs, learner.towers)
    method = origin.get("activation_range", ACTIVATION_RANGE)
    source = None
    if recipe.get(GRAPH) == DECODER and learner.pretrained is not None:
        source = DecoderSource(learner.pretrained, learner.example_inputs)
    flat = recipe.get(FLAT_SHAPES)
    kernels_of = KernelChoice() if flat is None else KernelChoice(LITERT, weight_only=False)
    parts = learner, module_map, kernels_of
    chains = BETWEEN in recipe
    builder = prepare(*parts, activation_range=method, source=source, chains=chains)
    builder = builder.with_multiples(kernels["multiples"])
    recorded = kernels.get("integer_forms", {})
    forms = {
        module.name: IntegerForm(recorded.get(module.name, IntegerForm.SIGNED))
        for module in builder.module_map
    }
    # Statistics of batch normalisations depend on the ranges of activations. Those of a trained
    # point were learned: its training began with calibrated ones.
    ranges = builder.ranges if recipe["trained"] else {**builder.ranges, **_ranges(recipe)}
    shapes = None if flat is None else {name: tuple(flat[name]) for name in flat}
    builder = replace(builder, forms=forms, ranges=ranges, flat_shapes=shapes)
    ends = bool(recipe.get(INTEGER_ENDS, False))
    compressor = Compressor.of(replace(builder, integer_ends=ends))
    trained = None
    if recipe["trained"] and (folder / recipe["weights"]).is_file():
        trained = Trained.from_tensors(_weights(folder, recipe))
    elif recipe["trained"]:
        trained = _trained_again(learner, task, compressor.stitcher, candidate, origin)
    variants = {} if trained is not None else compressor.variants(candidate)
    statistics = None if trained is not None else _statistics(folder, recipe, compressor)
    levels, blocks = kernels["matmul_levels"], kernels["gather_blocks"]
    made = compressor.builder.recipe(candidate, variants, trained, levels, blocks, statistics)
    builder = compressor.builder
    return builder, builder.build(replace(made, ranges=_ranges(recipe)))


def _statistics(folder: Path, recipe: dict[str, Any], compressor: Compressor) -> dict[str, Tensor]:
    """Return the statistics of batch normalisations of an untrained point.

    They are read from its weights where these are there, else estimated again.
    """
    stitcher = compressor.stitcher
    if not (folder / recipe["weights"]).is_file():
        return dict(stitcher.statistics(Candidate.from_json(recipe["candidate"])))
    others = Trained.from_tensors(_weights(folder, recipe)).others
    return {name: others[name] for name in stitcher.norms.buffers if name in others}


def _trained_again(
    task: Task, original: Task, stitcher: Stitcher, candidate: Candidate, origin: dict[str, Any]
) -> Trained:
    """Repeat the recovery that a recipe records; `original` is the task before its student."""
    model = (
        stitcher.teacher
        if original.student is None
        else copied(original.model, None, shares_weights=True)
    )
    teacher = Teacher(task, model, torch.device("cpu"), None, (candidate.distillation.temperature,))
    dtype = getattr(torch, origin["training_dtype"])
    return recover(Trainer(task, teacher, dtype, origin["seed"]), stitcher, candidate)[0]
