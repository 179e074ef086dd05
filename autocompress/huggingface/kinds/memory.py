"""Limit the samples of tasks with large outputs, such as a number per word of the vocabulary."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from autocompress.huggingface.options import Options
from autocompress.task.batches import Inputs
from autocompress.task.calls import call_model

T = TypeVar("T")
# Of the outputs of a split: evaluations take time, and a search keeps the answers of the float
# model on the validation split in a temporary file.
MOST_BYTES = 1e9
# Of the outputs of a batch: losses and divergences hold several arrays of their size.
MOST_BATCH_BYTES = 64e6


def within_memory(
    samples: Sequence[T],
    numbers: Sequence[float],
    split: str,
    options: Options,
    notes: list[str],
) -> list[T]:
    """Return the samples whose outputs take at most `MOST_BYTES`, drawn by the seed.

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


def with_batches(numbers: Iterable[float], options: Options, notes: list[str]) -> Options:
    """Return options whose batches have outputs that fit in memory.

    Args:
        numbers: that the model gives for each sample.
        options: a batch size that the user sets is kept.
        notes: gets a line if batches are smaller than usual.

    Returns:
        The options.
    """
    size = max(1, int(MOST_BATCH_BYTES / (4.0 * max(numbers))))
    if options.batch_size is not None or size >= options.samples_of_batch:
        return options
    line = (
        f"data: batches hold {size} samples, in training too: the outputs of more take over "
        f"{MOST_BATCH_BYTES / 1e6:g} MB (--batch-size N sets another number)"
    )
    if line not in notes:
        notes.append(line)
    return replace(options, batch_size=size)


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
