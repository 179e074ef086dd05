"""Prepare models of pictures and texts: recall of pairs, or classes by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import Sample, as_list, examples, padded
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.encoding import Encoder, Row
from autocompress.huggingface.data.images import PIXELS, ImageBatches
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.dual import DualEncoder
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.parts import Metric, Parts
from autocompress.huggingface.loading import load_model, load_processor, load_tokenizer
from autocompress.huggingface.metrics.retrieval import Recall, class_accuracy
from autocompress.huggingface.options import Options

COLUMNS = ("image", "caption", "label")
PROMPT = "This is a photo of {}."  # as the pipeline of transformers
OF_PAIRS: dict[str, Metric] = {f"recall@{k}": Recall(k) for k in (1, 5, 10)}


class PairBatches:
    """Give batches of pictures with the texts of the same samples; re-iterable."""

    def __init__(
        self, images: ImageBatches, rows: Sequence[Row], padding: Mapping[str, int]
    ) -> None:
        self.images, self.rows, self.padding = images, rows, padding

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Any]]:
        size = self.images.size
        for i, (inputs, target) in enumerate(self.images):
            rows = [self.rows[j] for j in self.images.order[i * size : (i + 1) * size]]
            yield {**padded(rows, self.padding), **inputs}, target


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
    splits = read_splits(options)
    model = DualEncoder(load_model(folder, "AutoModel"))
    encoder = Encoder.of(folder, load_tokenizer(folder, model), model, options)
    inner = frozenset(Encoder.of(folder, encoder.tokenizer, model.model, options).arguments)
    encoder = replace(encoder, arguments=encoder.arguments & inner)
    processor = load_processor(folder, "AutoImageProcessor", "image processor")
    labelled = columns.find("caption", splits.validation) is None
    batches, samples = {}, []
    for split, records in splits.parts():
        column = columns.need("label" if labelled else "caption", records)
        texts = [str(value_of(r, column, (str, int), "a text")) for r in records]
        targets: list[Any] = list(texts) if labelled else [None] * len(texts)
        if labelled:
            texts = [PROMPT.format(text.replace("_", " ")) for text in texts]
        rows = [
            encoder.row(encoding)
            for encoding in encoder.encode(split, texts, **_fixed_length(folder.config))
        ]
        image = columns.need("image", records)
        images = ImageBatches(records, image, targets, as_list, processor, options)
        batches[split] = PairBatches(images, rows, encoder.padding)
        if split == "validation":
            samples = [Sample((row,)) for row in rows]
    if labelled and len(set(batches["validation"].images.targets)) < 2:
        raise TaskError(f"{splits.validation[0].place}: all pictures have one label; give more")
    example, further = examples(samples, options)
    pixels = batches["validation"].images.pixels(splits.validation[:1])
    pixels = pixels.repeat(options.batch, *[1] * (pixels.dim() - 1))
    return Parts(
        model,
        {**example, PIXELS: pixels},
        batches["validation"],
        {"accuracy": class_accuracy} if labelled else OF_PAIRS,
        batches.get("train"),
        batches.get("test"),
        {name: {**inputs, PIXELS: pixels} for name, inputs in further.items()},
        (*splits.notes, *encoder.notes()),
        tokenizer=encoder.tokenizer,
    )


def _fixed_length(config: Any) -> dict[str, Any]:
    """Return the padding that SigLIP was trained with: all texts have the longest length."""
    if not str(config.model_type).startswith("siglip"):
        return {}
    length = config.get_text_config().max_position_embeddings
    return {"padding": "max_length", "max_length": length}
