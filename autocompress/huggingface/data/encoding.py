"""Turn texts into token numbers, within the longest text that a model takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from autocompress.errors import TaskError
from autocompress.huggingface.extra import quiet, told
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.loading import check_tokens, table_size
from autocompress.huggingface.options import Options

UNLIMITED = 10**6  # a tokenizer without a limit names a larger one
Row = Mapping[str, list[int]]  # argument of the model -> one number per token
# Arguments that no column gives, though the answers of a model depend on them -> what they tell.
NOT_GIVEN = {
    "bbox": "where words stand on a page",
    "xpath_tags_seq": "where words stand in HTML",
    "visual_feats": "regions of pictures",
    "visual_embeds": "regions of pictures",
}
TABLES = "tapas"  # a family whose tokens tell the row and the column of a table


@dataclass(frozen=True)
class Encoder:
    """Turn texts into rows of token numbers.

    Attributes:
        tokenizer: of the folder.
        arguments: of the model, which takes no other inputs.
        limit: most tokens of a text; None if there is no limit.
        place: the model folder.
        words: tokens that the model has a row for, in texts that it reads and that it writes.
        cut: texts that were cut to the limit, by split; `notes` tells it.
        empty: texts without a token of their own, by split; `notes` tells it.
    """

    tokenizer: Any
    arguments: frozenset[str]
    limit: int | None
    place: str
    words: tuple[int, int]
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        folder: ModelFolder,
        tokenizer: Any,
        model: nn.Module,
        options: Options,
        longest: int | None = None,
    ) -> Encoder:
        """Return the encoder of a folder.

        Args:
            folder: the model folder.
            tokenizer: of the folder.
            model: of the folder.
            options: of the user, who may set the limit.
            longest: limit that another file of the folder names.

        Returns:
            The encoder.

        Raises:
            TaskError: the user's limit is above that of the model, it has no table of tokens, or
                it reads more than tokens.
        """
        arguments = frozenset(inspect.signature(model.forward).parameters)
        check_given(folder, arguments)
        positions = _positions(folder.config, model)
        limits = (positions, tokenizer.model_max_length, longest)
        limit = min((n for n in limits if n and n < UNLIMITED), default=None)
        for name, length in (("max_length", options.max_length), *_named(options.lengths)):
            if length is not None and positions is not None and length > positions:
                raise TaskError(
                    f"{folder.name}: {name} {length} is above the model's {positions} positions; "
                    f"nearest: {positions}"
                )
        words = table_size(folder, model)
        sizes = (words, max(words, _of_decoder(folder.config)))
        return cls(tokenizer, arguments, options.max_length or limit, str(folder.weights), sizes)

    def encode(
        self,
        split: str,
        texts: Sequence[Any],
        pairs: Sequence[str | None] | None = None,
        cut: str = "longest_first",
        written: bool = False,
        **arguments: Any,
    ) -> list[Any]:
        """Return one encoding per text.

        Args:
            split: whose cut texts are counted.
            texts: texts, or lists of words with `is_split_into_words`.
            pairs: a second text for each; None for a text without one.
            cut: what is cut of a text above the limit, as `truncation` of the tokenizer.
            written: True for texts that a decoder writes; some tokenizers, such as Marian's, have
                other tokens for them.
            arguments: for the tokenizer.

        Returns:
            For each text what the tokenizer returns.

        Raises:
            TaskError: the tokenizer fails, or the model has no row for a token.
        """
        encodings, long = [], 0
        for i, words in enumerate(texts):
            other = None if pairs is None else pairs[i]
            both: tuple[Any, ...] = (words,) if other is None else (words, other)
            if written:
                both, arguments = (), {**arguments, "text_target": words}
            with quiet(), told(f"{split}: the tokenizer fails on sample {i + 1}"):
                encoding = self.tokenizer(*both, **arguments)
                if self.limit is not None and len(encoding["input_ids"]) > self.limit:
                    long += 1
                    cutting = {"truncation": cut, "max_length": self.limit}
                    encoding = self.tokenizer(*both, **{**arguments, **cutting})
            encodings.append(encoding)
        self._check(split, encodings, pairs is not None, long)
        for encoding in encodings:
            self.check(split, encoding["input_ids"], written)
        earlier = self.cut.get(split, (0, 0))
        self.cut[split] = (earlier[0] + long, earlier[1] + len(encodings))
        return encodings

    def _check(self, split: str, encodings: list[Any], paired: bool, cut: int) -> None:
        """Count empty texts; refuse a limit that leaves no text a token beside the special ones."""
        kinds = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
        special = {getattr(self.tokenizer, kind) for kind in kinds}
        empty = sum(special.issuperset(encoding["input_ids"]) for encoding in encodings)
        self.empty[split] = self.empty.get(split, 0) + empty
        if cut and empty == len(encodings):
            least = self.tokenizer.num_special_tokens_to_add(paired) + 1 + paired
            raise TaskError(
                f"{split}: max_length {self.limit} leaves no text a token of its own; "
                f"nearest: {least}"
            )

    def check(self, split: str, tokens: Sequence[int], written: bool = False) -> None:
        """Refuse tokens that the model has no row for.

        Args:
            split: that holds them.
            tokens: of a text.
            written: True for a text that a decoder writes.

        Raises:
            TaskError: there is one.
        """
        words = self.words[written]
        check_tokens(self.place, self.tokenizer, words, tokens, f"texts of {split} have")

    def row(self, encoding: Any) -> Row:
        """Return what the model takes of an encoding.

        Args:
            encoding: of one text, as `encode` returns it.

        Returns:
            Argument -> one number per token.
        """
        return {name: list(encoding[name]) for name in encoding if name in self.arguments}

    def notes(self) -> list[str]:
        """Return a line for each split in which texts were cut, and for another padding token."""
        lines = []
        own = self.tokenizer.init_kwargs.get("pad_token")
        if own is not None and str(own) != self.tokenizer.pad_token:
            lines.append(
                f"data: texts are padded with {self.tokenizer.pad_token}, as config.json says, not "
                f"with {own}, as the tokenizer does; make them agree before you pad texts yourself"
            )
        for split, (cut, total) in self.cut.items():
            if self.empty.get(split):
                lines.append(f"data: {self.empty[split]} of {total} texts of {split} are empty")
            if cut:
                lines.append(
                    f"data: {cut} of {total} texts of {split} are cut to {self.limit} tokens"
                )
        return lines

    @property
    def padding(self) -> Mapping[str, int]:
        """Return what fills up each argument behind a short text; 0 for those that are not here."""
        return {
            "input_ids": self.tokenizer.pad_token_id,
            "token_type_ids": self.tokenizer.pad_token_type_id,
            "decoder_input_ids": self.tokenizer.pad_token_id,
        }


def check_given(folder: ModelFolder, arguments: Iterable[str]) -> None:
    """Refuse a model whose answers depend on more than the tokens of a text.

    Args:
        folder: the model folder.
        arguments: of the model.

    Raises:
        TaskError: no column gives what it reads.
    """
    family = folder.config.model_type
    read = [f"{what} ({name})" for name, what in NOT_GIVEN.items() if name in arguments]
    if read or family == TABLES:
        raise TaskError(
            f"{folder.name}: models of {family} read {read[0] if read else 'tables'}, "
            "which no column gives; nearest: a model of texts alone, such as bert"
        )


def _of_decoder(config: Any) -> int:
    """Return the tokens of a decoder, which may have a table of its own; 0 without a decoder."""
    if not getattr(config, "is_encoder_decoder", False):
        return 0
    inner = config.get_text_config(decoder=True)
    sizes = [getattr(inner, name, None) for name in ("vocab_size", "decoder_vocab_size")]
    return max((size for size in sizes if isinstance(size, int)), default=0)


def _named(lengths: Sequence[int]) -> list[tuple[str, int | None]]:
    return [("length", length) for length in lengths]


def _positions(config: Any, model: nn.Module) -> int | None:
    """Return how many tokens the model has positions for; some families count from the padding."""
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(inner, "max_position_embeddings", None)
    if positions is None:
        positions = getattr(inner, "max_target_positions", None)  # of a decoder that writes speech
    if not isinstance(positions, int) or positions < 1:
        return None
    for name, module in model.named_modules():
        table = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if table and module.padding_idx is not None:
            return positions - int(module.padding_idx) - 1
    return positions
