"""Write run folders as a search would, of any size, for tests of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from autocompress import Candidate, FrontPoint, Measurement, ModuleConfig, ParetoFront
from autocompress.results.files import write_json
from autocompress.results.front_point import ModulePart

PARTS = ("q_proj", "k_proj", "v_proj", "out_proj", "up", "down")


def names(count: int) -> list[tuple[str, str]]:
    """(tower, module) of a model of pictures and texts; 300 modules have 25 layers per tower."""
    layers = max(1, count // 12)
    modules = []
    for tower in ("vision", "language"):
        for layer in range(layers):
            for part in PARTS:
                place = "attention" if part.endswith("proj") else "mlp"
                modules.append((tower, f"{tower}.layers.{layer}.{place}.{part}"))
    modules.append(("head", "head.classifier"))
    return [*modules[: count - 1], modules[-1]]


def front(
    count: int, modules: list[tuple[str, str]], accuracy: float = 0.9, test: bool = True
) -> ParetoFront:
    """Points on a curve, from the smallest to the most accurate one."""
    worse = abs(accuracy) * 0.2
    disturbed = {"accuracy_gaussian_noise": accuracy - worse / 4, "accuracy_contrast": accuracy}
    own_test = accuracy - worse / 50 if test else None
    base = Measurement(
        40_000_000, 80.0, accuracy, own_test, disturbed, True, memory_bytes=42_000_000
    )
    points = []
    for i in range(count):
        share = i / (count - 1) if count > 1 else 1.0
        bits, lost = (2, 3, 4, 6, 8)[int(4.99 * share)], worse * (1 - share) ** 2
        size, ms = int(2e6 * 5**share), 12.0 * 2.5 ** (0.3 * share + 0.7 * (i * 7 % 5) / 5)
        configs = {}
        for j, (_, name) in enumerate(modules):
            pruned = 0.5 if name.endswith("up") and j % 3 == i % 3 else 0.0
            rank = 0.25 if name.endswith("down") and i < count / 2 else 1.0
            configs[name] = ModuleConfig(bits, 8, pruning_ratio=pruned, rank_ratio=rank)
        metrics = {name: value - lost * (1.3 + share) for name, value in disturbed.items()}
        measured = Measurement(
            size,
            ms,
            accuracy - lost,
            None if own_test is None else own_test - lost,
            metrics,
            True,
            memory_bytes=int(size * 1.6),
        )
        predicted = Measurement(size, ms * (1 + 0.05 * math.sin(i)), accuracy - lost)
        part = ModulePart(int(0.9 * size / len(modules)), 0.6 * ms / len(modules))
        parts = {name: part for _, name in modules}
        fragile = ("contrast",) if i == 0 else ()
        points.append(
            FrontPoint(
                10 + i,
                Candidate.of(configs),
                measured,
                predicted,
                f"models/{10 + i:04d}",
                fragile=fragile,
                parts=parts,
            )
        )
    return ParetoFront.of(base, points)


def write_run(
    folder: Path, points: int = 12, modules: int = 300, run: dict[str, Any] | None = None, **of: Any
) -> Path:
    """Write a run folder: `of` goes to `front`, `run` into run.json."""
    model = names(modules)
    shown = front(points, model, **of)
    rows, times, sensitivities = [], [], ["module,config,divergence,bytes,ms"]
    for tower, name in model:
        row = {"module": name, "tower": tower, "role": "mlp", "kind": "linear"}
        rows.append({**row, "shape": [256, 128], "parameters": 9_000_000 // len(model)})
        share, ms = 0.7 / len(model), 80 * 0.7 / len(model)
        forms = {"float": ms, "int8": ms / 2}
        times.append({"module": name, "share": share, "milliseconds": ms, "forms": forms})
        for bits in (2, 4, 8):
            config = json.dumps({"weight_bits": bits}).replace('"', '""')
            sensitivities.append(f'{name},"{config}",{1e-5 * len(name) / 2**bits:.4g},1,1.0')
    softmax = {"operator": "Softmax", "share": 0.3, "milliseconds": 24.0}
    content = {
        "task": "pictures_and_texts",
        "target": "onnxruntime-cpu",
        "seed": 0,
        "seconds": 900.0,
        "versions": {"torch": "2.13.0"},
        "limits": {"max_size_bytes": None, "max_accuracy_drop": None, "floors": {}},
        "modules": rows,
        "time": {"modules": times, "operators": [softmax], "modules_share": 0.7},
        "latency_check": {"predicted_ms": [20.0, 31.0], "measured_ms": [21.0, 30.0], "mape": 0.04},
        "front_check": {"mape": 0.03},
        "recovery": [
            {"trial": 10, "alpha": 0.2, "temperature": 2.0, "accuracy": {"0": 0.5, "80": 0.7}}
        ],
        "setup_seconds": {"exporting the model": 12.0, "measuring sensitivity": 40.0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", {**content, **(run or {})})
    write_json(folder / "front.json", shown.to_json())
    trials = ["number,state,size_bytes,latency_ms,accuracy,seconds,cause"]
    trials += ["0,PRUNED,,,,1.0,too slow", "1,FAIL,,,,1.0,"]
    for i, point in enumerate((*shown.points, *shown.dominated) * 8):
        p = point.predicted
        size, ms = int(p.size_bytes * (1 + 0.07 * (i % 9))), p.latency_ms * (1 + 0.05 * (i % 7))
        accuracy = p.accuracy - 0.01 * (i % 5)
        trials.append(f"{2 + i},COMPLETE,{size},{ms},{accuracy},1.0,")
    (folder / "trials.csv").write_text("\n".join(trials) + "\n")
    (folder / "sensitivity.csv").write_text("\n".join(sensitivities) + "\n")
    return folder
