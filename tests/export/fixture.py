"""A task that was exported and calibrated, with what tests do to it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import onnx
import torch
from arithmetic import EmulatedSession, Formed, optimized_model

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.cache import cache_folder
from autocompress.candidate import DECOMPOSITIONS, IMPORTANCES, SPARSITY_CRITERIA, SPARSITY_PATTERNS
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.teacher import Teacher
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.export.prepare import prepare
from autocompress.integer_form import IntegerForm
from autocompress.targets.device.sessions import open_session
from autocompress.targets.kernels import KernelChoice
from autocompress.task.calls import call_model
from autocompress.task.task import Task


class Fixture:
    def __init__(self, task: Task, kernels: KernelChoice | None = None) -> None:
        self.task = task
        modules = find_modules(task.model, task.example_inputs)
        graphs = cache_folder() / "graphs" if task.source else None  # many tests share examples
        self._stitch(prepare(task, modules, kernels or KernelChoice(), graphs=graphs))
        self.inputs = next(iter(task.validation))[0]

    def formed(self, form: IntegerForm) -> Fixture:
        """The same with integer weights of that form."""
        other = copy.copy(self)
        other._stitch(replace(self.builder, kernels=Formed(form)))
        return other

    def _stitch(self, builder: Builder) -> None:
        self.builder, self.compressor = builder, Compressor.of(builder)
        self.stitcher = self.compressor.stitcher
        self.roots = {g.name for g in self.builder.module_map.groups if g.reason is None}

    def random(self, seed: int) -> Candidate:
        generator = np.random.default_rng(seed)
        configs = {}
        for module in self.builder.module_map:
            configs[module.name] = ModuleConfig(
                int(generator.choice([2, 3, 4, 5, 6, 7, 8, 16, 32])),
                int(generator.choice([8, 16, 32])) if module.kind in ("linear", "conv") else 32,
                int(generator.choice([-1, 0, 16, 32])),
                float(generator.choice([0.25, 0.5, 1.0])) if module.factorisable else 1.0,
                float(generator.choice([0.0, 0.25, 0.5])) if module.name in self.roots else 0.0,
                bool(generator.integers(2)),
                algorithm=str(generator.choice(["auto", "nearest", "gptq"])),
                activation_mode=str(generator.choice(["auto", "static", "dynamic"])),
                smoothing=float(generator.choice([0.0, 0.5])),
                decomposition=str(generator.choice(DECOMPOSITIONS)),
                importance=str(generator.choice(IMPORTANCES)),
                reconstruction=bool(generator.integers(2)),
                sparsity=float(generator.choice([0.0, 0.0, 0.5, 0.8])),
                sparsity_pattern=str(generator.choice(SPARSITY_PATTERNS)),
                sparsity_criterion=str(generator.choice(SPARSITY_CRITERIA)),
            )
        return Candidate.of(configs)

    def uniform(self, **axes: float | str | bool) -> Candidate:
        pruned = axes.pop("pruning_ratio", 0.0)
        return Candidate.of(
            {
                m.name: ModuleConfig(**axes, pruning_ratio=pruned if m.name in self.roots else 0.0)
                for m in self.builder.module_map
            }
        )

    def build(self, candidate: Candidate) -> onnx.ModelProto:
        return self.compressor.graph(candidate)

    def run(self, proto: onnx.ModelProto) -> np.ndarray:
        return open_session(proto.SerializeToString()).run(
            None, self.builder.lowered.feed(self.inputs)
        )[0]

    def run_as(self, proto: onnx.ModelProto, saturates: bool) -> np.ndarray:
        """The file's output on a processor whose integer products saturate, or are exact, whichever
        this one is.
        """
        return EmulatedSession(proto.SerializeToString(), saturates).run(
            None, self.builder.lowered.feed(self.inputs)
        )[0]

    def simulate(self, candidate: Candidate) -> np.ndarray:
        with torch.no_grad():
            return call_model(self.stitcher.apply(candidate), self.inputs).numpy()

    def difference(self, candidate: Candidate) -> float:
        """Relative difference of the file's output from the simulation's."""
        return relative_difference(self.run(self.build(candidate)), self.simulate(candidate))


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-12))


def optimized(proto: onnx.ModelProto) -> onnx.GraphProto:
    """The graph that the runtime executes."""
    return optimized_model(proto.SerializeToString()).graph


def trainer_of(task: Task, stitcher: Stitcher, **settings: object) -> Trainer:
    return Trainer(task, Teacher(task, stitcher.teacher, torch.device("cpu")), **settings)
