"""Prepare the classification of pictures."""

from __future__ import annotations

from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.images import ImageReader, mode_of
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.labelled import label_parts
from autocompress.huggingface.kinds.parts import Parts
from autocompress.huggingface.loading import load_model, load_processor
from autocompress.huggingface.options import Options

COLUMNS = ("image", "label")


def image_classification(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that classifies pictures.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts; pictures are read when a batch is asked for.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options, together="image", labels=("label",))
    model = load_model(folder, "AutoModelForImageClassification")
    processor = load_processor(folder, "AutoImageProcessor", "image processor")
    mode = mode_of(folder)

    def reader(records: list[Record]) -> ImageReader:
        return ImageReader(columns.need("image", records), processor, mode)

    return label_parts(folder, model, splits, columns, reader, options)
