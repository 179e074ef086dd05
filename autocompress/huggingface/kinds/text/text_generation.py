"""Prepare language models: the next token of windows of text, by teacher forcing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import Sample, per_token
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.encoding import Encoder
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.extra import quiet, told
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.memory import with_batches, within_memory
from autocompress.huggingface.kinds.parts import Parts, text_parts
from autocompress.huggingface.loading import load_model, load_tokenizer
from autocompress.huggingface.metrics.tokens import Perplexity, TokenAccuracy
from autocompress.huggingface.options import Options
from autocompress.task.calls import Metric
from autocompress.task.outputs import IGNORED

COLUMNS = ("text",)
WINDOW = 512  # tokens of a window, if the model takes as many
# Families that compute one token after the other. Their programs, and so their files, have a step
# for each token: one length, and a size and a time of export that grow with it.
STEPWISE = frozenset(
    {
        *("falcon_mamba", "jamba", "mamba", "minimax", "olmo_hybrid", "qwen3_5", "qwen3_next"),
        *("recurrent_gemma", "rwkv", "xlstm", "zamba"),
    }
)
STEPS = 64  # tokens of a window of these
TOKENS = "tokens"


def text_generation(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that predicts the next token.

    Args:
        folder: the model folder.
        options: of the user; `max_length` is the length of a window.

    Returns:
        The parts. The texts of a file are joined and cut into windows; splits are made of windows.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    model = load_model(folder, "AutoModelForCausalLM")
    tokenizer = load_tokenizer(folder, model)
    encoder = Encoder.of(folder, tokenizer, model, options)
    family = folder.config.get_text_config().model_type.removesuffix("_text")
    stepwise = family in STEPWISE
    usual = STEPS if stepwise else WINDOW
    length = max(2, min(options.max_length or usual, encoder.limit or usual))
    splits = read_splits(options, _windows(tokenizer, columns, length, 1.0 if stepwise else 0.5))
    notes = [*splits.notes]
    if stepwise:
        notes.append(
            f"model: {family} computes one token after the other, so a file takes texts of one "
            f"length and has a step per token: windows of {length} tokens (--max-length N)"
        )
    if _begin(tokenizer):
        notes.append(f"data: each window begins with {tokenizer.bos_token}")
    words = folder.config.get_text_config().vocab_size
    samples = {}
    for split, records in splits.parts():
        for record in records:
            encoder.check(split, record.values[TOKENS])
        rows = [_sample(encoder, record.values[TOKENS]) for record in records]
        numbers = [words * row.length for row in rows]
        samples[split] = within_memory(rows, numbers, split, options, notes)
    counts = []
    for split in ("validation", "test"):
        if samples.get(split):
            predicted = sum(row.length - 1 for row in samples[split])
            counts.append(f"{predicted} tokens of {split}")
    notes.append(f"data: perplexity is of {' and '.join(counts)}")
    numbers = [words * row.length for rows in samples.values() for row in rows]
    options = with_batches(numbers, options, notes)
    metrics: dict[str, Metric] = {"perplexity": Perplexity, "accuracy": TokenAccuracy}
    return text_parts(model, encoder, samples, per_token, metrics, options, notes, columns)


def _sample(encoder: Encoder, tokens: list[int]) -> Sample:
    rows = {"input_ids": tokens, "attention_mask": [1] * len(tokens)}
    row = {name: value for name, value in rows.items() if name in encoder.arguments}
    return Sample((row,), [*tokens[1:], IGNORED])


def _windows(
    tokenizer: Any, columns: Columns, length: int, least: float
) -> Callable[[list[Record]], list[Record]]:
    """Return the function that turns the texts of a file into windows of tokens.

    Each window begins with the token that the tokenizer puts at the begin of a text, if it has
    one. The last window is left out if it is shorter than the share `least` of the others.
    A text of one window may be short unless `least` is 1.
    """

    def cut(records: list[Record]) -> list[Record]:
        column = columns.need("text", records)
        texts = [value_of(record, column, str, "a text") for record in records]
        is_plain = Path(records[0].place.rpartition(" line ")[0]).suffix.lower() == ".txt"
        text = _with_blank_lines(records, texts) if is_plain else _joined(tokenizer, texts)
        with quiet(), told(f"{records[0].place}: the tokenizer fails"):
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        begin = _begin(tokenizer)
        step = length - len(begin)
        windows = [begin + tokens[at : at + step] for at in range(0, len(tokens), step)]
        if len(windows) > 1 and len(windows[-1]) < length * least:
            windows.pop()
        if not windows or len(windows[0]) < 2:
            raise TaskError(f"{records[0].place}: holds fewer than 2 tokens; give more text")
        if least == 1.0 and len(windows[0]) < length:
            raise TaskError(
                f"{records[0].place}: holds fewer than {length} tokens, the only length that a "
                f"file of this model takes; nearest: --max-length {len(windows[0])}"
            )
        first = records[0]
        return [
            Record({TOKENS: window}, f"{first.place} window {i}", first.folder)
            for i, window in enumerate(windows, 1)
        ]

    return cut


def _joined(tokenizer: Any, texts: list[str]) -> str:
    return str(tokenizer.eos_token or "\n\n").join(texts)


def _with_blank_lines(records: list[Record], texts: list[str]) -> str:
    """Return the text of a plain file; its records are the lines that are not blank."""
    numbers = [int(record.place.rpartition(" line ")[2]) for record in records]
    parts = [texts[0]]
    for earlier, number, text in zip(numbers, numbers[1:], texts[1:], strict=False):
        parts += ["\n" * (number - earlier), text]
    return "".join(parts)


def _begin(tokenizer: Any) -> list[int]:
    """Return the token that begins every text, in a list, or an empty list."""
    first = tokenizer.bos_token_id
    with quiet(), told("the tokenizer fails on a text"):
        tokens = tokenizer("a")["input_ids"]
    return [first] if first is not None and tokens and tokens[0] == first else []
