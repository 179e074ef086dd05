"""Compress all towers of a vision-language model, against its language half alone at 4 bits.

    python -m benchmarks.vision_language --json figures.json
    python -m benchmarks.vision_language --quick --out ../llava   # keeps the run folder

The model is a LLaVA of 5 million parameters, trained here on easy-VQA by the classes of
transformers (small_llava.py). The first call trains it and keeps its weights in
AUTOCOMPRESS_BENCH_CACHE. docs/benchmarks/vision_language.md explains the keys. Run nothing else on
the machine meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autocompress import Candidate, ModuleConfig, ParetoFront, Task, from_pretrained, search
from autocompress.results.files import FLOAT_FILE, MODEL_FILE
from benchmarks.bench import compressor_of, file_accuracy
from benchmarks.output import parser_of, require, write_figures
from benchmarks.small_llava import model_folder, write_splits

STEPS, SEARCH_S = 1500, 900.0
QUICK_STEPS, QUICK_SEARCH_S = 150, 180.0
QUESTIONS = {"data": 8000, "validation": 2000, "test": 4000}
QUICK_QUESTIONS = {"data": 1000, "validation": 400, "test": 400}
MANY = 1000  # trials, so that only the time ends the search
HALF = ModuleConfig(4, group_size=32, symmetric=False)
FLOAT, RIVAL, OURS = "float", "language half at 4 bits", "all towers, as accurate"


@dataclass
class Row:
    """Hold one file.

    Attributes:
        path: of the file.
        validation: share of right answers.
        test: the same on the test split.
    """

    path: Path
    validation: float
    test: float

    @property
    def size(self) -> int:
        """Return its bytes."""
        return self.path.stat().st_size


def judged(task: Task, path: Path) -> Row:
    """Return a file with its accuracies."""
    scores = [file_accuracy(task, str(path), list(split)) for split in (task.validation, task.test)]
    return Row(path, *scores)


def language_half(task: Task, path: Path) -> Path:
    """Write the file in which the matrices of the decoder alone have 4 bits, in groups of 32."""
    compressor = compressor_of(task)
    modules = compressor.builder.module_map
    chosen = {m.name: HALF for m in modules if m.tower == "language" and m.kind == "linear"}
    path.write_bytes(compressor.graph(Candidate.of(chosen)).SerializeToString())
    return path


def as_accurate(front: ParetoFront, accuracy: float, run: Path) -> Path | None:
    """Return the smallest file of a front with at least some validation accuracy, if any."""
    drop = front.baseline.accuracy - accuracy
    pick = front.pick("smallest", max_accuracy_drop=drop)
    print(f"    point {pick.point.trial} {pick.shortfall}", flush=True)
    for tower, lost in pick.point.tower_losses.items():
        print(f"        {tower} alone loses {lost:.4f}")
    return None if pick.shortfall else run / pick.point.artifact / MODEL_FILE


def figures_of(rows: Mapping[str, Row]) -> dict[str, float]:
    """Return the figures of --json; what no point is for is left out."""
    figures = {"accuracy_float": rows[FLOAT].test, "accuracy_language_half": rows[RIVAL].test}
    figures["smaller_language_half"] = rows[FLOAT].size / rows[RIVAL].size
    if OURS in rows:
        figures["accuracy_ours"] = rows[OURS].test
        figures["smaller_ours"] = rows[FLOAT].size / rows[OURS].size
        figures["smaller_at_equal_accuracy"] = rows[RIVAL].size / rows[OURS].size
    return figures


def arguments_of() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, help="of training; default: 1500, with --quick 150")
    parser.add_argument("--search-seconds", type=float, help="default: 900, with --quick 180")
    parser.add_argument("--trials", type=int, default=MANY, help="most trials of the search")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder that keeps the run")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    arguments = arguments_of()
    require("transformers", "huggingface")
    quick = arguments.quick
    folder = model_folder(arguments.steps or (QUICK_STEPS if quick else STEPS))
    with tempfile.TemporaryDirectory() as temporary:
        out = (arguments.out or Path(temporary)).resolve()
        if (out / "run").exists():
            sys.exit(f"--out {out}: holds a run already; nearest: {out}-2")
        splits = write_splits(out / "splits", QUICK_QUESTIONS if quick else QUESTIONS)
        named = {name: str(path) for name, path in splits.items()}
        task = from_pretrained(str(folder), **named, metric=["exact_match", "perplexity"])
        seconds = arguments.search_seconds or (QUICK_SEARCH_S if quick else SEARCH_S)
        run = out / "run"
        result = search(task, timeout_s=seconds, n_trials=arguments.trials, out=run)
        files = {FLOAT: run / FLOAT_FILE, RIVAL: language_half(task, out / "half.onnx")}
        rows = {what: judged(task, path) for what, path in files.items()}
        ours = as_accurate(result.front, rows[RIVAL].validation, run)
        if ours is not None:
            rows[OURS] = judged(task, ours)
        print(f"{'file':28}{'bytes':>12}{'smaller':>9}{'validation':>12}{'test':>9}")
        for what, row in rows.items():
            smaller = rows[FLOAT].size / row.size
            print(f"{what:28}{row.size:12d}{smaller:8.2f}x{row.validation:12.4f}{row.test:9.4f}")
        figures = figures_of(rows)
    for key, value in figures.items():
        print(f"  {key} {value:.4f}")
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
