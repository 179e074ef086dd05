from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from autocompress import ModuleConfig, find_modules
from autocompress.candidate import Candidate
from autocompress.compress.assemble.library import VariantLibrary
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.export.prepare import prepare
from autocompress.measure.accuracy import model_outputs
from autocompress.search.propose.curvature import Curvature
from autocompress.search.propose.sensitivity import measure_sensitivity
from autocompress.search.propose.sensitivity_table import Sensitivity
from autocompress.space.search_space import SearchSpace
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.target import find_target
from autocompress.task.batches import take_samples

pytestmark = pytest.mark.slow

PRUNED = ModuleConfig(pruning_ratio=0.25)
CPU = torch.device("cpu")
SPACE = {
    "modules": [
        {
            "match": "*",
            "weight_bits": [2, 3, 4, 8],
            "rank_ratio": [0.25, 1.0],
            "pruning_ratio": [0.0, 0.25, 0.5],
        }
    ]
}


def stitcher_of(task) -> Stitcher:
    builder = prepare(task, find_modules(task.model, task.example_inputs), KernelChoice())
    return Stitcher(
        builder.teacher, builder.module_map, VariantLibrary(builder.evidence), builder.plan
    )


def measured(task, stitcher: Stitcher, module: str, config: ModuleConfig, batches) -> float:
    model = stitcher.apply(Candidate.of({module: config}))
    parts = [
        task.output_divergence(
            model_outputs(model, x, CPU), model_outputs(stitcher.teacher, x, CPU)
        )
        for x in batches
    ]
    return float(torch.cat(parts).mean())


@pytest.mark.parametrize("name", ["cnn_task", "transformer_task"])
def test_estimates_rank_choices_as_measurements_do(
    name: str, request: pytest.FixtureRequest
) -> None:
    task = request.getfixturevalue(name)
    stitcher = stitcher_of(task)
    batches = [x for x, _ in take_samples(task.calibration_batches(), 64)]
    curvature = Curvature(task, stitcher, batches, CPU)
    pairs = []
    for module in stitcher.module_map:
        for config in (
            ModuleConfig(2),
            ModuleConfig(4),
            ModuleConfig(rank_ratio=0.25) if module.factorisable else ModuleConfig(3),
        ):
            estimate = curvature.estimate(module.name, config)
            if module.kind in ("linear", "conv"):
                assert estimate is not None
                pairs.append((estimate, measured(task, stitcher, module.name, config, batches)))
            else:
                assert estimate is None, "nothing is made up for embeddings"
    found = np.array(pairs)
    assert spearmanr(*found.T).statistic > 0.7
    assert not any(parameter.grad is not None for parameter in stitcher.teacher.parameters())
    assert (
        curvature.estimate(
            next(m.name for m in stitcher.module_map if m.kind == "linear"), ModuleConfig()
        )
        == 0.0
    )


def test_small_changes_are_estimated_by_their_size_and_for_any_divergence(cnn_task) -> None:
    """With the squared distance the second order is all there is in the last layer.

    Rounded to nearest: GPTQ leaves less error on the inputs it was made with than on others.
    """
    task = replace(
        cnn_task, divergence=lambda student, teacher: (student - teacher).square().mean(1)
    )
    stitcher = stitcher_of(task)
    batches = [x for x, _ in take_samples(task.calibration_batches(), 256)]
    curvature = Curvature(task, stitcher, batches, CPU)
    config = ModuleConfig(4, algorithm="nearest")
    assert curvature.estimate("fc", config) == pytest.approx(
        measured(task, stitcher, "fc", config, batches), rel=0.35
    )


def test_a_model_without_gradients_is_measured_throughout(cnn_task) -> None:
    stitcher = stitcher_of(cnn_task)
    stitcher.teacher.forward = torch.no_grad()(stitcher.teacher.forward)
    found = Curvature(
        cnn_task, stitcher, [x for x, _ in take_samples(cnn_task.calibration_batches(), 32)], CPU
    )
    assert found.estimate("fc", ModuleConfig(4)) is None


def test_what_decides_is_measured_and_the_rest_is_scaled_to_it(cnn_task, tmp_path: Path) -> None:
    stitcher = stitcher_of(cnn_task)
    space = SearchSpace.load(SPACE).bind(stitcher.module_map, find_target("onnxruntime-cpu"))

    def sensitivity(deciding: list[ModuleConfig], deadline: float | None = None) -> Sensitivity:
        def chosen(losses):
            return {probe: 1 for probe in losses if probe[1] in deciding}

        return measure_sensitivity(
            cnn_task,
            stitcher,
            space,
            CPU,
            lambda module, config: (1, 1.0),
            chosen,
            deadline,
            lambda what, share: None,
        )

    some = sensitivity([ModuleConfig(3), PRUNED])
    everything = sensitivity([config for _, config in {(r.module, r.config) for r in some.rows}])
    assert everything.measured == len(everything.rows)
    assert 0 < some.measured < len(some.rows)
    assert some.rank_correlation is not None
    truth = {(r.module, r.config): r.divergence for r in everything.rows}
    for row in some.rows:
        if row.config == ModuleConfig(3):
            assert row.divergence == pytest.approx(truth[row.module, row.config])
    rest = [row for row in some.rows if row.config not in (ModuleConfig(3), PRUNED)]
    assert len(rest) == len(some.rows) - some.measured
    guessed = np.array([(row.divergence, truth[row.module, row.config]) for row in rest])
    assert spearmanr(*guessed.T).statistic > 0.8
    late = sensitivity([ModuleConfig(3)], deadline=0.0)
    assert late.measured == 0
    assert len(late.rows) == len(some.rows)
    assert all(np.isfinite(r.divergence) for r in late.rows)
