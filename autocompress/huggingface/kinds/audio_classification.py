"""Prepare the classification of sounds."""

from __future__ import annotations

from typing import Any

from autocompress.huggingface.data.batches import whole_numbers
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.labels import Labels
from autocompress.huggingface.data.sounds import SoundBatches, read_sound
from autocompress.huggingface.data.splits import Splits, read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.parts import Parts, answered, label_columns
from autocompress.huggingface.kinds.text_classification import AGREEMENT, OF_CLASSES
from autocompress.huggingface.loading import load_model, load_processor
from autocompress.huggingface.options import Options

COLUMNS = ("audio", "label")
LONGEST_S = 30.0  # of a sound, in seconds
LOOKED_AT = 200  # sounds of the validation split whose length is read


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
    splits = read_splits(options)
    model = load_model(folder, "AutoModelForAudioClassification")
    processor = load_processor(folder, "AutoFeatureExtractor", "feature extractor")
    labels = Labels.of(folder.config)
    rate = int(processor.sampling_rate)
    length = _length(columns, splits, rate)
    by_split = label_columns(columns, "label", splits)
    batches = {}
    for split, records in splits.parts():
        column = by_split[split]
        targets: list[Any] = [None] * len(records)
        if column is not None:
            targets = [labels.number(r.values.get(column), r.place) for r in records]
        audio = columns.need("audio", records)
        batches[split] = SoundBatches(
            records, audio, targets, whole_numbers, processor, length, options
        )
    first = batches["validation"].inputs(splits.validation[:1])
    parts = Parts(
        model,
        {
            name: values.repeat(options.batch, *[1] * (values.dim() - 1))
            for name, values in first.items()
        },
        batches["validation"],
        OF_CLASSES,
        batches.get("train"),
        batches.get("test"),
        notes=(*splits.notes, f"data: sounds are filled up or cut to {length / rate:.3g} s"),
    )
    return parts if by_split["validation"] is not None else answered(parts, AGREEMENT)


def _length(columns: Columns, splits: Splits, rate: int) -> int:
    """Return the samples of the longest sound of the validation split, within LONGEST_S."""
    column = columns.need("audio", splits.validation)
    sounds = splits.validation[:LOOKED_AT]
    longest = max(len(read_sound(record, column, rate)) for record in sounds)
    return min(longest, int(LONGEST_S * rate))
