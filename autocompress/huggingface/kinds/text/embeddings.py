"""Prepare embeddings of texts: similarity of pairs with scores, or closeness to the float model."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import transformers
from torch import nn

from autocompress.huggingface.data.batches import Sample, real_numbers
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.encoding import Encoder, Row, check_given
from autocompress.huggingface.data.labels import number_of
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder, is_encoder
from autocompress.huggingface.kinds.one_sided import check_numbers, deciding
from autocompress.huggingface.kinds.parts import (
    Answers,
    Parts,
    answered,
    label_columns,
    text_parts,
)
from autocompress.huggingface.loading import load_model, load_tokenizer
from autocompress.huggingface.metrics import numbers
from autocompress.huggingface.models.prompts import default_prompt
from autocompress.huggingface.models.sentence import sentence_encoder, sentence_length
from autocompress.huggingface.options import Options
from autocompress.task.loading import Unlabelled

COLUMNS = ("text", "text_pair", "score")
OF_PAIRS = {
    "spearman": partial(numbers.Correlation, numbers.spearman, pairs=True),
    "pearson": partial(numbers.Correlation, numbers.pearson, pairs=True),
}
OTHER_SCORES = "pairs with different scores"
CLOSENESS = Answers(numbers.same, {"cosine": partial(numbers.Mean, numbers.cosine)})


def embeddings(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that embeds texts.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts. The texts of a pair are neighbours in a batch; pairs with scores are judged by
        the correlation of their cosines with the scores.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options, labels=("score",))
    model, words = sentence_encoder(folder, _encoder(folder))
    check_given(folder, _arguments(model.encoder))
    tokenizer, longest = load_tokenizer(folder, model), sentence_length(folder)
    encoder = Encoder.of(folder, tokenizer, model, options, longest)
    encoder = replace(encoder, arguments=encoder.arguments & _arguments(model.encoder))
    pairs = columns.pair(splits.validation)[1] is not None
    scores = label_columns(columns, "score", splits) if pairs else {}
    prompt, samples = default_prompt(folder.path), {}
    for split, records in splits.parts():
        column, other = columns.pair(records)
        texts = _texts(prompt, column, records)
        rows: list[tuple[Row, ...]]
        rows = [(encoder.row(encoding),) for encoding in encoder.encode(split, texts)]
        if pairs:
            second = other or columns.need("text_pair", records)
            others = encoder.encode(split, _texts(prompt, second, records))
            rows = [(*row, encoder.row(other)) for row, other in zip(rows, others, strict=True)]
        score = scores.get(split)
        targets = [None if score is None else number_of(record, score) for record in records]
        if split == "validation":
            known = [number for number in targets if number is not None]
            check_numbers(deciding(options, "spearman"), known, records[0].place, OTHER_SCORES)
        samples[split] = [Sample(*pair) for pair in zip(rows, targets, strict=True)]
    notes = [*splits.notes, words]
    if prompt:
        notes.append(f"data: each text begins with the default prompt of the folder, {prompt!r}")
    parts = text_parts(model, encoder, samples, real_numbers, OF_PAIRS, options, notes, columns)
    if scores.get("validation") is None:
        return answered(parts, CLOSENESS)
    # A score belongs to two rows, so it gives no loss of a row: recovery learns the embeddings.
    return replace(parts, train=None if parts.train is None else Unlabelled(parts.train))


def _texts(prompt: str, column: str, records: list[Record]) -> list[str]:
    return [prompt + value_of(record, column, str, "a text") for record in records]


def _encoder(folder: ModelFolder) -> nn.Module:
    """Return the model without a head; of T5 the encoder alone, where the folder holds no more."""
    if is_encoder(folder.architecture):
        return load_model(folder, folder.architecture)
    return load_model(folder, "AutoModel", **_headless(folder))


def _headless(folder: ModelFolder) -> dict[str, Any]:
    """Return the argument that leaves out the pooling of the first token, which nothing reads."""
    architecture = transformers.AutoModel._model_mapping.get(type(folder.config), None)
    if architecture is None or isinstance(architecture, tuple):
        return {}
    return {"add_pooling_layer": False} if "add_pooling_layer" in _init(architecture) else {}


def _init(architecture: Any) -> frozenset[str]:
    return frozenset(inspect.signature(architecture.__init__).parameters)


def _arguments(encoder: Any) -> frozenset[str]:
    return frozenset(inspect.signature(encoder.forward).parameters)
