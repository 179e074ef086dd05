"""Train one block so that its output is that of the float block (BRECQ, Li et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.compress.assemble.calls import Calls
from autocompress.compress.reconstruct.hidden import BlockCall, again, mixed
from autocompress.compress.recover.context import learning, parameter_groups
from autocompress.compress.recover.cycle import rate
from autocompress.errors import NotComputableError

FLOAT_SHARE = 0.5  # of the input elements of a step that come from the float model
# Learning rate relative to the distillation's; of 1.5, 5 and 15 the one with the lowest divergence
# on a small encoder at 2 bits.
RATE = 15.0
BETAS = (0.9, 0.95)
CLIP = 1.0  # largest norm of the gradient


@dataclass(frozen=True, eq=False)
class Pair:
    """Hold the same call of a block in both models.

    Attributes:
        compressed: in the compressed model; its outputs are not read.
        original: in the float model.
    """

    compressed: BlockCall
    original: BlockCall


def output_error(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the mean over tensors of ||output - wanted||^2 / ||wanted||^2.

    Args:
        outputs: of a block.
        wanted: of the float block, of the same shapes.

    Returns:
        () error, at least 0.
    """
    errors = []
    for output, target in zip(outputs, wanted, strict=True):
        energy = target.float().square().sum().clamp_min(1e-12)
        errors.append((output.float() - target.float()).square().sum() / energy)
    return torch.stack(errors).mean()


@torch.no_grad()
def mean_error(block: nn.Module, pairs: Sequence[Pair], calls: Calls) -> float:
    """Return the mean output error of a block on the inputs that the compressed model gives.

    Args:
        block: part of a simulated model.
        pairs: calls of the block.
        calls: counts the calls of compressible modules.

    Returns:
        Mean over the pairs, at least 0.
    """
    errors = []
    for pair in pairs:
        outputs = again(block, pair.compressed, pair.compressed.inputs, calls)
        errors.append(float(output_error(outputs, pair.original.outputs)))
    return sum(errors) / len(errors)


def train_block(
    block: nn.Module,
    pairs: Sequence[Pair],
    calls: Calls,
    steps: int,
    learning_rate: float,
    stop: Callable[[], bool],
    model: nn.Module | None = None,
) -> bool:
    """Train a block in place by one cosine cycle of AdamW; each step sees one call.

    Inputs are mixed from both models (QDrop, Wei et al. 2022). The draws are those of torch's
    random generator.

    Args:
        block: part of a simulated model whose training was started.
        pairs: calls of the block, at least one.
        calls: counts the calls of compressible modules.
        steps: optimizer steps.
        learning_rate: the distillation's; RATE times it is taken.
        stop: called after each step; True ends the training.
        model: of which the block is a part; None for the block alone.

    Returns:
        True if the block's error is smaller than before.

    Raises:
        NotComputableError: if a gradient is not finite.
    """
    groups = parameter_groups(block, model)
    parameters = [parameter for group in groups.values() for parameter in group]
    if not parameters:
        return False
    before = mean_error(block, pairs, calls)
    base = RATE * learning_rate
    optimizer = torch.optim.AdamW(parameters, base, betas=BETAS, weight_decay=0.0, fused=True)
    with learning(parameters):
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = base * rate(step, steps)
            pair = pairs[int(torch.randint(len(pairs), ()))]
            inputs = mixed(pair.compressed.inputs, pair.original.inputs, FLOAT_SHARE)
            error = output_error(
                again(block, pair.compressed, inputs, calls), pair.original.outputs
            )
            optimizer.zero_grad()
            torch.autograd.backward(error)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, CLIP))
            if not math.isfinite(norm):
                raise NotComputableError(f"recovery: gradient is {norm} at step {step} of a block")
            optimizer.step()
            if stop():
                break
    return mean_error(block, pairs, calls) < before
