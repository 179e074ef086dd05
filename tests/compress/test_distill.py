from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fixture import trainer_of

from autocompress import Candidate, Distillation, ModuleConfig, find_modules
from autocompress.compress.distill import distillation_loss
from autocompress.compress.evidence import Evidence
from autocompress.compress.library import VariantLibrary
from autocompress.compress.stitch import Stitcher
from autocompress.compress.train import Cycle
from autocompress.errors import NotComputableError
from autocompress.measure.accuracy import evaluate_model
from autocompress.split import split_modules

CPU = torch.device("cpu")


def test_alpha_0_and_1_are_the_pure_losses(cnn_task) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    target = torch.randint(0, 4, (6,), generator=generator)
    hard = F.cross_entropy(student, target)
    p = (teacher / 2).softmax(1)
    soft = 4 * (p * (p.log() - (student / 2).log_softmax(1))).sum(1).mean()

    def loss(alpha: float, target):
        return distillation_loss(cnn_task, {"": student}, {"": teacher}, target, Distillation(alpha, 2.0, 1))

    torch.testing.assert_close(loss(1.0, target), hard)
    torch.testing.assert_close(loss(0.0, target), soft)
    torch.testing.assert_close(loss(0.3, target), 0.3 * hard + 0.7 * soft)
    torch.testing.assert_close(loss(1.0, None), soft)


def stitched(task) -> Stitcher:
    found = find_modules(task.model, task.example_inputs)
    teacher = split_modules(task.model)
    return Stitcher(teacher, found, VariantLibrary(Evidence(teacher)))


CANDIDATE = Candidate.of(
    {
        "stem.0": ModuleConfig(4, pruning_ratio=0.25),
        "body.0.conv1": ModuleConfig(4, pruning_ratio=0.5),
        "body.0.conv2": ModuleConfig(4),
        "body.2": ModuleConfig(4, pruning_ratio=0.25),
        "fc": ModuleConfig(4, rank_ratio=0.5),
    },
    Distillation(0.0, 2.0, 120, learning_rate=3e-3),
)


def test_recovery_brings_the_outputs_back_and_leaves_the_teacher(cnn_task) -> None:
    stitcher = stitched(cnn_task)
    before_teacher = {k: v.clone() for k, v in stitcher.teacher.state_dict().items()}
    model = stitcher.apply(CANDIDATE)
    _, reference = evaluate_model(cnn_task, stitcher.teacher, cnn_task.validation, CPU)
    _, outputs = evaluate_model(cnn_task, model, cnn_task.validation, CPU)
    before = float(cnn_task.output_divergence(outputs, reference).mean())
    stitcher.start_training(CANDIDATE)
    Cycle(trainer_of(cnn_task, stitcher), stitcher.model, CANDIDATE.distillation, 120).run()
    state = stitcher.trained_state()
    _, trained = evaluate_model(cnn_task, stitcher.model, cnn_task.validation, CPU)
    _, outputs = evaluate_model(cnn_task, stitcher.apply(CANDIDATE, state), cnn_task.validation, CPU)
    torch.testing.assert_close(outputs, trained, msg="the stored variants are what training saw")
    assert float(cnn_task.output_divergence(outputs, reference).mean()) < before / 2
    for name, value in stitcher.teacher.state_dict().items():
        assert torch.equal(value, before_teacher[name]), name
    # Shapes are still those of the candidate.
    for name, variant in state.variants.items():
        assert variant.factors[0].weight_bits == 4
        expected = stitcher.variant(name, name, CANDIDATE)
        assert [f.values.shape for f in variant.factors] == [f.values.shape for f in expected.factors]
    # And the next candidate sees nothing of it.
    assert torch.equal(stitcher.apply(Candidate())(cnn_task.example_inputs), stitcher.teacher(cnn_task.example_inputs))


def test_a_loss_that_is_not_finite_is_said(cnn_task) -> None:
    stitcher = stitched(cnn_task)
    stitcher.apply(CANDIDATE)
    stitcher.start_training(CANDIDATE)
    with torch.no_grad():
        stitcher.simulated["fc"].trained[0].fill_(float("nan"))
    with pytest.raises(NotComputableError, match="recovery: loss is nan at step 0 of 120"):
        Cycle(trainer_of(cnn_task, stitcher), stitcher.model, CANDIDATE.distillation, 120).run()
