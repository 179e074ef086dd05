"""Compare the latency model with whole models that it has not seen.

Beside it stand multiply-adds, bits, bit operations and single kernels.

For each network a table is measured, then 40 random joint candidates of the default space (another
seed) are timed twice, in turn with the float model. MACs, bits and bit operations get the best line
through the very times that they are judged by; kernels alone are summed as they are, less what
calling a session costs. Networks named _hf are of the transformers package. About twenty minutes on
two cores; --quick takes the ResNet and half of the candidates, --only some networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from scipy.stats import kendalltau

from autocompress import Candidate, Task, load_task
from benchmarks.bench import open_session
from benchmarks.bench_latency import Profiled, profiled
from benchmarks.networks import network
from benchmarks.output import parser_of, write_figures

QUIET = 0.1  # quantile of times on an undisturbed machine


def hf_task(name: str) -> Task:
    """Return a network of the transformers package."""
    from benchmarks.hf_networks import hf_network  # needs an extra

    return hf_network(name)


TASKS: dict[str, Callable[[], Task]] = {
    "easy_vqa": lambda: load_task("autocompress.tasks:easy_vqa"),
    "encoder_b1": lambda: network("encoder", 1),
    "encoder_b8": lambda: network("encoder", 8),
    "resnet": lambda: network("resnet"),
    "mobilenet": lambda: network("mobilenet"),
    **{name: partial(hf_task, name) for name in ("bert_hf", "vit_hf", "clip_hf")},
}
SEED = 1000
Values = NDArray[np.float64]


def joint(bench: Profiled, generator: np.random.Generator) -> Candidate:
    """Return a random mixture of forms and widths.

    Each module has any of the configs that the space has for its form; their bits differ.
    """
    space, layout = bench.space, bench.subject.layout
    mixture = bench.random_candidate(generator)
    configs = {}
    for module in layout.module_map:
        config = mixture.config(module.name)
        form = layout.form(module, config)
        alike = (
            [c for c in space.configs(module.name) if layout.form(module, c) == form]
            if module.name in space.kinds
            else []
        )
        chosen = alike[int(generator.integers(len(alike)))] if alike else config
        configs[module.name] = replace(
            chosen, pruning_ratio=config.pruning_ratio, importance=config.importance
        )
    return Candidate.of(configs)


def counts(bench: Profiled, candidates: Sequence[Candidate]) -> dict[str, Values]:
    """Return (candidates,) multiply-adds, bits of weights, and multiply-adds times both widths."""
    layout, rows = bench.subject.layout, []
    for candidate in candidates:
        macs = bits = operations = 0.0
        for name, kernel in bench.kernels(candidate).items():
            config, module = candidate.config(name), layout.module_map[name]
            exact = layout.kernel(module, config, kernel.kept_out, kernel.kept_in).amount
            products = kernel.rows * exact if module.kind != "embedding" else 0.0
            macs += products
            bits += exact * config.weight_bits
            operations += products * config.weight_bits * config.activation_bits
        rows.append((macs, bits, operations))
    return dict(zip(("macs", "bits", "bit_operations"), np.array(rows).T, strict=True))


def line(x: Values, times: Values) -> Values:
    """Return the line of least relative error through the times that it is judged by."""
    design = np.stack([np.ones_like(x), x], 1) / times[:, None]
    offset, slope = np.linalg.lstsq(design, np.ones_like(times), rcond=None)[0]
    return offset + slope * x


def kernels_alone(bench: Profiled, candidates: Sequence[Candidate]) -> Values:
    """Return (candidates,) milliseconds of each kernel in a model of its own, summed."""
    builder, feed = bench.builder, dict(bench.subject.feed)
    lowered = builder.lowered
    wanted = sorted(
        {site.input for sites in lowered.sites.values() for site in sites if site.input}
        - set(lowered.input_names)
    )
    proto = ModelProto.FromString(lowered.proto.SerializeToString())
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    outputs = open_session(proto.SerializeToString()).run(wanted, feed)
    inputs = dict(zip(wanted, outputs, strict=True)) | feed
    known: dict[object, float] = {}
    sums = []
    for candidate in candidates:
        total = 0.0
        file: bytes | None = None
        for name, kernel in bench.kernels(candidate).items():
            if kernel[:5] not in known:
                file = file or bench.file(candidate)
                module, sites = builder.module_map[name], lowered.sites[name]
                known[kernel[:5]] = sum(
                    _alone(file, module, site, inputs[site.input], kernel)
                    for site in sites
                    if site.input
                )
            total += known[kernel[:5]]
        sums.append(total)
    return np.array(sums) * 1e3


def _alone(model: bytes, module: Any, site: Any, example: Values, kernel: Any) -> float:
    """Return the undisturbed seconds of the operators of a module, on the channels that are left.

    These are the operators between its input and its output.
    """
    x = example
    if site.kind != "embedding":
        axis, channels = (
            (example.ndim - 1, kernel.kept_in) if site.kind == "linear" else (1, kernel.kept_in)
        )
        channels = kernel.kept_out if module.groups > 1 else channels  # depthwise
        x = np.ascontiguousarray(np.take(example, np.arange(channels) % example.shape[axis], axis))
    proto = ModelProto.FromString(model)
    graph, kind = proto.graph, helper.np_dtype_to_tensor_dtype(x.dtype)
    needed, nodes = {site.output}, []
    for node in reversed(graph.node):
        if needed & set(node.output) and site.input not in node.output:
            needed |= set(node.input)
            nodes.append(node)
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.input[:], graph.output[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(tensors)
    graph.input.append(helper.make_tensor_value_info(site.input, kind, x.shape))
    graph.output.append(helper.make_tensor_value_info(site.output, TensorProto.FLOAT, None))
    return _run(proto.SerializeToString(), {site.input: x}) - _call()


@cache
def _call() -> float:
    """Return the seconds of calling a session that does nothing."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "nothing", value[:1], value[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return _run(model.SerializeToString(), {"x": np.ones(1, np.float32)})


def _run(model: bytes, feed: dict[str, Values]) -> float:
    session, seconds = open_session(model), []
    for _ in range(40):
        started = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - started)
    return float(np.quantile(seconds, QUIET))


def slower_than_wider(grid: Mapping[Any, tuple[float, Any]]) -> list[float]:
    """Return time over that of a wider kernel, of each kernel that takes 1.1 times as long."""
    ratios = []
    for place, (us, _) in grid.items():
        wider = [o for at, (o, _) in grid.items() if at[:4] == place[:4] and at[4] > place[4]]
        if wider and us > 1.1 * min(wider):
            ratios.append(us / min(wider))
    return ratios


def prediction_errors(predicted: Values, measured: Values) -> dict[str, float]:
    """Return mean, 95th percentile and bias of the relative error, and Kendall's tau."""
    relative = predicted / measured - 1
    return {
        "mape": float(np.abs(relative).mean()),
        "p95": float(np.quantile(np.abs(relative), 0.95)),
        "bias": float(relative.mean()),
        "kendall_tau": float(kendalltau(predicted, measured).statistic),
    }


def one(name: str, count: int) -> dict[str, float]:
    """Print the table of one network; return its figures."""
    bench = profiled(TASKS[name]())
    table, seconds = bench.table, bench.seconds
    generator = np.random.default_rng(SEED)
    candidates = [joint(bench, generator) for _ in range(count)]
    files = [bench.file(candidate) for candidate in candidates]
    twice = [bench.compare(files, 36) for _ in range(2)]
    first, second = (np.array(timing.ratios) for timing in twice)
    measured = (first + second) / 2 * table.baseline_ms
    predictions = {"this model": np.array([bench.predict_ms(c) for c in candidates])}
    for key, amounts in counts(bench, candidates).items():
        predictions[key] = line(amounts, measured)
    predictions["kernels_alone"] = kernels_alone(bench, candidates)
    repeated = float(np.abs(first / second - 1).mean())
    figures = {
        f"seconds_{name}": seconds,
        f"baseline_ms_{name}": table.baseline_ms,
        f"repeated_{name}": repeated,
    }
    spread = f"{measured.min():.3f} to {measured.max():.3f} ms"
    slower = slower_than_wider(table.model.grid)
    figures[f"narrower_but_slower_{name}"] = max(slower, default=1.0)
    if table.note:
        print(f"{name}: {table.note}")
    words = (
        f"table in {seconds:.0f} s; the same candidate measured twice differs by {repeated:.1%} "
        f"{twice[0].warning}"
    )
    print(f"{name}: float {table.baseline_ms:.3f} ms, candidates {spread}; {words}")
    if slower:
        print(
            f"  {len(slower)} of {len(table.model.grid)} kernels take over 1.1x, at most "
            f"{max(slower):.2f}x, of a wider one's time"
        )
    for key, predicted in predictions.items():
        errors = prediction_errors(predicted, measured)
        tau = float("nan") if errors["kendall_tau"] is None else errors["kendall_tau"]
        suffix = "" if key == "this model" else f"_{key}"
        figures |= {
            f"mape{suffix}_{name}": errors["mape"],
            f"tau{suffix}_{name}": tau,
        }
        if not suffix:
            figures |= {f"p95_{name}": errors["p95"], f"bias_{name}": errors["bias"]}
        words = (
            f"mean error {errors['mape']:6.1%}  p95 {errors['p95']:6.1%}  "
            f"bias {errors['bias']:+6.1%}  tau {tau:.3f}"
        )
        print(f"  {key:16s} {words}", flush=True)
    return figures


def main() -> None:
    """Print the tables of the networks."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(TASKS), default=[], help="networks to measure"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for name in arguments.only or (["resnet"] if arguments.quick else TASKS):
        figures |= one(name, 20 if arguments.quick else 40)
    worst = {"mape": max, "p95": max, "tau": min, "seconds": max, "tau_macs": max, "tau_bits": max}
    if {f"mape_encoder_b{n}" for n in (1, 8)} <= set(figures):
        figures |= {
            f"{key}_encoder": pick(figures[f"{key}_encoder_b{n}"] for n in (1, 8))
            for key, pick in worst.items()
        }
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
