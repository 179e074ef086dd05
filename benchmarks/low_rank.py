"""Compare the output error of plain and whitened SVD at ranks 1/4 and 1/2.

On every layer of the built-in task, and on inputs that no factor was made for.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from dataclasses import dataclass

import numpy as np
import torch

from autocompress import Candidate, ModuleConfig, load_task
from autocompress.export.compressor import Compressor
from benchmarks.bench import INTEGER, compressor_of, output_errors
from benchmarks.output import parser_of, write_figures

RANKS = (0.25, 0.5)
HELD_OUT = 512
ROWS = (
    ("linear, whitened", "linear", "whitened"),
    ("convolution, whitened", "conv", "whitened"),
    ("convolution, Tucker-2", "conv", "tucker"),
    ("convolution, spatial", "conv", "spatial"),
)


@dataclass(frozen=True)
class Factorised:
    """Hold all modules of one kind, factorised in the same way.

    Attributes:
        kind: "linear" or "conv".
        rank: ratio to the largest rank.
        decomposition: as in `ModuleConfig`.
    """

    kind: str
    rank: float
    decomposition: str

    def candidate(self, compressor: Compressor) -> Candidate:
        """Return the candidate with these factors and nothing else."""
        config = ModuleConfig(rank_ratio=self.rank, decomposition=self.decomposition)
        return Candidate.of(dict.fromkeys(names_of(compressor, self.kind), config))

    def weights(self, compressor: Compressor) -> dict[str, float]:
        """Return the weights in the factors of each module, as a share of the module's."""
        shares = {}
        compressor.stitcher.apply(self.candidate(compressor))
        for name in names_of(compressor, self.kind):
            factors = compressor.stitcher.simulated[name].stored
            whole = compressor.builder.teacher.get_submodule(name).weight.numel()
            shares[name] = sum(factor.values.numel() for factor in factors) / whole
        return shares


def names_of(compressor: Compressor, kind: str) -> list[str]:
    """Return the modules of a kind that can be factorised."""
    modules = compressor.builder.module_map
    return [module.name for module in modules if module.kind == kind and module.factorisable]


def main() -> None:
    """Print a row for each decomposition and rank."""
    arguments = parser_of(__doc__).parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    task = load_task("autocompress.tasks:easy_vqa")
    compressor = compressor_of(task)
    unseen = task.first_samples(task.validation, 128 if arguments.quick else HELD_OUT)
    plain = [Factorised(kind, rank, "svd") for kind in INTEGER for rank in RANKS]
    others = [Factorised(kind, rank, name) for _, kind, name in ROWS for rank in RANKS]
    candidates = [each.candidate(compressor) for each in (*plain, *others)]
    errors = dict(
        zip((*plain, *others), output_errors(compressor, candidates, unseen), strict=True)
    )
    linear: list[float] = []
    print(
        "squared output error on held-out inputs as a share of plain SVD's at the same "
        "rank_ratio, over the layers"
    )
    print(f"{'':26}{'rank':>6}{'layers':>8}{'median':>10}{'worst':>10}{'weights':>10}")
    for label, kind, decomposition in ROWS:
        for rank in RANKS:
            each, svd = Factorised(kind, rank, decomposition), Factorised(kind, rank, "svd")
            names = names_of(compressor, kind)
            ratios = [errors[each][name] / errors[svd][name] for name in names]
            weights = np.median(list(each.weights(compressor).values()))
            linear += ratios if kind == "linear" else []
            print(
                f"{label:26}{rank:6.2f}{len(ratios):8}{np.median(ratios):9.3f}x"
                f"{max(ratios):9.3f}x{weights:9.2f}x",
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
