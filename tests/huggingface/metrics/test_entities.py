"""Entities as conlleval and seqeval find them, by the names of classes."""

from __future__ import annotations

import pytest
import torch
from small_tasks import judged

from autocompress.huggingface.metrics.entities import EntityF1, are_named, entities, tags_of


def found_in(tags: str, names: str = "") -> list[tuple[str, int, int]]:
    """Return the entities of words whose classes have these names."""
    classes = list(dict.fromkeys([*tags.split(), *names.split()]))
    by_name = dict(zip(classes, tags_of(classes), strict=True))
    return list(entities([by_name[tag] for tag in tags.split()]))


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-PER I-PER O", [("PER", 1, 2)]),
        ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("I-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("O I-PER", [("PER", 1, 1)]),
        ("B-PER I-LOC O", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("B-PER I-PER E-PER S-LOC", [("PER", 0, 2), ("LOC", 3, 3)]),
        ("E-PER I-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("NOUN NOUN VERB", [("NOUN", 0, 1), ("VERB", 2, 2)]),
        ("O O", []),
    ],
)
def test_entities(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert found_in(tags) == found


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        # BILOU
        ("B-PER I-PER L-PER U-LOC O", [("PER", 0, 2), ("LOC", 3, 3)]),
        ("B-PER L-PER U-PER U-PER I-PER", [("PER", *p) for p in ((0, 1), (2, 2), (3, 3), (4, 4))]),
        # BMES and BMEWO
        ("B-PER M-PER E-PER S-LOC W-LOC", [("PER", 0, 2), ("LOC", 3, 3), ("LOC", 4, 4)]),
        # other ways to hold the letter
        ("O B_PER I_PER B_LOC", [("PER", 1, 2), ("LOC", 3, 3)]),
        ("O PER-B PER-I LOC-B", [("PER", 1, 2), ("LOC", 3, 3)]),
        ("O B I B", [("", 1, 2), ("", 3, 3)]),
        # another name of what is outside
        ("none B-PER I-PER none none", [("PER", 1, 2)]),
        # types that begin as letters do, and one that holds a dash
        ("O U-Boot U-Boot L-Hotel", [("U-Boot", 1, 2), ("L-Hotel", 3, 3)]),
        ("O B-X-RAY I-X-RAY", [("X-RAY", 1, 2)]),
    ],
)
def test_schemes(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert found_in(tags) == found


def test_names_that_transformers_makes_up() -> None:
    assert not are_named(["LABEL_0", "LABEL_1", "LABEL_12"])
    assert are_named(["O", "LABEL_1"])


def test_f1_counts_whole_entities() -> None:
    tags = tags_of(("O", "B-PER", "I-PER"))
    targets = [torch.tensor([-100, 1, 2, 0, 1]), torch.tensor([1, 0])]
    guesses = [torch.tensor([1, 1, 2, 0, 0]), torch.tensor([1, 2])]
    outputs = [torch.eye(3)[guess] for guess in guesses]
    # Right: the first entity. Guessed: 2, of which one is too long. True: 3.
    batches = [([output], [target]) for output, target in zip(outputs, targets, strict=True)]
    for parts in ([(outputs, targets)], batches):
        assert judged(EntityF1(tags), *parts) == pytest.approx(2 * 1 / (2 + 3))
    nothing = [torch.eye(3)[[0, 0]]]
    assert judged(EntityF1(tags), (nothing, [torch.tensor([0, 0])])) == 0
