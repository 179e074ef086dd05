"""Prepare models that read one text and write another: the next token, by teacher forcing."""

from __future__ import annotations

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import DECODER, Sample, per_token
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.encoding import Encoder
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.decoded import OF_TOKENS
from autocompress.huggingface.kinds.memory import with_batches, within_memory
from autocompress.huggingface.kinds.parts import Parts, text_parts
from autocompress.huggingface.loading import load_model, load_tokenizer
from autocompress.huggingface.models.decoding import DecodingModel, shifted, start_token
from autocompress.huggingface.options import Options

COLUMNS = ("source", "target")


def text2text_generation(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that turns a text into another one.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts; both texts are cut to the longest one that the model takes.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    if not folder.config.is_encoder_decoder:
        raise TaskError(
            f"{folder.path}: {folder.architecture} has no encoder of texts, which {folder.task} "
            "needs; nearest: a model such as T5, BART or Marian"
        )
    splits = read_splits(options)
    inner = load_model(folder, "AutoModelForSeq2SeqLM")
    model, start = DecodingModel(inner), start_token(inner)
    encoder = Encoder.of(folder, load_tokenizer(folder, model), model, options)
    notes = [*splits.notes]
    words = folder.config.get_text_config(decoder=True).vocab_size
    samples = {}
    for split, records in splits.parts():
        texts = {}
        for part in COLUMNS:
            column = columns.need(part, records)
            texts[part] = [value_of(record, column, str, "a text") for record in records]
        sources = encoder.encode(split, texts["source"])
        targets = [
            list(encoding["input_ids"])
            for encoding in encoder.encode(split, texts["target"], written=True)
        ]
        rows = []
        for source, target in zip(sources, targets, strict=True):
            row = {**encoder.row(source), DECODER: shifted(target, start)}
            rows.append(Sample((row,), target))
        numbers = [words * len(target) for target in targets]
        samples[split] = within_memory(rows, numbers, split, options, notes)
    numbers = [words * len(row.target) for rows in samples.values() for row in rows]
    options = with_batches(numbers, options, notes)
    return text_parts(model, encoder, samples, per_token, OF_TOKENS, options, notes, columns)
