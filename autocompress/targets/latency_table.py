"""Milliseconds of any candidate from the times of its modules in whole profiled models."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.low_rank import factor_shapes
from autocompress.compress.prune import Pruner
from autocompress.errors import TargetError
from autocompress.modules import CompressibleModule, ModuleMap

FORMAT = 4
CLASSES = ("float", "int8", "conv", "rest")
RIDGE = 0.003  # weight of the prior against the fitted candidates

Key = tuple[str, str]  # (owner, form)


@dataclass(frozen=True)
class Layout:
    """What the workload of a candidate depends on: modules, masks, which tensors each linear module reads, and which modules
    run on the weight-only kernel under a config."""

    module_map: ModuleMap
    pruner: Pruner
    linear_inputs: Mapping[str, tuple[str, ...]]
    weight_only_level: Callable[[CompressibleModule, ModuleConfig], int | None]


def form_of(layout: Layout, module: CompressibleModule, config: ModuleConfig) -> str:
    """The form in which a module under `config` is executed, its factors apart."""
    config = config.executed(module.kind)
    if module.kind not in ("linear", "conv"):
        return "float"
    if config.activation_bits == 8:
        usual = config.static(module.kind) == (module.kind == "conv")
        return "int8" if usual else "int8-static" if module.kind == "linear" else "int8-dynamic"
    if layout.weight_only_level(module, config) is not None:
        return f"nbits{config.weight_bits}-{config.group_size}"
    return "float" if config.activation_bits == 32 else "int16"


def module_work(layout: Layout, module: CompressibleModule, config: ModuleConfig, kept_out: int, kept_in: int) -> tuple[str, float]:
    """(form, weights that are multiplied per output position) of one module under a config with that many channels left."""
    form = form_of(layout, module, config)
    ratio = config.rank_ratio if module.factorisable else 1.0
    shapes = factor_shapes((kept_out, kept_in, *module.weight_shape[2:]), ratio, config.decomposition)
    amount = float(sum(np.prod(shape) for shape in shapes))
    if len(shapes) == 1:
        return form, amount
    both = len(shapes) == 2 and max(shapes[1][2:], default=1) > 1
    return f"{form}-{'tucker' if len(shapes) == 3 else 'spatial' if both else 'rank'}", amount


def workload(layout: Layout, candidate: Candidate) -> dict[Key, float]:
    """Amount of work per (owner, form): weights of modules, kept share of groups, quantised tensors, and the rest of the graph."""
    masks = layout.pruner.masks(candidate)
    amounts: dict[Key, float] = {}
    integer = 0
    for module in layout.module_map:
        out, into = masks.of(module.name, "out"), masks.of(module.name, "in")
        kept_out = module.weight_shape[0] if out is None else int(out.sum())
        kept_in = module.weight_shape[1] if into is None else int(into.sum())
        form, amount = module_work(layout, module, candidate.config(module.name), kept_out, kept_in)
        amounts[module.name, form] = 0.0 if masks.dropped(module.name) else amount
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

    `scales` turn profiled microseconds into wall time, per class for the intercepts and then for the slopes: the profiler's own
    cost sits in the former, the caches' in the latter. `overhead_us` is what no operator accounts for. `check` holds
    the errors on candidates that were never used in a fit. `multiples` by kind of module are the widths that its kernels like.
    """

    target: str
    key: str
    versions: dict[str, str]
    baseline_ms: float
    entries: dict[Key, tuple[float, float]]
    scales: list[float]
    overhead_us: float = 0.0
    check: dict[str, Any] | None = None
    multiples: dict[str, int] = field(default_factory=dict)

    def parts(self, work: Mapping[Key, float], kinds: Mapping[str, str]) -> NDArray[np.float64]:
        """(2 * classes,) profiled microseconds of all intercepts, then of all slopes, per class; `kinds` is the kind of each module."""
        total = np.zeros((2, len(CLASSES)))
        for (owner, form), amount in work.items():
            intercept, slope = self.entries.get((owner, form), (0.0, 0.0))
            share = amount if owner == "rest" else float(amount > 0)
            total[:, CLASSES.index(self.class_of(owner, form, kinds))] += (intercept * share, slope * amount)
        return total.flatten()

    @staticmethod
    def class_of(owner: str, form: str, kinds: Mapping[str, str]) -> str:
        """The class whose scales apply to an entry."""
        if owner not in kinds:
            return "rest"
        return "conv" if kinds[owner] == "conv" else "int8" if form.startswith(("int8", "nbits")) else "float"

    def wall_us(self, owner: str, form: str, amount: float, kinds: Mapping[str, str]) -> float:
        """Wall time of one entry."""
        return float(self.parts({(owner, form): amount}, kinds) @ np.array(self.scales))

    def predict_ms(self, layout: Layout, candidate: Candidate) -> float:
        """Predicted latency."""
        kinds = {module.name: module.kind for module in layout.module_map}
        return float(self.parts(workload(layout, candidate), kinds) @ np.array(self.scales) + self.overhead_us) / 1e3

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
    """Intercept and slope (both at least 0) per key from (key, amount, microseconds) of profiled models, by least squares.

    The same amount measured several times counts once, with the median.
    """
    grouped: dict[Key, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, amount, microseconds in observations:
        grouped[key][amount].append(microseconds)
    entries = {}
    for key, found in grouped.items():
        amounts, times = np.array(list(found)), np.array([np.median(values) for values in found.values()])
        if np.ptp(amounts) == 0:
            entries[key] = (float(times[0]), 0.0)
            continue
        unit = amounts.max()
        # Relative residuals: a small form counts as much as a large one.
        weight = 1 / np.maximum(times, 0.5)
        solution, _ = nnls(np.stack([np.ones_like(amounts), amounts / unit], 1) * weight[:, None], times * weight)
        entries[key] = (float(solution[0]), float(solution[1] / unit))
    return entries


def fit_scales(parts: NDArray[np.float64], wall_us: NDArray[np.float64]) -> tuple[list[float], float]:
    """(scales, overhead in microseconds) by ridge regression on relative errors, all at least 0.

    parts (candidates, 2 * classes) as `LatencyTable.parts`, wall_us (candidates,). The prior is that slopes are wall time
    and that half of each intercept is the profiler's own cost.
    """
    count = parts.shape[1]
    design = np.concatenate([parts, np.full((len(wall_us), 1), 10.0)], axis=1) / wall_us[:, None]
    wanted = np.array([*[0.5] * (count // 2), *[1.0] * (count // 2), 0.0])
    prior = np.diag(np.sqrt(RIDGE * len(wall_us)) * design.mean(0))
    solution, _ = nnls(np.concatenate([design, prior]), np.concatenate([np.ones(len(wall_us)), prior @ wanted]))
    return [float(s) for s in solution[:-1]], float(solution[-1] * 10.0)
