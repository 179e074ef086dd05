"""Limit the samples of tasks with large outputs, such as a number per word of the vocabulary."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from autocompress.huggingface.options import Options
from autocompress.task.batches import Inputs
from autocompress.task.calls import call_model

T = TypeVar("T")
MOST_BYTES = 1e9  # of the outputs of a split: a search holds all outputs of a split at once


def within_memory(
    samples: Sequence[T],
    numbers: Sequence[float],
    split: str,
    options: Options,
    notes: list[str],
) -> list[T]:
    """Return the samples whose outputs fit in memory, drawn by the seed.

    Args:
        samples: of a split.
        numbers: that the model gives for each sample.
        split: name of the split; training data are not limited, since they are read batch by batch.
        options: a number of samples that the user sets is kept.
        notes: gets a line if samples are left out.

    Returns:
        At least one sample.
    """
    if split == "train" or options.samples is not None:
        return list(samples)
    order = list(range(len(samples)))
    random.Random(options.seed).shuffle(order)
    chosen: list[int] = []
    size = 0.0
    for i in order:
        size += 4.0 * numbers[i]
        if chosen and size > MOST_BYTES:
            break
        chosen.append(i)
    if len(chosen) < len(samples):
        notes.append(
            f"data: {len(chosen)} of {len(samples)} samples of {split} are used: the outputs of "
            f"more take over {MOST_BYTES / 1e9:g} GB (--samples N sets another number)"
        )
    return [samples[i] for i in sorted(chosen)]


def numbers_of(model: nn.Module, inputs: Inputs) -> int:
    """Return how many numbers a model gives for a sample.

    Args:
        model: that is called.
        inputs: of one sample.

    Returns:
        Of its primary output.
    """
    with torch.no_grad():
        return call_model(model, inputs).numel()
