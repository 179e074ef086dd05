"""Make batches of samples, padded to their longest one, and example inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.huggingface.data.encoding import Row
from autocompress.huggingface.options import Options
from autocompress.task.batches import Batches, Inputs
from autocompress.task.calls import call_model
from autocompress.task.outputs import IGNORED

DECODER = "decoder_input_ids"
LEAST_LENGTH = 2  # of example inputs: a graph is fixed at a length of 1
Collect = Callable[[list[Any], int], Any]  # (targets, length of the batch) -> target of the batch


@dataclass(frozen=True)
class Sample:
    """Hold one sample.

    Attributes:
        rows: its texts as token numbers; two for a pair that is compared.
        target: of the sample, or None.
    """

    rows: tuple[Row, ...]
    target: Any = None

    @property
    def length(self) -> int:
        """Return the number of tokens of the longest row."""
        return max(_length(row) for row in self.rows)


def whole_numbers(targets: list[Any], length: int) -> Any:
    """Return (n,) int64 targets.

    Args:
        targets: one number per sample, or None.
        length: not used.

    Returns:
        The tensor; None without targets.
    """
    return None if None in targets else torch.tensor(targets, dtype=torch.int64)


def real_numbers(targets: list[Any], length: int) -> Any:
    """Return (n, ...) float32 targets.

    Args:
        targets: a number, or a list of as many numbers, per sample, or None.
        length: not used.

    Returns:
        The tensor; None without targets.
    """
    return None if None in targets else torch.tensor(targets, dtype=torch.float32)


def per_token(targets: list[Any], length: int) -> Any:
    """Return (n, length) int64 targets; padding does not count.

    Args:
        targets: a list of one number per token, per sample, or None.
        length: of the batch.

    Returns:
        The tensor; None without targets.
    """
    if None in targets:
        return None
    return torch.tensor([list(row) + [IGNORED] * (length - len(row)) for row in targets])


def as_list(targets: list[Any], length: int) -> Any:
    """Return targets that only a metric reads.

    Args:
        targets: anything per sample, or None.
        length: not used.

    Returns:
        The list; None without targets.
    """
    return None if None in targets else targets


def padded(rows: Sequence[Row], padding: Mapping[str, int], least: int = 0) -> dict[str, Tensor]:
    """Return rows as tensors, filled up at their ends to the longest one.

    Args:
        rows: with the same arguments.
        padding: argument -> number that fills up; 0 for others.
        least: tokens to which shorter ones are filled up.

    Returns:
        Argument -> (n, length) int64. The tokens of a decoder have a length of their own.
    """
    tensors = {}
    for name in rows[0]:
        longest, fill = max(len(row[name]) for row in rows), padding.get(name, 0)
        length = max(longest, least)
        tensors[name] = torch.tensor(
            [[*row[name], *[fill] * (length - len(row[name]))] for row in rows]
        )
    return tensors


def token_length(inputs: Mapping[str, Tensor]) -> int:
    """Return the length that targets per token have.

    Args:
        inputs: of a batch, as `padded` returns them.

    Returns:
        The tokens of the decoder, if there is one, else of the text.
    """
    return inputs[DECODER if DECODER in inputs else "input_ids"].shape[1]


def bucketed(
    samples: Sequence[Sample], padding: Mapping[str, int], collect: Collect, options: Options
) -> list[tuple[Inputs, Any]]:
    """Return batches of samples of nearly equal length, in an order that the seed draws.

    Args:
        samples: of one split.
        padding: as in `padded`.
        collect: joins the targets of a batch.
        options: batch size and seed.

    Returns:
        (inputs, target) batches; a pair stays in one batch, in neighbouring rows.
    """
    generator = random.Random(options.seed)
    order = list(range(len(samples)))
    generator.shuffle(order)
    order.sort(key=lambda i: samples[i].length)  # stable: equal lengths stay shuffled
    size = options.samples_of_batch
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    generator.shuffle(parts)
    batches: list[tuple[Inputs, Any]] = []
    for part in parts:
        rows = [row for i in part for row in samples[i].rows]
        targets = [samples[i].target for i in part for _ in samples[i].rows]
        inputs = padded(rows, padding, options.fixed_length)
        batches.append((inputs, collect(targets, token_length(inputs))))
    return batches


def examples(
    samples: Sequence[Sample], options: Options
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Return the inputs at which latency is measured.

    Args:
        samples: of the validation split.
        options: batch and lengths.

    Returns:
        (example inputs, further ones by name): real tokens, repeated up to the length.
    """
    ordered = sorted((row for sample in samples for row in sample.rows), key=_length)
    start = max(0, min(len(ordered) // 2, len(ordered) - options.batch))
    rows = [ordered[(start + i) % len(ordered)] for i in range(options.batch)]
    if not options.lengths:
        return _resized(rows, _medians(ordered)), {}
    first, *others = [_resized(rows, dict.fromkeys(rows[0], n)) for n in options.lengths]
    names = [f"{length} tokens" for length in options.lengths[1:]]
    return first, dict(zip(names, others, strict=True))


def _length(row: Row) -> int:
    return max(map(len, row.values()))


def _medians(rows: Sequence[Row]) -> dict[str, int]:
    """Return the median length of each argument."""
    lengths = {name: sorted(len(row[name]) for row in rows) for name in rows[0]}
    return {name: max(LEAST_LENGTH, ns[len(ns) // 2]) for name, ns in lengths.items()}


def _resized(rows: Sequence[Row], lengths: Mapping[str, int]) -> dict[str, Tensor]:
    """Return rows without padding, each repeated or cut to a length."""
    return {
        name: torch.tensor([[row[name][i % len(row[name])] for i in range(length)] for row in rows])
        for name, length in lengths.items()
    }


class Answered:
    """Give batches with the answers of the float model as targets; re-iterable.

    `answer` turns (inputs, primary output) into the target.
    """

    def __init__(
        self, batches: Batches, model: nn.Module, answer: Callable[[Inputs, Tensor], Any]
    ) -> None:
        self.batches, self.model, self.answer = batches, model, answer

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        for inputs, _ in self.batches:
            with torch.no_grad():
                output = call_model(self.model, inputs)
            yield inputs, self.answer(inputs, output)
