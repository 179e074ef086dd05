"""Prepare models that answer questions about pictures in their own words, by teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import DECODER, per_token
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.encoding import Encoder, Row
from autocompress.huggingface.data.images import size_note
from autocompress.huggingface.data.media import MediaBatches
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.decoded import OF_TOKENS
from autocompress.huggingface.kinds.memory import with_batches, within_memory
from autocompress.huggingface.kinds.pairs.chat import Chat
from autocompress.huggingface.kinds.pairs.pixels import GRID, PixelReader, picture_size
from autocompress.huggingface.kinds.pairs.visual_question_answering import usual_answer
from autocompress.huggingface.kinds.parts import Parts, media_parts
from autocompress.huggingface.loading import load_model, load_pictures_and_text, load_tokenizer
from autocompress.huggingface.metrics.tokens import ExactMatch
from autocompress.huggingface.models.vision_language.qwen import PatchGrid
from autocompress.huggingface.models.vision_language.wrapper import (
    PicturesAndText,
    check_family,
    towers_of,
)
from autocompress.huggingface.options import Options
from autocompress.task.calls import Metric

COLUMNS = ("image", "question", "answer")
OF_ANSWERS: dict[str, Metric] = {**OF_TOKENS, "exact_match": ExactMatch}


class Tokens(NamedTuple):
    """Hold the tokens of one sample.

    Attributes:
        record: that holds its picture.
        prompt: with the tokens that stand for the picture.
        answer: with what ends it.
    """

    record: Record
    prompt: list[int]
    answer: list[int]

    @property
    def row(self) -> Row:
        """Return what the model reads: the answer begins behind the last token of the prompt."""
        read = self.prompt[:-1]
        written = [self.prompt[-1], *self.answer[:-1]]
        return {"input_ids": read, "attention_mask": [1] * len(read), DECODER: written}


def image_text_to_text(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that answers questions about pictures in its own words.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts. Each token of an answer is predicted from the picture, the prompt and the right
        tokens before it. Of several answers to a question the most usual one is right.

    Raises:
        TaskError: model or data cannot be used.
    """
    check_family(folder.config)
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options, together="image")
    processor = load_pictures_and_text(folder)
    first, column = splits.validation[0], columns.need("image", splits.validation)
    size = picture_size(processor.image_processor, first, column)
    own = {"size": size, "kind": folder.config.model_type}
    reader = PixelReader(column, processor.image_processor, **own)
    model = _wrapped(load_model(folder, "AutoModelForImageTextToText"), reader, first)
    encoder = Encoder.of(folder, load_tokenizer(folder, model), model, options)
    part = int(folder.config.image_token_id)
    chat = Chat(processor, reader.pictures([first])[0], part, str(folder.weights))
    notes = [*splits.notes, *size_note(size), *_prompt_notes(chat)]
    words = folder.config.get_text_config(decoder=True).vocab_size
    kept: dict[str, list[Tokens]] = {}
    for split, records in splits.parts():
        samples = _tokens(chat, encoder, columns, split, records, notes)
        numbers = [words * len(sample.answer) for sample in samples]
        kept[split] = within_memory(samples, numbers, split, options, notes)
    numbers = [words * len(sample.answer) for samples in kept.values() for sample in samples]
    fitting, batches = with_batches(numbers, options, notes), {}
    for split, samples in kept.items():
        records = [sample.record for sample in samples]
        read = replace(reader, column=columns.need("image", records))
        answers = [sample.answer for sample in samples]
        rows = [sample.row for sample in samples]
        batches[split] = MediaBatches(
            records, read, answers, per_token, fitting, rows, encoder.padding
        )
    parts = media_parts(model, batches, OF_ANSWERS, options, notes, columns, encoder)
    return replace(parts, towers=towers_of(model), special=(part,))


def _wrapped(model: nn.Module, reader: PixelReader, first: Record) -> PicturesAndText:
    """Return a model whose pictures all have the size of the first one."""
    inputs = reader.inputs([first])
    if GRID not in inputs:
        return PicturesAndText(model)
    _, height, width = (int(count) for count in inputs[GRID][0])
    config: Any = model.config
    return PicturesAndText(model, PatchGrid(config, height, width))


def _prompt_notes(chat: Chat) -> list[str]:
    if chat.template is not None:
        return []
    line = f"data: the folder has no chat template: a prompt is {chat.token}, then the question"
    return [line]


def _tokens(
    chat: Chat,
    encoder: Encoder,
    columns: Columns,
    split: str,
    records: Sequence[Record],
    notes: list[str],
) -> list[Tokens]:
    """Return the tokens of each record, without those that are too long."""
    asked, answered = columns.need("question", records), columns.need("answer", records)
    samples, long = [], 0
    for record in records:
        question = value_of(record, asked, str, "a text")
        texts = chat.texts(question, str(usual_answer(record, answered)))
        prompt, answer = chat.tokens(*texts, record.place)
        if encoder.limit is not None and len(prompt) + len(answer) > encoder.limit:
            long += 1
            continue
        # Features of the picture take the place of its tokens, which need no row in the table.
        encoder.check(split, [token for token in (*prompt, *answer) if token != chat.part])
        samples.append(Tokens(record, prompt, answer))
    if not samples:
        raise TaskError(
            f"{records[0].place}: no prompt of {split} with its picture fits into {encoder.limit} "
            "tokens"
        )
    if long:
        notes.append(
            f"data: {long} of {len(records)} samples of {split} are left out: prompt, picture and "
            f"answer have more than {encoder.limit} tokens"
        )
    return samples
