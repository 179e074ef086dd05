"""Prepare the recognition of speech: letters of each frame (CTC), or a decoder's next token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from autocompress.huggingface.data.batches import per_token
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.media import MediaBatches
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.sounds import SoundReader, common_filling
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder, classes_of
from autocompress.huggingface.kinds.labelled import OF_AGREEMENT
from autocompress.huggingface.kinds.parts import (
    Answers,
    Parts,
    answered,
    label_columns,
    media_parts,
)
from autocompress.huggingface.kinds.sound.transcription import transcription
from autocompress.huggingface.loading import (
    check_tokens,
    load_model,
    load_processor,
    read_tokenizer,
)
from autocompress.huggingface.metrics import classes
from autocompress.huggingface.metrics.words import TEXTS, ErrorRate
from autocompress.huggingface.models.speech import MaskedSpeech, inside_sounds
from autocompress.huggingface.options import Options
from autocompress.task.outputs import IGNORED, OutputKind, position_divergence

COLUMNS = ("audio", "transcript")
LOGITS = "logits"
FRAMES = OutputKind("softmax", -1)


def automatic_speech_recognition(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that writes down speech.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts. Models with a CTC head are judged by their transcripts, models with a decoder by
        its next token.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    if folder.architecture in classes_of("SPEECH_SEQ_2_SEQ"):
        return transcription(folder, columns, options)
    splits = read_splits(options, together="audio", labels=("transcript",))
    model = load_model(folder, "AutoModelForCTC")
    tokenizer = read_tokenizer(folder)
    processor = load_processor(folder, "AutoFeatureExtractor", "feature extractor")
    notes = [*splits.notes]
    filling = common_filling(splits, columns, processor, notes)
    by_split = label_columns(columns, "transcript", splits)
    batches = {}
    for split, records in splits.parts():
        targets = _targets(folder, tokenizer, records, by_split[split], split)
        read = SoundReader(columns.need("audio", records), processor, filling)
        batches[split] = MediaBatches(records, read, targets, _collect, options)
    blank = int(getattr(folder.config, "blank_token_id", folder.config.pad_token_id))
    if filling.arguments:  # the feature extractor gives a mask
        model = MaskedSpeech(model, blank)
    metrics = {
        "wer": partial(ErrorRate, tokenizer, blank),
        "cer": partial(ErrorRate, tokenizer, blank, False),
    }
    parts = replace(
        media_parts(model, batches, metrics, options, notes, columns),
        output_weights={LOGITS: 1.0},
        divergence=_divergence,
        loss=partial(_loss, blank),
    )
    return parts if by_split["validation"] is not None else answered(parts, AGREEMENT)


def _targets(
    folder: ModelFolder, tokenizer: Any, records: list[Record], column: str | None, split: str
) -> list[tuple[str, list[int]]] | None:
    """Return the transcripts of a split with their tokens; None if it has no column of them."""
    if column is None:
        return None
    texts = [value_of(record, column, str, "a text") for record in records]
    targets = [(text, _tokens(tokenizer, text)) for text in texts]
    written = [token for _, tokens in targets for token in tokens]
    where, words = f"transcripts of {split} have", folder.config.vocab_size
    check_tokens(str(folder.weights), tokenizer, words, written, where)
    return targets


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text in the case that the tokenizer knows."""
    ways = [list(tokenizer(way)["input_ids"]) for way in (text, text.upper(), text.lower())]
    return min(ways, key=lambda tokens: tokens.count(tokenizer.unk_token_id))


def _collect(targets: list[Any], length: int) -> Any:
    """Return the tokens of a batch, and its texts, which metrics read."""
    if None in targets:
        return None
    longest_text = max(len(tokens) for _, tokens in targets)
    tokens = per_token([tokens for _, tokens in targets], longest_text)
    return {LOGITS: tokens, TEXTS: [text for text, _ in targets]}


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean KL divergence of the frames of each sound, without those of its filling."""
    inside = inside_sounds(teacher)
    frames = position_divergence(FRAMES, student, teacher) * inside
    return (frames.sum(1) / inside.sum(1).clamp_min(1)).clamp_min(0)


def _answer(inputs: Any, output: Tensor) -> Tensor:
    """Return the answer of the float model, ignored where a sound is filled up."""
    outside = ~inside_sounds(output)
    return classes.probabilities(inputs, output).masked_fill(outside[..., None], float(IGNORED))


AGREEMENT = Answers(_answer, OF_AGREEMENT)


def _loss(blank: int, outputs: Mapping[str, Tensor], target: Mapping[str, Any]) -> Tensor:
    """Return the CTC loss of a batch (Graves et al. 2006)."""
    logs = outputs[LOGITS].log_softmax(-1).transpose(0, 1)
    tokens = target[LOGITS]
    counts, frames = tokens != IGNORED, inside_sounds(outputs[LOGITS]).sum(1)
    return F.ctc_loss(
        logs, tokens[counts], frames, counts.sum(1), blank, reduction="mean", zero_infinity=True
    )
