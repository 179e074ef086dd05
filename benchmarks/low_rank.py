"""Output error of plain against whitened SVD at ranks 1/4 and 1/2, on every layer of the built-in
task and on inputs that no factor saw.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from autocompress import find_modules, load_task
from autocompress.compress.calibrate.statistics import (
    CALIBRATION_SAMPLES,
    collect_statistics,
    output_error,
)
from autocompress.compress.factorise.low_rank import compose, factorise
from autocompress.model.plain.split import split_modules
from autocompress.task.batches import take_samples
from benchmarks.output import parser_of, write_figures

CPU = torch.device("cpu")
RANKS = (0.25, 0.5)
HELD_OUT = 512


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    task = load_task("autocompress.tasks:easy_vqa")
    modules = find_modules(task.model, task.example_inputs)
    model = split_modules(task.model)
    seen = [inputs for inputs, _ in take_samples(task.calibration_batches(), CALIBRATION_SAMPLES)]
    unseen = [
        inputs for inputs, _ in take_samples(task.validation, 128 if arguments.quick else HELD_OUT)
    ]
    known = collect_statistics(model, modules, seen, CPU)
    held_out = collect_statistics(model, modules, unseen, CPU)
    linear: list[float] = []
    rows = [
        ("linear, whitened", "linear", "whitened"),
        ("convolution, whitened", "conv", "whitened"),
    ]
    rows += [
        ("convolution, Tucker-2", "conv", "tucker"),
        ("convolution, spatial", "conv", "spatial"),
    ]
    print(
        "squared output error on held-out inputs as a share of plain SVD's at the same "
        "rank_ratio, over the layers"
    )
    print(f"{'':26}{'rank':>6}{'layers':>8}{'median':>10}{'worst':>10}{'weights':>10}")
    for label, kind, decomposition in rows:
        for rank in RANKS:
            ratios, shares = [], []
            for module in modules:
                if module.kind != kind or not module.factorisable:
                    continue
                weight = model.get_submodule(module.name).weight.detach()
                errors = []
                for name in ("svd", decomposition):
                    factors = factorise(weight, rank, name, known[module.name])
                    errors.append(
                        output_error(
                            (weight - compose(factors)).flatten(1), held_out[module.name], False
                        )
                    )
                ratios.append(errors[1] / errors[0])
                shares.append(sum(factor.numel() for factor in factors) / weight.numel())
            linear += ratios if kind == "linear" else []
            print(
                f"{label:26}{rank:6.2f}{len(ratios):8}{np.median(ratios):9.3f}x{max(ratios):9.3f}x{np.median(shares):9.2f}x",
                flush=True,
            )
    figures = {
        "whitened_median_gain": 1 - float(np.median(linear)),
        "whitened_worst_ratio": max(linear),
    }
    print(
        f"linear layers: whitened loses {figures['whitened_median_gain']:.0%} less in the median, "
        f"{max(linear):.3f}x at worst"
    )
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
