"""Prepare models of pictures and texts: recall of pairs, or classes by their names."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import as_list
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.encoding import Encoder, Row
from autocompress.huggingface.data.images import ImageReader, mode_of
from autocompress.huggingface.data.media import MediaBatches
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import read_splits, shared_value
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.parts import Parts, media_parts
from autocompress.huggingface.loading import load_model, load_processor, load_tokenizer
from autocompress.huggingface.metrics.retrieval import Pair, Recall, class_accuracy
from autocompress.huggingface.models.dual import DualEncoder
from autocompress.huggingface.options import Options
from autocompress.task.calls import Metric

COLUMNS = ("image", "caption", "label")
PROMPT = "This is a photo of {}."  # as the pipeline of transformers
OF_PAIRS: dict[str, Metric] = {f"recall@{k}": Recall(k) for k in (1, 5, 10)}


def zero_shot_image_classification(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that compares pictures with texts.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts. Data with captions are judged by recall, data with labels by the nearest name.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options, together="image")
    model = DualEncoder(load_model(folder, "AutoModel"))
    encoder = Encoder.of(folder, load_tokenizer(folder, model), model, options)
    inner = frozenset(inspect.signature(model.model.forward).parameters)
    encoder = replace(encoder, arguments=encoder.arguments & inner)
    processor = load_processor(folder, "AutoImageProcessor", "image processor")
    mode = mode_of(folder)
    labelled = columns.find("caption", splits.validation) is None
    batches = {}
    for split, records in splits.parts():
        column = columns.need("label" if labelled else "caption", records)
        texts = [str(value_of(r, column, (str, int), "a text")) for r in records]
        targets: list[Any] = list(texts)
        if labelled:
            texts = [PROMPT.format(text.replace("_", " ")) for text in texts]
        encodings = encoder.encode(split, texts, **_fixed_length(folder.config))
        rows = [encoder.row(encoding) for encoding in encodings]
        image = columns.need("image", records)
        if not labelled:
            targets = _pairs(records, image, rows)
        read = ImageReader(image, processor, mode)
        batches[split] = MediaBatches(
            records, read, targets, as_list, options, rows, encoder.padding
        )
    if labelled and len(set(batches["validation"].targets)) < 2:
        raise TaskError(f"{splits.validation[0].place}: all pictures have one label; give more")
    metrics = {"accuracy": class_accuracy} if labelled else OF_PAIRS
    return media_parts(model, batches, metrics, options, splits.notes, columns, encoder)


def _pairs(records: Sequence[Record], image: str, rows: Sequence[Row]) -> list[Pair]:
    """Return the numbers of the picture and of the caption of each record."""
    pictures = [shared_value(record, image) or i for i, record in enumerate(records)]
    captions = [tuple(row["input_ids"]) for row in rows]
    return list(zip(_numbers(pictures), _numbers(captions), strict=True))


def _numbers(values: Iterable[Hashable]) -> list[int]:
    """Return a number for each value; equal ones have the same."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def _fixed_length(config: Any) -> dict[str, Any]:
    """Return the padding that SigLIP was trained with: all texts have the longest length."""
    if not str(config.model_type).startswith("siglip"):
        return {}
    length = config.get_text_config().max_position_embeddings
    return {"padding": "max_length", "max_length": length}
