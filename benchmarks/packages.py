"""Compare the packages of a search with those that others make of the same language model.

All of them are model.onnx files with a cache, run by ONNX Runtime. `benchmarks.smollm --genai`
searches first; its `--only-comparison RUN` takes a search that has ended.

The others are the float and the int4 package of the model builder of onnxruntime-genai, and the
float package after ONNX Runtime's quantizers for MatMulNBits: rounding to nearest, HQQ, GPTQ.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from autocompress import read_front
from autocompress.results.files import MODEL_FILE
from benchmarks.bench import open_session
from benchmarks.bench_latency import timed

Windows = Sequence[NDArray[np.int64]]  # (1, tokens) each
BUILDER = "onnxruntime_genai.models.builder"
FLOAT, INT4 = "float package", "builder, int4"
OURS = "search, "  # before the number of the trial
BLOCK = 32  # weights of a scale, as the builder has them
CALIBRATION = 8  # windows for GPTQ, whose inputs of each layer are in memory together
QUANTIZERS = ("rtn", "hqq", "gptq")  # of ONNX Runtime
MINUTES = 15.0  # of a quantizer
PAST = "past_key_values."


@dataclass
class Package:
    """Hold what is measured of one package.

    Attributes:
        path: of its model.onnx.
        size: bytes of the graph and its weights.
        validation: perplexity of the validation text, by which points are chosen.
        test: perplexity of the test text, which is reported.
        decode: milliseconds of a token behind a cache.
        prefill: milliseconds of a prompt.
    """

    path: Path
    size: int
    validation: float
    test: float
    decode: float = 0.0
    prefill: float = 0.0


def windows_of(folder: Path, text: str, length: int) -> Windows:
    """Return the tokens of a text in windows of equal length; the rest is left out.

    Args:
        folder: the model folder, which has the tokenizer.
        text: any text.
        length: tokens of a window.
    """
    import transformers  # takes seconds

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    count = len(tokens) // length
    return [np.array(tokens[i * length : (i + 1) * length], np.int64)[None] for i in range(count)]


def built(folder: Path, out: Path, precision: str) -> Path:
    """Return the file of the builder's package.

    Args:
        folder: the model folder.
        out: folder of the package; one that is there is taken as it is.
        precision: "fp32" or "int4".
    """
    file = out / MODEL_FILE
    if not file.exists():
        command = [sys.executable, "-m", BUILDER, "-i", str(folder), "-o", str(out), "-e", "cpu"]
        command += ["-p", precision, "-c", str(out / "cache"), "--extra_options", "hf_token=false"]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        subprocess.run(command, env={**os.environ, **offline}, check=True, capture_output=True)
    return file


def quantized(source: Path, out: Path, feeds: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """Return the files that ONNX Runtime's quantizers make of the float package.

    A quantizer that fails or takes more than `MINUTES` is left out, with a line that says why.

    Args:
        source: file of the float package.
        out: folder of the files; those that are there are taken as they are.
        feeds: inputs for GPTQ.
    """
    files = {}
    for name in QUANTIZERS:
        path = out / name / MODEL_FILE
        if not path.exists():
            shutil.rmtree(path.parent, ignore_errors=True)  # of one that was interrupted
            reason = _quantize_in_time(name, source, path, feeds)
            if reason:
                print(f"    onnxruntime, {name}: {reason}", flush=True)
                shutil.rmtree(path.parent, ignore_errors=True)
                continue
        files[f"onnxruntime, {name}"] = path
    return files


def _quantize_in_time(
    name: str,
    source: Path,
    path: Path,
    feeds: Sequence[Mapping[str, Any]],
    minutes: float = MINUTES,
) -> str:
    """Run a quantizer in a process of its own; return why there is no file, or ""."""
    context = multiprocessing.get_context("spawn")
    reasons = context.SimpleQueue()
    arguments = (name, source, path, list(feeds), reasons)
    process = context.Process(target=_quantize, args=arguments, daemon=True)
    process.start()
    process.join(60 * minutes)
    if process.is_alive():
        process.kill()
        process.join()
        return f"no file after {minutes:g} minutes"
    if process.exitcode != 0:
        return f"its process ended with {process.exitcode}"
    return str(reasons.get())


def _quantize(
    name: str, source: Path, path: Path, feeds: Sequence[Mapping[str, Any]], reasons: Any
) -> None:
    """Write the file of a quantizer, and put why it failed, or ""."""
    from onnxruntime.quantization import matmul_nbits_quantizer as quantizers

    logging.getLogger(quantizers.__name__).setLevel(logging.WARNING)  # it has a line per node
    ways = {
        "rtn": lambda: quantizers.DefaultWeightOnlyQuantConfig(BLOCK, accuracy_level=4),
        "hqq": lambda: quantizers.HQQWeightOnlyQuantConfig(BLOCK),
        "gptq": lambda: quantizers.GPTQWeightOnlyQuantConfig(list(feeds)),
    }
    path.parent.mkdir(parents=True)
    try:
        own = {"block_size": BLOCK, "accuracy_level": 4, "algo_config": ways[name]()}
        quantizer = quantizers.MatMulNBitsQuantizer(onnx.load(source), 4, **own)
        quantizer.process()
        quantizer.model.save_model_to_file(str(path), True)
    except Exception as error:  # of a library, on a graph that it may not know
        reasons.put(" ".join(str(error).split())[:200] or type(error).__name__)
    else:
        reasons.put("")


def points_of(run: Path) -> dict[str, Path]:
    """Return the verified files of a run, each of which holds all of its weights.

    Args:
        run: the run folder.
    """
    points = read_front(run).points
    return {f"{OURS}{point.trial}": run / point.artifact / MODEL_FILE for point in points}


def bytes_of(path: Path) -> int:
    """Return the bytes of a file and of its external data.

    Args:
        path: of model.onnx.
    """
    proto = onnx.load(path, load_external_data=False)
    locations = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sum(file.stat().st_size for file in (path, *(path.parent / one for one in locations)))


def feed_of(session: Any, tokens: NDArray[np.int64], past: int, head: int) -> dict[str, Any]:
    """Return the inputs of a file: tokens behind a cache of random numbers.

    Args:
        session: of the file.
        tokens: (1, n) token ids.
        past: tokens in the cache.
        head: width of a head, where the file leaves it open.
    """
    generator = np.random.default_rng(0)
    mask = np.ones((1, past + tokens.shape[1]), np.int64)
    feed: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
    for value in session.get_inputs():
        if value.name.startswith(PAST):
            _, heads, _, width = value.shape
            size = (1, heads, past, width if isinstance(width, int) else head)
            feed[value.name] = generator.standard_normal(size, dtype=np.float32)
    return feed


def perplexity_of(path: Path, windows: Windows, head: int) -> float:
    """Return the perplexity of a file by teacher forcing, each window with an empty cache.

    Args:
        path: of model.onnx.
        windows: of tokens.
        head: width of a head.
    """
    session = open_session(str(path))
    (output,) = [value.name for value in session.get_outputs() if value.name == "logits"]
    loss, count = 0.0, 0
    for tokens in windows:
        logits = session.run([output], feed_of(session, tokens, 0, head))[0][0, :-1]
        logits = logits.astype(np.float64)
        rows = np.arange(len(logits))
        totals = np.logaddexp.reduce(logits, axis=1)
        loss += float((totals - logits[rows, tokens[0, 1:]]).sum())
        count += len(logits)
    return float(np.exp(loss / count))


def lost_by_int4(folder: Path, text: str, length: int, out: Path) -> float:
    """Return how much the perplexity of the builder's int4 package is above the float one's.

    Args:
        folder: the model folder.
        text: of validation.
        length: tokens of a window.
        out: folder of what others make, as for `compared`.

    Returns:
        A share of the float package's perplexity.
    """
    windows, perplexities = windows_of(folder, text, length), []
    for name in ("fp32", "int4"):
        file = built(folder, out / name, name)
        perplexities.append(perplexity_of(file, windows, head_of(file)))
    return perplexities[1] / perplexities[0] - 1


def head_of(file: Path) -> int:
    """Return the width of a head.

    Args:
        file: of a package.
    """
    config = json.loads((file.parent / "genai_config.json").read_text())
    return int(config["model"]["decoder"]["head_size"])


def compared(
    folder: Path, run: Path, texts: tuple[str, str], length: int, out: Path, rounds: int
) -> dict[str, Package]:
    """Make the packages, measure all of them, and print a table.

    Args:
        folder: the model folder.
        run: folder of the search.
        texts: of validation and of test.
        length: tokens of a window, of the prompt, and of the cache.
        out: folder of what others make.
        rounds: of timing each file in turn with the float package.

    Returns:
        What was measured, by name.
    """
    validation, test = (windows_of(folder, text, length) for text in texts)
    source = built(folder, out / "fp32", "fp32")
    head = head_of(source)
    session = open_session(str(source))
    calibration = [feed_of(session, tokens, 0, head) for tokens in validation[:CALIBRATION]]
    feeds = {
        "decode": feed_of(session, validation[0][:, -1:], length, head),
        "prefill": feed_of(session, validation[0], 0, head),
    }
    del session
    files = {FLOAT: source, INT4: built(folder, out / "int4", "int4")}
    files |= quantized(source, out, calibration) | points_of(run)
    packages = {}
    for name, path in files.items():
        print(f"    perplexity of {name}", flush=True)
        both = (perplexity_of(path, windows, head) for windows in (validation, test))
        packages[name] = Package(path, bytes_of(path), *both)
    paths = [str(package.path) for package in packages.values()]
    for phase, feed in feeds.items():
        timing = timed(paths[0], paths[1:], feed, rounds)
        ratios = (1.0, *timing.ratios)
        for package, ratio in zip(packages.values(), ratios, strict=True):
            setattr(package, phase, ratio * timing.baseline_ms)
        print(f"    {phase}: {timing.warning or 'a quiet machine'}", flush=True)
    _print_table(packages)
    return packages


def _print_table(packages: Mapping[str, Package]) -> None:
    """Print what was measured."""
    columns = ("MB", "decode ms", "prefill ms", "validation ppl", "test ppl")
    print(f"{'package':20}" + "".join(f"{column:>15}" for column in columns))
    for name, one in packages.items():
        numbers = (one.size / 1e6, one.decode, one.prefill, one.validation, one.test)
        print(f"{name:20}" + "".join(f"{number:15.3f}" for number in numbers))


def better_than(packages: Mapping[str, Package], name: str) -> Iterator[tuple[str, Package | None]]:
    """Yield what the points of the search have against one other package.

    Args:
        packages: from `compared`.
        name: of the other package.

    Yields:
        ("perplexity", the most accurate point that is at least as small and as fast to decode, or
        at least as small where there is none), and ("bytes", the smallest point that is at least
        as accurate). Points are chosen by validation perplexity; None where there is no such point.
    """
    other = packages[name]
    ours = [package for own, package in packages.items() if own.startswith(OURS)]
    small = [one for one in ours if one.size <= other.size]
    fast = [one for one in small if one.decode <= other.decode]
    yield "perplexity", min(fast or small, key=lambda one: one.validation, default=None)
    equal = [one for one in ours if one.validation <= other.validation]
    yield "bytes", min(equal, key=lambda one: one.size, default=None)


def figures_of(packages: Mapping[str, Package]) -> dict[str, float]:
    """Return the figures of --json, and print the lines of all others; see docs/benchmarks.

    Args:
        packages: from `compared`.
    """
    for name, other in packages.items():
        if name.startswith(OURS):
            continue
        for what, one in better_than(packages, name):
            words = (
                "no point"
                if one is None
                else (
                    f"{one.path.parent.name}: {one.size / other.size:.3f} of the bytes, "
                    f"{one.decode / other.decode:.3f} of the time of a token, "
                    f"{one.test / other.test:.3f} of the test perplexity"
                )
            )
            print(f"  against {name}, for {what}: {words}")
    chosen, int4 = dict(better_than(packages, INT4)), packages[INT4]
    figures = {}
    if (best := chosen["perplexity"]) is not None:
        figures["ours_vs_int4_ppl"] = best.test / int4.test
        figures["decode_ratio_float"] = best.decode / packages[FLOAT].decode
        figures["decode_ratio_int4"] = best.decode / int4.decode
    if (smallest := chosen["bytes"]) is not None:
        figures["ours_vs_int4_bytes"] = smallest.size / int4.size
    return figures
