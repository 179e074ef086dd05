"""A small layout without a model.

Two linear modules with a group between them, a convolution and a table.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from autocompress.candidate import Candidate
from autocompress.compress.prune.masks import Masks
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.targets.workload import Layout


def module(name: str, kind: str, *shape: int, positions: int = 4) -> CompressibleModule:
    return CompressibleModule(name, kind, shape, False, 0, positions, "", "mlp", None)


MODULES = (
    module("conv", "conv", 8, 3, 3, 3, positions=16),
    module("a", "linear", 16, 8),
    module("b", "linear", 8, 16),
    module("table", "embedding", 100, 8),
)
MAP = ModuleMap(MODULES, (), (), 0, 0)
EDGES = (("", "conv"), ("conv", "a"), ("a", "b"))


def masks(candidate: Candidate) -> Masks:
    """A ratio on `a` cuts its outputs and the inputs of `b`; all of it drops both."""
    ratio = candidate.config("a").pruning_ratio
    if ratio == 0:
        return Masks({})
    if ratio == 1:
        return Masks({("a", "whole"): np.zeros(1, bool), ("b", "whole"): np.zeros(1, bool)})
    kept = np.arange(16) >= round(16 * ratio)
    return Masks({("a", "out"): kept, ("b", "in"): kept})


def layout(**changes: object) -> Layout:
    parts: dict[str, object] = {
        "module_map": MAP,
        "pruner": SimpleNamespace(masks=masks),
        "linear_inputs": {"a": ("t0",), "b": ("t1",)},
        "packed": lambda module, config: False,
        "integer_form": lambda module: IntegerForm.SIGNED,
        "signatures": {m.name: f"{m.kind} {'x'.join(map(str, m.weight_shape))}" for m in MODULES},
        "edges": EDGES,
        "multiples": {},
    }
    return Layout(**{**parts, **changes})
