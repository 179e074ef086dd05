"""Sequences that a causal language model writes on, for sequence-level distillation (Kim and Rush 2016, sec. 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.task.batches import Inputs, input_tensors, map_inputs, to_device
from autocompress.task.calls import call_model

PROMPT = 0.25  # share of each sequence that stays the user's


def tokens_of(inputs: Inputs) -> Tensor:
    """The (n, length) integer tensor of `inputs`: "input_ids" or the first one; TaskError when there is none."""
    named = [inputs["input_ids"]] if isinstance(inputs, Mapping) and "input_ids" in inputs else []
    tensor: Tensor
    for tensor in (*named, *input_tensors(inputs)):
        if tensor.dim() == 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool:
            return tensor
    raise TaskError(
        "task: sequences are distilled only where inputs hold one (n, length) tensor of tokens; nearest valid value: 0"
    )


def check_causal(model: nn.Module, inputs: Inputs, target: Any) -> bool:
    """Whether targets are the inputs shifted by one (else they are the inputs); TaskError for what is no causal language model."""
    tokens = tokens_of(inputs)
    if not (isinstance(target, Tensor) and target.shape == tokens.shape):
        raise TaskError(
            "task: sequences are distilled only where targets are the next tokens, (n, length); nearest valid value: 0"
        )
    known = target != -100
    shifted = bool(((target[:, :-1] == tokens[:, 1:]) | ~known[:, :-1]).all())
    if not shifted and not bool(((target == tokens) | ~known).all()):
        raise TaskError(
            "task: sequences are distilled only where targets are the inputs or the inputs shifted by one; nearest valid value: 0"
        )
    changed = tokens.clone()
    changed[:, -1] = tokens[:, 0]
    with torch.no_grad():
        before, after = call_model(model, inputs), call_model(model, with_tokens(inputs, changed))
    if before.shape[:2] != tokens.shape or not torch.allclose(
        before[:, :-1], after[:, :-1], atol=1e-4
    ):
        raise TaskError(
            "task: sequences are distilled only from models whose outputs depend on earlier tokens alone; nearest valid value: 0"
        )
    return shifted


def with_tokens(inputs: Inputs, tokens: Tensor) -> Inputs:
    """`inputs` with another token tensor."""
    old = tokens_of(inputs)
    return map_inputs(inputs, lambda tensor: tokens if tensor is old else tensor)


@torch.no_grad()
def continued(model: nn.Module, inputs: Inputs, device: torch.device) -> Tensor:
    """(n, length + 1) tokens: the first quarter of each sequence, and what `model` samples behind it at temperature 1.

    The same inputs give the same tokens. The model always sees whole sequences, whose unwritten end a causal model does not look at.
    """
    inputs = to_device(inputs, device)
    given = tokens_of(inputs)
    length = given.shape[1]
    tokens = torch.cat([given, given[:, :1]], 1)
    generator = torch.Generator().manual_seed(0)
    for position in range(max(1, int(PROMPT * length)), length + 1):
        logits = (
            call_model(model, with_tokens(inputs, tokens[:, :length]))[:, position - 1]
            .float()
            .cpu()
        )
        tokens[:, position] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[
            :, 0
        ].to(device)
    return tokens.cpu()


def as_batch(inputs: Inputs, tokens: Tensor, shifted: bool) -> tuple[Inputs, Tensor]:
    """A training batch of `tokens` (n, length + 1) in the form of `inputs`, with its targets."""
    length = tokens.shape[1] - 1
    return with_tokens(inputs, tokens[:, :length].to(tokens_of(inputs).device)), tokens[
        :, 1:
    ] if shifted else tokens[:, :length]
