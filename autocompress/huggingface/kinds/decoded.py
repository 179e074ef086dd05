"""Build the parts of tasks whose decoder writes a text about a picture or sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from autocompress.huggingface.data.batches import DECODER, per_token
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.encoding import Encoder
from autocompress.huggingface.data.media import MediaBatches, Read
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import Splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.memory import with_batches, within_memory
from autocompress.huggingface.kinds.parts import Parts, media_parts
from autocompress.huggingface.loading import load_tokenizer
from autocompress.huggingface.metrics.tokens import Perplexity, TokenAccuracy
from autocompress.huggingface.models.decoding import DecodingModel, shifted, start_token
from autocompress.huggingface.options import Options
from autocompress.task.calls import Metric

OF_TOKENS: dict[str, Metric] = {"perplexity": Perplexity, "accuracy": TokenAccuracy}


def decoded_parts(
    folder: ModelFolder,
    model: nn.Module,
    splits: Splits,
    columns: Columns,
    part: str,
    reader: Callable[[list[Record]], Read],
    options: Options,
    notes: Sequence[str] = (),
    starts: bool = False,
    wrapped: Callable[[nn.Module], nn.Module] = DecodingModel,
) -> Parts:
    """Return the parts of a task that predicts the next token, by teacher forcing.

    Args:
        folder: the model folder.
        model: with an encoder of pictures or sounds and a decoder.
        splits: of the data.
        columns: find the texts.
        part: of a sample that holds the text.
        reader: records of a split -> what reads their pictures or sounds.
        options: of the user.
        notes: further lines for the user.
        starts: True if the tokenizer may write the token that the decoder begins with; it is no
            target then.
        wrapped: returns a model that gives the logits of the next tokens alone.

    Returns:
        The parts.

    Raises:
        TaskError: the folder has no tokenizer, or a record no text.
    """
    tokenizer = load_tokenizer(folder, model)
    encoder = Encoder.of(folder, tokenizer, model, options)
    start = start_token(model)
    lines = [*splits.notes, *notes]
    words = folder.config.get_text_config(decoder=True).vocab_size
    kept = {}
    for split, records in splits.parts():
        column = columns.need(part, records)
        texts = [value_of(record, column, str, "a text") for record in records]
        tokens = [encoding["input_ids"] for encoding in encoder.encode(split, texts, written=True)]
        if starts:
            tokens = [row[1:] if row[:1] == [start] else row for row in tokens]
        numbers = [words * len(row) for row in tokens]
        pairs = list(zip(records, tokens, strict=True))
        pairs = within_memory(pairs, numbers, split, options, lines)
        kept[split] = pairs
    numbers = [words * len(row) for pairs in kept.values() for _, row in pairs]
    fitting, batches = with_batches(numbers, options, lines), {}
    for split, pairs in kept.items():
        records, tokens = [record for record, _ in pairs], [row for _, row in pairs]
        rows = [{DECODER: shifted(row, start)} for row in tokens]
        batches[split] = MediaBatches(
            records, reader(records), tokens, per_token, fitting, rows, encoder.padding
        )
    return media_parts(wrapped(model), batches, OF_TOKENS, options, lines, columns, encoder)
