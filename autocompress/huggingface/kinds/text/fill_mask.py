"""Prepare models of hidden tokens: a share of the tokens is masked once, by the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import Sample, per_token
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.encoding import Encoder
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.memory import with_batches, within_memory
from autocompress.huggingface.kinds.parts import Parts, text_parts
from autocompress.huggingface.loading import load_model, load_tokenizer
from autocompress.huggingface.metrics.tokens import Perplexity, TokenAccuracy
from autocompress.huggingface.options import Options
from autocompress.task.calls import Metric
from autocompress.task.outputs import IGNORED

COLUMNS = ("text",)
HIDDEN = 0.15  # share of the tokens, as in Devlin et al. 2019, "BERT"


def fill_mask(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that finds hidden tokens.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts; at least one token of each text is hidden.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options)
    model = load_model(folder, "AutoModelForMaskedLM")
    tokenizer = load_tokenizer(folder, model)
    if tokenizer.mask_token_id is None:
        raise TaskError(f"{folder.weights}: the tokenizer has no mask token; set mask_token")
    encoder = Encoder.of(folder, tokenizer, model, options)
    notes = [*splits.notes]
    words = folder.config.get_text_config().vocab_size
    samples = {}
    for split, records in splits.parts():
        column = columns.need("text", records)
        texts = [value_of(record, column, str, "a text") for record in records]
        generator = random.Random(options.seed)
        encodings = encoder.encode(split, texts)
        hidden = [_hidden(encoder, encoding, generator) for encoding in encodings]
        rows = [sample for sample in hidden if sample is not None]
        if not rows:
            raise TaskError(f"{records[0].place}: no text of {split} has a token to hide")
        numbers = [words * row.length for row in rows]
        samples[split] = within_memory(rows, numbers, split, options, notes)
    numbers = [words * row.length for rows in samples.values() for row in rows]
    options = with_batches(numbers, options, notes)
    metrics: dict[str, Metric] = {"accuracy": TokenAccuracy, "perplexity": Perplexity}
    return text_parts(model, encoder, samples, per_token, metrics, options, notes, columns)


def _hidden(encoder: Encoder, encoding: Any, generator: random.Random) -> Sample | None:
    """Return a text with hidden tokens; None if it has only special ones."""
    row = dict(encoder.row(encoding))
    tokens, special = row["input_ids"], set(encoder.tokenizer.all_special_ids)
    places: Sequence[int] = [i for i, token in enumerate(tokens) if token not in special]
    if not places:
        return None
    chosen = set(generator.sample(places, max(1, round(HIDDEN * len(places)))))
    mask = encoder.tokenizer.mask_token_id
    row["input_ids"] = [mask if i in chosen else token for i, token in enumerate(tokens)]
    target = [token if i in chosen else IGNORED for i, token in enumerate(tokens)]
    return Sample((row,), target)
