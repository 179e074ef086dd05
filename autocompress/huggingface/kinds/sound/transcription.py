"""Prepare speech models with a decoder: its next token, by teacher forcing."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.sounds import SoundReader, common_filling
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.extra import quiet, told
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.decoded import decoded_parts
from autocompress.huggingface.kinds.parts import Parts
from autocompress.huggingface.loading import load_model, load_processor, load_tokenizer
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
    notes = _language_notes(folder, model)
    filling = common_filling(splits, columns, processor, notes)

    def reader(records: list[Record]) -> SoundReader:
        return SoundReader(columns.need("audio", records), processor, filling)

    parts = (folder, model, splits, columns, "transcript", reader, options, notes)
    return replace(decoded_parts(*parts, starts=True, wrapped=HearingModel), towers=TOWERS)


def _language_notes(folder: ModelFolder, model: nn.Module) -> list[str]:
    """Return a line if transcripts lack the token of their language, which the model learned."""
    known = getattr(model, "generation_config", None)
    languages = getattr(known, "lang_to_id", None) or {}
    if not getattr(known, "is_multilingual", False) or not languages:
        return []
    with quiet(), told("the tokenizer fails on a text"):
        tokens = load_tokenizer(folder, model)(text_target="a")["input_ids"]
    if not {*tokens[:2]}.isdisjoint(languages.values()):
        return []
    return [
        "data: transcripts have no token of their language, though the model knows "
        f"{len(languages)} of them; nearest: set it with "
        "processor.tokenizer.set_prefix_tokens(language=..., task=...) and save it in the folder"
    ]
