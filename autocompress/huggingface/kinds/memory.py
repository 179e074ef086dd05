"""Limit the samples of tasks whose outputs hold a number per word of the vocabulary."""

from __future__ import annotations

import random
from collections.abc import Sequence

from autocompress.huggingface.data.batches import Sample
from autocompress.huggingface.options import Options

MOST_BYTES = 1e9  # of the outputs of a split: a search holds all outputs of a split at once


def within_memory(
    samples: Sequence[Sample], words: int, split: str, options: Options, notes: list[str]
) -> Sequence[Sample]:
    """Return the samples whose outputs fit in memory, drawn by the seed.

    Args:
        samples: of a split.
        words: numbers that the model gives per token.
        split: name of the split; training data are not limited, since they are read batch by batch.
        options: a number of samples that the user sets is kept.
        notes: gets a line if samples are left out.

    Returns:
        At least one sample.
    """
    if split == "train" or options.samples is not None:
        return samples
    order = list(range(len(samples)))
    random.Random(options.seed).shuffle(order)
    chosen: list[int] = []
    size = 0.0
    for i in order:
        size += 4.0 * words * samples[i].length
        if chosen and size > MOST_BYTES:
            break
        chosen.append(i)
    if len(chosen) < len(samples):
        notes.append(
            f"data: {len(chosen)} of {len(samples)} samples of {split} are used: the outputs of "
            f"more take over {MOST_BYTES / 1e9:g} GB (--samples N sets another number)"
        )
    return [samples[i] for i in sorted(chosen)]
