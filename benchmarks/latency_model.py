"""The latency model against whole models it has not seen, beside what others count.

Multiply-adds, bits, bit operations, single kernels.

For each network a table is measured, then 40 random joint candidates of the default space (another
seed) are timed twice, in turn with the float model. MACs, bits and bit operations get the best line
through the very times that they are judged by; kernels alone are summed as they are, less what
calling a session costs. Networks named _hf are of the transformers package. About twenty minutes on
two cores; --quick takes the ResNet and half of the candidates, --only some networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from autocompress import Candidate, find_modules, load_task
from autocompress.export.build import Builder
from autocompress.export.float_graph.subgraphs import remove_dead_nodes
from autocompress.export.lowering.lower import Site
from autocompress.export.subject import builder_for, layout_of, subject_of
from autocompress.model.modules import CompressibleModule
from autocompress.space.search_space import BoundSpace, SearchSpace
from autocompress.targets.device.sessions import open_session
from autocompress.targets.device.timing import QUIET
from autocompress.targets.latency import compare
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import Subject, random_candidate
from autocompress.targets.latency_model.profile import measure_table
from autocompress.targets.latency_model.quality import prediction_errors
from autocompress.targets.target import find_target
from autocompress.targets.workload import Kernel, workload
from autocompress.task.task import Task
from benchmarks.networks import network
from benchmarks.output import parser_of, write_figures

TARGET = find_target("onnxruntime-cpu")


def hf_task(name: str) -> Task:
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


def joint(space: BoundSpace, subject: Subject, generator: np.random.Generator) -> Candidate:
    """A random mixture of forms and widths, each module with any of the configs that the space has
    for its form (bits differ).
    """
    layout, found = subject.layout, random_candidate(subject, generator)
    configs = {}
    for module in layout.module_map:
        config = found.config(module.name)
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


def counts(subject: Subject, candidates: Sequence[Candidate]) -> dict[str, Values]:
    """(candidates,) multiply-adds, bits of all weights, and multiply-adds times both widths."""
    rows = []
    for candidate in candidates:
        macs = bits = operations = 0.0
        for name, kernel in workload(subject.layout, candidate).kernels.items():
            config = candidate.config(name)
            exact = subject.layout.kernel(
                subject.layout.module_map[name], config, kernel.kept_out, kernel.kept_in
            ).amount
            products = (
                kernel.rows * exact if subject.layout.module_map[name].kind != "embedding" else 0.0
            )
            macs += products
            bits += exact * config.weight_bits
            operations += products * config.weight_bits * config.activation_bits
        rows.append((macs, bits, operations))
    return dict(zip(("macs", "bits", "bit_operations"), np.array(rows).T, strict=True))


def line(x: Values, times: Values) -> Values:
    """The best line through the very times that it is judged by, in relative error."""
    design = np.stack([np.ones_like(x), x], 1) / times[:, None]
    offset, slope = np.linalg.lstsq(design, np.ones_like(times), rcond=None)[0]
    return offset + slope * x


def kernels_alone(builder: Builder, subject: Subject, candidates: Sequence[Candidate]) -> Values:
    """(candidates,) milliseconds: each kernel in a model of its own, summed over the modules."""
    lowered = builder.lowered
    wanted = sorted(
        {site.input for sites in lowered.sites.values() for site in sites if site.input}
        - set(lowered.input_names)
    )
    proto = ModelProto.FromString(lowered.proto.SerializeToString())
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    inputs = dict(
        zip(
            wanted,
            open_session(proto.SerializeToString()).run(wanted, dict(subject.feed)),
            strict=True,
        )
    ) | dict(subject.feed)
    known: dict[object, float] = {}
    sums = []
    for candidate in candidates:
        total = 0.0
        made: bytes | None = None
        for name, kernel in workload(subject.layout, candidate).kernels.items():
            if kernel[:5] not in known:
                made = made or subject.noise_file(candidate)[0]
                module, sites = builder.module_map[name], lowered.sites[name]
                known[kernel[:5]] = sum(
                    _alone(made, module, site, inputs[site.input], kernel)
                    for site in sites
                    if site.input
                )
            total += known[kernel[:5]]
        sums.append(total)
    return np.array(sums) * 1e3


def _alone(
    model: bytes, module: CompressibleModule, site: Site, example: Values, kernel: Kernel
) -> float:
    """Undisturbed seconds of the operators between the input and the output of a module, on as many
    channels as are left.
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
    kept = [node for node in graph.node if site.input not in node.output]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(kept)
    graph.input.append(helper.make_tensor_value_info(site.input, kind, x.shape))
    graph.output.append(helper.make_tensor_value_info(site.output, TensorProto.FLOAT, None))
    remove_dead_nodes(proto)
    return _run(proto.SerializeToString(), {site.input: x}) - _call()


@cache
def _call() -> float:
    """Seconds of calling a session that does nothing."""
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


def slower_than_wider(table: LatencyTable) -> list[float]:
    """Of every kernel that takes longer than the same with more outputs: by how much."""
    found = []
    for place, (us, _) in table.model.grid.items():
        wider = [
            other
            for at, (other, _) in table.model.grid.items()
            if at[:4] == place[:4] and at[4] > place[4]
        ]
        if wider and us > 1.1 * min(wider):
            found.append(us / min(wider))
    return found


def one(name: str, count: int) -> dict[str, float]:
    """Figures of one network; prints its table."""
    task = TASKS[name]()
    builder = builder_for(task, find_modules(task.model, task.example_inputs, task.towers), TARGET)
    space = SearchSpace.load(None).bind(builder.module_map, TARGET)
    subject = subject_of(task, builder, layout_of(builder), space)
    started = time.monotonic()
    table: LatencyTable = measure_table(subject, TARGET)
    seconds = time.monotonic() - started
    generator = np.random.default_rng(SEED)
    candidates = [joint(space, subject, generator) for _ in range(count)]
    files = [subject.noise_file(candidate)[0] for candidate in candidates]
    twice = [
        compare(subject.baseline, files, subject.feed, TARGET, table.settings, rounds=36)
        for _ in range(2)
    ]
    first, second = (np.array(timing.ratios) for timing in twice)
    measured = (first + second) / 2 * table.baseline_ms
    predictions = {
        "this model": np.array(
            [table.predict_ms(subject.layout, candidate) for candidate in candidates]
        )
    }
    predictions |= {
        key: line(found, measured) for key, found in counts(subject, candidates).items()
    }
    predictions["kernels_alone"] = kernels_alone(builder, subject, candidates)
    repeated = float(np.abs(first / second - 1).mean())
    figures = {
        f"seconds_{name}": seconds,
        f"baseline_ms_{name}": table.baseline_ms,
        f"repeated_{name}": repeated,
    }
    spread = f"{measured.min():.3f} to {measured.max():.3f} ms"
    slower = slower_than_wider(table)
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
        errors = prediction_errors(list(predicted), list(measured))
        suffix = "" if key == "this model" else f"_{key}"
        figures |= {
            f"mape{suffix}_{name}": errors["mape"],
            f"tau{suffix}_{name}": errors["kendall_tau"],
        }
        if not suffix:
            figures |= {f"p95_{name}": errors["p95"], f"bias_{name}": errors["bias"]}
        words = (
            f"mean error {errors['mape']:6.1%}  p95 {errors['p95']:6.1%}  "
            f"bias {errors['bias']:+6.1%}  tau {errors['kendall_tau']:.3f}"
        )
        print(f"  {key:16s} {words}", flush=True)
    return figures


def main() -> None:
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
