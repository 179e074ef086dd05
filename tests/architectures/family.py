"""What every architecture must stand.

Any pruning x rank x zeros x bits in one file that computes what PyTorch computes.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx
import torch
from fixture import Fixture, relative_difference
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress import Candidate, ModuleConfig, Task
from autocompress.candidate import DECOMPOSITIONS, IMPORTANCES, SPARSITY_CRITERIA, SPARSITY_PATTERNS
from autocompress.task.batches import Inputs
from autocompress.task.calls import call_model

# 8-bit inputs lie on ties between two integers now and then, where 1e-7 decides; float arithmetic
# has no ties.
INTEGER_TOLERANCE, FLOAT_TOLERANCE = 0.03, 1e-4
few = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def fixture_of(make: Callable[[], nn.Module], inputs: Inputs) -> Fixture:
    """A model with random weights and used batch normalisations, on one batch."""
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight)
    model.eval()
    with torch.no_grad():
        outputs = call_model(model, inputs)
    assert float(outputs.std(0).min()) > 1e-3, (
        "a model whose outputs do not depend on its inputs shows nothing"
    )
    targets = outputs.argmax(-1) if outputs.dim() == 2 and outputs.shape[1] > 1 else None
    before = state_hash(model)
    found = Fixture(Task("family", model, inputs, [(inputs, targets)], lambda o, t: 0.0))
    found.model, found.before = model, before
    return found


def state_hash(model: nn.Module) -> str:
    """Values, types, devices, modes and gradients' flags of a model."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(
            f"{name} {value.dtype} {value.device}".encode()
            + value.detach().cpu().float().numpy().tobytes()
        )
    digest.update(repr([p.requires_grad for p in model.parameters()]).encode())
    digest.update(repr([m.training for m in model.modules()]).encode())
    return digest.hexdigest()


def drawn(fixture: Fixture, seed: int, integer: bool) -> Candidate:
    """Pruning x rank x zeros x bits, every module and group on its own."""
    pick = np.random.default_rng(seed)
    configs = {}
    for module in fixture.builder.module_map:
        integer_kind = integer and module.kind in ("linear", "conv")
        configs[module.name] = ModuleConfig(
            int(pick.choice([2, 3, 4, 5, 8, 16, 32])),
            8 if integer_kind and pick.random() < 0.5 else 32,
            int(pick.choice([0, 16])),
            float(pick.choice([0.25, 0.5, 1.0])) if module.factorisable else 1.0,
            float(pick.choice([0.0, 0.3, 0.6, 0.95])) if module.name in fixture.roots else 0.0,
            decomposition=str(pick.choice(DECOMPOSITIONS)),
            importance=str(pick.choice(IMPORTANCES)),
            reconstruction=bool(pick.integers(2)),
            sparsity=float(pick.choice([0.0, 0.0, 0.4, 0.8])),
            sparsity_pattern=str(pick.choice(SPARSITY_PATTERNS)),
            sparsity_criterion=str(pick.choice(SPARSITY_CRITERIA)),
        )
    return Candidate.of(configs)


def check(fixture: Fixture, candidate: Candidate, tolerance: float) -> None:
    """The file is valid, has the predicted size, and computes what the PyTorch module computes."""
    proto = fixture.build(candidate)
    onnx.checker.check_model(proto)
    assert relative_difference(fixture.run(proto), fixture.simulate(candidate)) <= tolerance
    assert proto.ByteSize() == fixture.builder.size_bytes(candidate)


class FamilyContract:
    """Inherited by the tests of each architecture, whose file gives `fixture`.

    Attributes:
        prunable: kind of every group that can be pruned, by its root; `refused` the reason of every
            other one.
        several: whether the file has several models, each with some of these groups.
    """

    prunable: ClassVar[dict[str, str]]
    refused: ClassVar[dict[str, str]]
    several: ClassVar[bool] = False

    def test_what_can_be_pruned_and_why_the_rest_cannot(self, fixture: Fixture) -> None:
        groups = fixture.builder.module_map.groups
        names = {g.name for g in groups} if self.several else {*self.prunable, *self.refused}
        assert {g.name: g.kind for g in groups if g.reason is None} == {
            n: k for n, k in self.prunable.items() if n in names
        }
        assert {g.name: g.reason for g in groups if g.reason is not None} == {
            n: r for n, r in self.refused.items() if n in names
        }

    @few
    @given(st.integers(0, 2**32 - 1))
    def test_any_candidate_is_one_file_that_agrees_and_the_original_stays(
        self, fixture: Fixture, seed: int
    ) -> None:
        check(fixture, drawn(fixture, seed, integer=False), FLOAT_TOLERANCE)
        check(fixture, drawn(fixture, seed, integer=True), INTEGER_TOLERANCE)
        assert state_hash(fixture.model) == fixture.before

    def test_parameter_counts_are_exact(self, fixture: Fixture) -> None:
        for ratio in (0.3, 0.6):
            candidate = fixture.uniform(pruning_ratio=ratio)
            masks = fixture.builder.pruner.masks(candidate)
            constants = {t.name for t in fixture.builder.lowered.proto.graph.initializer} - set(
                fixture.builder.teacher.state_dict()
            )
            stored = {
                t.name: tuple(t.dims)
                for t in fixture.build(candidate).graph.initializer
                if t.name not in constants
            }
            found = sum(int(np.prod(shape)) for shape in stored.values() if len(shape) >= 2)
            expected = 0
            for module in fixture.builder.module_map:
                if masks.dropped(module.name):
                    continue
                shape = list(module.weight_shape)
                for i, side in enumerate(("out", "in")):
                    mask = masks.of(module.name, side)
                    shape[i] = shape[i] if mask is None else int(mask.sum())
                assert 0 not in shape
                expected += int(np.prod(shape))
            others = 0
            known = {n for m in fixture.builder.module_map for n in (m.name, *m.aliases)}
            teacher = fixture.builder.teacher
            for name, parameter in teacher.named_parameters():
                holder = name.rpartition(".")[0]
                if parameter.dim() >= 2 and holder not in known:
                    mask = masks.of(holder, "in")
                    others += (
                        parameter.numel()
                        if mask is None
                        else parameter[torch.from_numpy(mask)].numel()
                    )
            assert found == expected + others

    def test_a_ratio_of_zero_is_bit_exact(self, fixture: Fixture) -> None:
        untouched = fixture.uniform(pruning_ratio=0.0, sparsity=0.0, rank_ratio=1.0)
        assert untouched == Candidate()
        with torch.no_grad():
            expected = call_model(fixture.builder.teacher, fixture.inputs)
        assert torch.equal(torch.from_numpy(fixture.simulate(untouched)), expected)
        with torch.no_grad():
            torch.testing.assert_close(
                call_model(copy.deepcopy(fixture.model), fixture.inputs),
                expected,
                rtol=1e-4,
                atol=1e-5,
            )


def images(channels: int = 3, size: int = 16) -> Tensor:
    """A batch of pictures of noise."""
    return torch.randn(12, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    """A batch of sentences of seven words."""
    return torch.randint(0, 30, (12, 7), generator=torch.Generator().manual_seed(1))
