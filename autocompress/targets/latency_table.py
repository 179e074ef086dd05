"""Milliseconds of any candidate from the times of its modules in whole profiled models."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.low_rank import rank_of
from autocompress.compress.prune import Pruner
from autocompress.errors import TargetError
from autocompress.modules import CompressibleModule, ModuleMap

FORMAT = 1
CLASSES = ("float", "int8", "conv", "rest")
RIDGE = 0.2  # weight of the prior "profiled time is wall time" against the fitted candidates

Key = tuple[str, str]  # (owner, form)


@dataclass(frozen=True)
class Layout:
    """What the workload of a candidate depends on: modules, masks, and which tensors each linear module reads."""

    module_map: ModuleMap
    pruner: Pruner
    linear_inputs: Mapping[str, tuple[str, ...]]


def module_work(module: CompressibleModule, config: ModuleConfig, kept_out: int, kept_in: int) -> tuple[str, float]:
    """(form, weights that are multiplied per output position) of one module under a config with that many channels left."""
    config = config.effective()
    kernel = float(np.prod(module.weight_shape[2:]))
    form = "int8" if config.activation_bits == 8 and module.kind != "embedding" else "float"
    if config.rank_ratio < 1 and module.kind == "linear":
        rank = rank_of(kept_out, kept_in, config.rank_ratio)
        return f"{form}-rank", float(rank * (kept_out + kept_in))
    return form, kept_out * kept_in * kernel


def workload(layout: Layout, candidate: Candidate) -> dict[Key, float]:
    """Amount of work per (owner, form): weights of modules, kept share of groups, quantised tensors, and the rest of the graph."""
    masks = layout.pruner.masks(candidate)
    amounts: dict[Key, float] = {}
    integer = 0
    for module in layout.module_map:
        out, into = masks.of(module.name, "out"), masks.of(module.name, "in")
        kept_out = module.weight_shape[0] if out is None else int(out.sum())
        kept_in = module.weight_shape[1] if into is None else int(into.sum())
        form, amount = module_work(module, candidate.config(module.name), kept_out, kept_in)
        amounts[module.name, form] = amount
        if form.startswith("int8"):
            integer += 1
            for tensor in layout.linear_inputs.get(module.name, ()):
                amounts[f"quantize:{tensor}", "any"] = 1.0
    for group in layout.module_map.groups:
        if group.reason is None:
            ratio = candidate.config(group.name).pruning_ratio
            amounts[f"group:{group.name}", "any"] = group.kept_units(ratio) / group.units if ratio > 0 else 1.0
    share = integer / max(1, len(layout.module_map))
    amounts["rest", "float"], amounts["rest", "int8"] = 1 - share, share
    return amounts


@dataclass
class LatencyTable:
    """Times of one model on one target, in microseconds per (owner, form) as intercept + slope * amount.

    `scales` turn profiled microseconds of each class into wall time (the profiler's own cost and the caches differ),
    `overhead_us` is what no operator accounts for. `check` holds the errors on candidates that were never used in a fit.
    """

    target: str
    key: str
    versions: dict[str, str]
    baseline_ms: float
    entries: dict[Key, tuple[float, float]]
    scales: dict[str, float]
    overhead_us: float = 0.0
    check: dict[str, Any] | None = None

    def class_times(self, work: Mapping[Key, float], kinds: Mapping[str, str]) -> NDArray[np.float64]:
        """Profiled microseconds per class of CLASSES; `kinds` is the kind of each module."""
        total = dict.fromkeys(CLASSES, 0.0)
        for (owner, form), amount in work.items():
            total[self.class_of(owner, form, kinds)] += self.microseconds(owner, form, amount)
        return np.array([total[name] for name in CLASSES])

    @staticmethod
    def class_of(owner: str, form: str, kinds: Mapping[str, str]) -> str:
        """The class whose scale applies to an entry."""
        if owner not in kinds:
            return "rest"
        return "conv" if kinds[owner] == "conv" else form.removesuffix("-rank")

    def microseconds(self, owner: str, form: str, amount: float) -> float:
        """Profiled time of one entry."""
        if amount == 0:
            return 0.0
        if (owner, form) not in self.entries:
            return 0.0
        intercept, slope = self.entries[owner, form]
        if owner == "rest":
            return (intercept + slope) * amount
        return intercept + slope * amount

    def wall_us(self, owner: str, form: str, amount: float, kinds: Mapping[str, str]) -> float:
        """Wall time of one entry."""
        return self.scales[self.class_of(owner, form, kinds)] * self.microseconds(owner, form, amount)

    def predict_ms(self, layout: Layout, candidate: Candidate) -> float:
        """Predicted latency."""
        kinds = {module.name: module.kind for module in layout.module_map}
        times = self.class_times(workload(layout, candidate), kinds)
        return float(times @ np.array([self.scales[name] for name in CLASSES]) + self.overhead_us) / 1e3

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        data = asdict(self)
        data["entries"] = [
            {"owner": owner, "form": form, "intercept_us": a, "slope_us": b} for (owner, form), (a, b) in self.entries.items()
        ]
        path.write_text(json.dumps({"format": FORMAT, **data}, indent=1))

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a table; TargetError when it is damaged or of another format."""
        try:
            data = json.loads(path.read_text())
            if data.pop("format") != FORMAT:
                raise ValueError("another format")
            entries = {(e["owner"], e["form"]): (float(e["intercept_us"]), float(e["slope_us"])) for e in data.pop("entries")}
            return cls(entries=entries, **data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TargetError(f"{path}: not a latency table ({type(error).__name__}); delete it to have it measured again") from error


def fit_entries(observations: Iterable[tuple[Key, float, float]]) -> dict[Key, tuple[float, float]]:
    """Intercept and slope (both at least 0) per key from (key, amount, microseconds) of profiled models, by least squares."""
    grouped: dict[Key, list[tuple[float, float]]] = defaultdict(list)
    for key, amount, microseconds in observations:
        grouped[key].append((amount, microseconds))
    entries = {}
    for key, points in grouped.items():
        amounts, times = np.array(points).T
        if np.ptp(amounts) == 0:
            entries[key] = (float(np.median(times)), 0.0)
            continue
        unit = amounts.max()
        # Relative residuals: a small form counts as much as a large one.
        weight = 1 / np.maximum(times, 0.5)
        solution, _ = nnls(np.stack([np.ones_like(amounts), amounts / unit], 1) * weight[:, None], times * weight)
        entries[key] = (float(solution[0]), float(solution[1] / unit))
    return entries


def fit_scales(class_times: NDArray[np.float64], wall_us: NDArray[np.float64]) -> tuple[dict[str, float], float]:
    """(scale per class, overhead in microseconds) by ridge regression towards (1, 0) on relative errors, all at least 0.

    class_times (candidates, classes), wall_us (candidates,).
    """
    design = np.concatenate([class_times, np.full((len(wall_us), 1), 10.0)], axis=1) / wall_us[:, None]
    size = np.abs(design).mean(0)
    prior = np.diag(np.sqrt(RIDGE * len(wall_us)) * size)
    wanted = prior @ np.array([*[1.0] * len(CLASSES), 0.0])
    solution, _ = nnls(np.concatenate([design, prior]), np.concatenate([np.ones(len(wall_us)), wanted]))
    return dict(zip(CLASSES, map(float, solution[:-1]), strict=True)), float(solution[-1] * 10.0)
