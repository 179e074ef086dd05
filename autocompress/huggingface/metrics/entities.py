"""Compute F1 of entities, which classes of tokens mark by their begin, inside and end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from autocompress.huggingface.metrics.classes import classes_of
from autocompress.task.outputs import IGNORED

Tag = tuple[str, str]  # (B, I, E, S or O, type of the entity)
OUTSIDE: Tag = ("O", "")
# Letters of BIO, BIOES, BILOU and BMES, as those of BIOES: L is last, U and W are a whole entity.
LETTERS = {"B": "B", "I": "I", "E": "E", "S": "S", "M": "I", "L": "E", "U": "S", "W": "S"}
OF_BIOES = "BIES"
# Ways in which names hold letter and type: "B-PER", "B_PER", "PER-B", "PER_B" or "B".
WAYS = (
    r"(?P<letter>[A-Z])-(?P<kind>.+)",
    r"(?P<letter>[A-Z])_(?P<kind>.+)",
    r"(?P<kind>.+)-(?P<letter>[A-Z])",
    r"(?P<kind>.+)_(?P<letter>[A-Z])",
    r"(?P<letter>[A-Z])(?P<kind>)",
)
NAMELESS = re.compile(r"LABEL_\d+")  # of classes that nobody named


def are_named(names: Sequence[str]) -> bool:
    """Return False if the names of classes are those that transformers makes up.

    Args:
        names: of the classes.
    """
    return not all(NAMELESS.fullmatch(name) for name in names)


def tags_of(names: Sequence[str]) -> tuple[Tag, ...]:
    """Return what each class marks.

    All names must hold a letter in the same way, up to one, which is then outside of entities,
    whatever it is called. Other names are read as conlleval does: "O" is outside, and a name
    without a letter is inside an entity of that type.

    Args:
        names: of the classes, such as "B-PER", "I-PER" and "O".

    Returns:
        A tag per class.
    """
    for way in WAYS:
        matches = [re.fullmatch(way, name) for name in names]
        parts = [
            (match["letter"], match["kind"]) if match and match["letter"] in LETTERS else None
            for match in matches
        ]
        letters = {part[0] for part in parts if part}
        if parts.count(None) <= 1 and letters & {"B", "I"}:
            return tuple((LETTERS[part[0]], part[1]) if part else OUTSIDE for part in parts)
    return tuple(_plain(name) for name in names)


def _plain(name: str) -> Tag:
    """Return a tag as conlleval reads it."""
    if name == "O":
        return OUTSIDE
    letter, dash, kind = name.partition("-")
    return (letter, kind) if dash and letter in (*OF_BIOES,) else ("I", name)


@dataclass
class EntityF1:
    """Compute F1 of whole entities, as conlleval and seqeval do.

    Source: Tjong Kim Sang and Buchholz 2000, "Introduction to the CoNLL-2000 shared task".

    Attributes:
        tags: of the classes by their numbers.
        right: predicted entities that are right.
        predicted: entities that the model finds.
        true: entities that there are.
    """

    tags: tuple[Tag, ...]
    right: int = 0
    predicted: int = 0
    true: int = 0

    def update(
        self, outputs: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]
    ) -> None:
        """Take one batch.

        Args:
            outputs: logits of the classes.
            targets: classes.
        """
        for output, target in zip(outputs, targets, strict=True):
            counts = target != IGNORED
            guesses = set(entities([self.tags[i] for i in classes_of(output[counts]).tolist()]))
            wanted = set(entities([self.tags[i] for i in target[counts].tolist()]))
            self.right += len(guesses & wanted)
            self.predicted += len(guesses)
            self.true += len(wanted)

    def compute(self) -> float:
        """Return a number from 0 to 1; 0 if neither side has an entity."""
        return 2 * self.right / max(self.predicted + self.true, 1)


def entities(tags: Sequence[Tag]) -> Iterator[tuple[str, int, int]]:
    """Yield the entities of one sequence.

    Args:
        tags: of the words, as `tags_of` gives them.

    Returns:
        (type, first position, last position).
    """
    start, before = 0, OUTSIDE
    for i, tag in enumerate([*tags, OUTSIDE]):
        letter, kind = tag
        last_letter, last_kind = before
        changed = kind != last_kind
        if last_letter != "O" and (last_letter in "ES" or letter in ("B", "S", "O") or changed):
            yield last_kind, start, i - 1
        if letter in ("B", "S") or (letter != "O" and (last_letter in "ESO" or changed)):
            start = i
        before = tag
