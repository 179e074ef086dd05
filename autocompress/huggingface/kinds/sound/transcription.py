"""Prepare speech models with a decoder: its next token, by teacher forcing."""

from __future__ import annotations

from dataclasses import replace

from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.sounds import SoundReader, common_filling
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.decoded import decoded_parts
from autocompress.huggingface.kinds.parts import Parts
from autocompress.huggingface.loading import load_model, load_processor
from autocompress.huggingface.models.hearing import TOWERS, HearingModel
from autocompress.huggingface.options import Options


def transcription(folder: ModelFolder, columns: Columns, options: Options) -> Parts:
    """Return the parts of a task that predicts the next token of a transcript.

    Args:
        folder: the model folder.
        columns: of the task.
        options: of the user.

    Returns:
        The parts.

    Raises:
        TaskError: model or data cannot be used.
    """
    splits = read_splits(options, together="audio")
    model = load_model(folder, "AutoModelForSpeechSeq2Seq")
    processor = load_processor(folder, "AutoFeatureExtractor", "feature extractor")
    notes: list[str] = []
    filling = common_filling(splits, columns, processor, notes)

    def reader(records: list[Record]) -> SoundReader:
        return SoundReader(columns.need("audio", records), processor, filling)

    parts = (folder, model, splits, columns, "transcript", reader, options, notes)
    return replace(decoded_parts(*parts, starts=True, wrapped=HearingModel), towers=TOWERS)
