"""From the files of a point back to its PyTorch module, or to the same model.onnx from the original weights."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.candidate import Candidate, Distillation
from autocompress.compress.assemble.calls import Call
from autocompress.compress.assemble.stitch import ActivationPlan, SimulatedModel, Stitcher, Trained
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.recover import recover
from autocompress.compress.recover.student import taught
from autocompress.compress.recover.teacher import Teacher, changed_weights
from autocompress.errors import ExportError, TaskError
from autocompress.export.artifact import described_inputs, read_recipe, write_model
from autocompress.export.build import prepare, stitched_variants
from autocompress.integer_form import IntegerForm
from autocompress.measure.prepare import prepared
from autocompress.model.float_copy import float_copy
from autocompress.model.modules import find_modules
from autocompress.model.plain.plain import in_form
from autocompress.results.files import MODEL_FILE
from autocompress.targets.kernels import KernelChoice
from autocompress.task.copies import copied
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError


def load_module(folder: Path, model: nn.Module) -> nn.Module:
    """The compressed module of a point, in eval mode, computing what the search's simulation computed.

    `model` gives the architecture; its weights are not used. ExportError names what the files and it disagree on.
    """
    recipe = read_recipe(folder)
    tensors = _weights(folder, recipe)
    candidate = Candidate.from_json(recipe["candidate"])
    stored = Trained.from_tensors(tensors)
    ranges = {name: ActivationRange(**at) for name, at in recipe["activation_ranges"].items()}
    modules = recipe["modules"]
    plan = ActivationPlan(
        ranges,
        {
            entry["owner"]: tuple(Call(**call) for call in entry["calls"])
            for entry in modules.values()
        },
    )
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
    except (AttributeError, KeyError, RuntimeError, TaskError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ExportError(
            f"{folder}: the model has another architecture than the one that was compressed: {reason}"
        ) from error
    return simulated.model


def _plain(model: nn.Module, recipe: dict[str, Any]) -> nn.Module:
    """The model as it was compressed, in its plain form."""
    inputs = described_inputs(recipe["inputs"])
    try:
        return in_form(recipe["form"], float_copy(model, inputs), inputs)
    except UserCodeError as error:
        raise TaskError(
            f"it does not run on zeros of the shapes in the recipe, with which its program is traced ({error})"
        ) from error


def _weights(folder: Path, recipe: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / recipe["weights"]
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path}: cannot be read ({error}); export the point again") from error


def reproduce_model(folder: Path, task: Task, to: Path) -> Path:
    """Make model.onnx of a point again from the original weights of `task` and the recipe; returns the new file.

    Weights that training made are taken from model.safetensors where it is there, else they are trained again (which needs training
    batches in the same order); all others are compressed anew, without any cache. ExportError when the weights are not those of the
    search, or the result is not the recorded file byte for byte (another version, machine or calibration set rounds differently).
    """
    recipe = read_recipe(folder)
    task = prepared(task)
    changed = changed_weights(task, recipe["origin"])
    if changed:
        raise ExportError(
            f"{folder}: the {changed}'s weights differ from those of the search, of which alone the file can be made again; "
            f"nearest: task {recipe['origin']['task']!r} with the weights that it had then"
        )
    candidate = Candidate.from_json(recipe["candidate"])
    threads = torch.get_num_threads()
    torch.set_num_threads(int(recipe["origin"].get("threads", os.cpu_count() or 1)))
    try:
        kernels = recipe["kernels"]
        original, origin = task, recipe["origin"]
        task = taught(
            task,
            Distillation.from_json(origin["student"]),
            origin["seed"],
            torch.device("cpu"),
            None,
            None,
        )
        builder = prepare(
            task, find_modules(task.model, task.example_inputs, task.towers), KernelChoice()
        )
        forms = {name: IntegerForm(form) for name, form in kernels.get("integer_forms", {}).items()}
        builder = builder.with_multiples(kernels["multiples"])
        stitcher = Stitcher(
            builder.teacher, builder.module_map, builder.library(forms=forms), builder.plan
        )
        trained = None
        if recipe["trained"]:
            stored = (folder / recipe["weights"]).is_file()
            trained = (
                Trained.from_tensors(_weights(folder, recipe))
                if stored
                else _again(task, original, stitcher, candidate, origin)
            )
        variants = {} if trained is not None else stitched_variants(builder, stitcher, candidate)
        ranges = {name: ActivationRange(**at) for name, at in recipe["activation_ranges"].items()}
        built = builder.recipe(
            candidate, variants, trained, kernels["matmul_levels"], kernels["gather_blocks"], forms
        )
        write_model(to, builder.build(replace(built, ranges=ranges)))
    finally:
        torch.set_num_threads(threads)
    if hashlib.sha256((to / MODEL_FILE).read_bytes()).hexdigest() != recipe["sha256"]:
        versions = recipe["origin"].get("versions")
        raise ExportError(
            f"{to / MODEL_FILE}: differs from the file that {folder} records; versions then: {versions}"
        )
    return to / MODEL_FILE


def _again(
    task: Task, original: Task, stitcher: Stitcher, candidate: Candidate, origin: dict[str, Any]
) -> Trained:
    model = stitcher.teacher if original.student is None else copied(original.model, None)
    teacher = Teacher(task, model, torch.device("cpu"), None, (candidate.distillation.temperature,))
    dtype = getattr(torch, origin["training_dtype"])
    return recover(Trainer(task, teacher, dtype, origin["seed"]), stitcher, candidate)[0]
