"""Prepare the classification of sounds."""

from __future__ import annotations

from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.sounds import SoundReader, common_filling
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.labelled import label_parts
from autocompress.huggingface.kinds.parts import Parts
from autocompress.huggingface.loading import load_model, load_processor
from autocompress.huggingface.options import Options

COLUMNS = ("audio", "label")


def audio_classification(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that classifies sounds.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts; sounds are read when a batch is asked for. All have the length of the longest one
        of the validation split.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options, together="audio", labels=("label",))
    model = load_model(folder, "AutoModelForAudioClassification")
    processor = load_processor(folder, "AutoFeatureExtractor", "feature extractor")
    notes: list[str] = []
    filling = common_filling(splits, columns, processor, notes)

    def reader(records: list[Record]) -> SoundReader:
        return SoundReader(columns.need("audio", records), processor, filling)

    return label_parts(folder, model, splits, columns, reader, options, notes)
