"""Distil sequences that the teacher continues (Kim and Rush 2016, sec. 3.2).

`cycle.py` replaces a share of the training batches by sequences that the causal language model
wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.task.batches import Inputs, input_tensors, map_inputs, to_device
from autocompress.task.calls import call_model

PROMPT = 0.25  # share of each sequence that is the prompt
_ONLY = "task: sequences are distilled only"
_NEAREST = "; nearest valid value: 0"


def tokens_of(inputs: Inputs) -> Tensor:
    """Return the inputs' tensor of tokens: "input_ids", or the first (n, length) of integers.

    Args:
        inputs: one batch of inputs.

    Returns:
        (n, length) integers.

    Raises:
        TaskError: if there is no such tensor.
    """
    named = [inputs["input_ids"]] if isinstance(inputs, Mapping) and "input_ids" in inputs else []
    tensor: Tensor
    for tensor in (*named, *input_tensors(inputs)):
        if tensor.dim() == 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool:
            return tensor
    raise TaskError(f"{_ONLY} where inputs hold one (n, length) tensor of tokens{_NEAREST}")


def check_causal(model: nn.Module, inputs: Inputs, target: Any) -> bool:
    """Check that a model is a causal language model; return True if targets are shifted inputs.

    Args:
        model: the original model.
        inputs: one training batch, on the model's device.
        target: (n, length) its targets; -100 marks positions that do not count.

    Returns:
        True if targets are the inputs shifted by one, False if they are the inputs.

    Raises:
        TaskError: if inputs, targets or outputs are not those of a causal language model.
    """
    tokens = tokens_of(inputs)
    if not (isinstance(target, Tensor) and target.shape == tokens.shape):
        raise TaskError(f"{_ONLY} where targets are the next tokens, (n, length){_NEAREST}")
    ignored = target == -100
    shifted = bool(((target[:, :-1] == tokens[:, 1:]) | ignored[:, :-1]).all())
    if not shifted and not bool(((target == tokens) | ignored).all()):
        raise TaskError(
            f"{_ONLY} where targets are the inputs or the inputs shifted by one{_NEAREST}"
        )
    changed = tokens.clone()
    changed[:, -1] = tokens[:, 0]
    with torch.no_grad():
        before, after = call_model(model, inputs), call_model(model, with_tokens(inputs, changed))
    has_positions = before.shape[:2] == tokens.shape
    if not has_positions or not torch.allclose(before[:, :-1], after[:, :-1], atol=1e-4):
        raise TaskError(
            f"{_ONLY} from models whose outputs depend on earlier tokens alone{_NEAREST}"
        )
    return shifted


def with_tokens(inputs: Inputs, tokens: Tensor) -> Inputs:
    """Return inputs with other tokens.

    Args:
        inputs: one batch of inputs.
        tokens: (n, length) integers that replace `tokens_of(inputs)`.
    """
    old = tokens_of(inputs)
    return map_inputs(inputs, lambda tensor: tokens if tensor is old else tensor)


@torch.no_grad()
def continued(model: nn.Module, inputs: Inputs, device: torch.device) -> Tensor:
    """Return sequences whose first PROMPT is the inputs' and the rest sampled at temperature 1.

    The model always gets whole sequences; a causal model ignores the tokens after a position.

    Args:
        model: a causal language model on the device.
        inputs: one batch of inputs.
        device: device of the model.

    Returns:
        (n, length + 1) tokens on the CPU; the same inputs give the same tokens.
    """
    inputs = to_device(inputs, device)
    originals = tokens_of(inputs)
    length = originals.shape[1]
    tokens = torch.cat([originals, originals[:, :1]], 1)
    generator = torch.Generator().manual_seed(0)
    for position in range(max(1, int(PROMPT * length)), length + 1):
        outputs = call_model(model, with_tokens(inputs, tokens[:, :length]))
        probabilities = outputs[:, position - 1].float().cpu().softmax(-1)
        sampled = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        tokens[:, position] = sampled.to(device)
    return tokens.cpu()


def as_batch(inputs: Inputs, tokens: Tensor, shifted: bool) -> tuple[Inputs, Tensor]:
    """Return a training batch of sequences.

    Args:
        inputs: gives the form of the inputs.
        tokens: (n, length + 1) sequences.
        shifted: True if targets are the inputs shifted by one, False if they are the inputs.

    Returns:
        Inputs with (n, length) tokens, and (n, length) targets.
    """
    length = tokens.shape[1] - 1
    replaced = with_tokens(inputs, tokens[:, :length].to(tokens_of(inputs).device))
    return replaced, tokens[:, 1:] if shifted else tokens[:, :length]
