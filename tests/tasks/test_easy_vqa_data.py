"""Check the questions of the data set as words, and the order of its batches."""

from __future__ import annotations

import pytest
import torch

from autocompress.tasks.easy_vqa_data import (
    QUESTION_LENGTH,
    EasyVqa,
    Loader,
    Split,
    load_easy_vqa,
)

SPLIT = Split(
    torch.arange(2 * 3 * 4, dtype=torch.uint8).view(2, 3, 2, 2),
    torch.arange(50).view(5, 10),
    torch.tensor([4, 3, 2, 1, 0]),
    torch.tensor([0, 1, 1, 0, 1]),
)


def test_a_batch_has_the_image_of_each_question() -> None:
    inputs, answers = SPLIT.batch(torch.tensor([3, 1]))
    assert torch.equal(inputs["image"], SPLIT.images[[0, 1]].float() / 255)
    assert torch.equal(inputs["question"], SPLIT.tokens[[3, 1]])
    assert answers.tolist() == [1, 3]


def test_a_loader_goes_through_all_questions_in_order() -> None:
    loader = Loader(SPLIT, 2)
    assert len(loader) == 3
    assert [answers.tolist() for _, answers in loader] == [[4, 3], [2, 1], [0]]
    assert len(Loader(SPLIT, 5)) == 1


def test_a_shuffled_loader_has_the_same_order_in_each_pass() -> None:
    loader = Loader(SPLIT, 2, seed=1)
    first, second = ([answers.tolist() for _, answers in loader] for _ in range(2))
    assert first == second
    assert sorted(answer for batch in first for answer in batch) == [0, 1, 2, 3, 4]
    assert first != [[4, 3], [2, 1], [0]]
    other = [answers.tolist() for _, answers in Loader(SPLIT, 2, seed=2)]
    assert other != first


@pytest.fixture(scope="module")
def data() -> EasyVqa:
    return load_easy_vqa(validation_images=100)


def test_questions_are_words_padded_to_one_length(data: EasyVqa) -> None:
    assert data.vocabulary[0] == "<pad>"
    assert list(data.vocabulary[1:]) == sorted(set(data.vocabulary[1:]))
    tokens = data.validation.tokens
    assert tokens.shape[1] == QUESTION_LENGTH
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < len(data.vocabulary)
    padded = tokens == 0
    assert bool((padded[:, 1:] >= padded[:, :-1]).all()), "padding is at the end"
    assert not padded[:, 0].any()
    words = {" ".join(data.vocabulary[t] for t in row if t) for row in tokens[:200].tolist()}
    assert any(text.startswith(("what", "is", "does")) for text in words)
    assert not any("?" in text or text != text.lower() for text in words)


def test_answers_fit_their_questions(data: EasyVqa) -> None:
    """Answers to "is" and "does" are yes or no, and answers to "what" are others."""
    split = data.validation
    for row, answer in zip(split.tokens[:300].tolist(), split.answers[:300].tolist(), strict=True):
        closed = data.vocabulary[row[0]] in ("is", "does")
        assert (data.answers[answer] in ("yes", "no")) is closed


def test_splits_have_their_own_images(data: EasyVqa) -> None:
    assert (len(data.train.images), len(data.validation.images)) == (3900, 100)
    for split in (data.train, data.validation, data.test):
        assert split.images.shape[1:] == (3, 64, 64)
        assert split.images.dtype is torch.uint8
        assert sorted(set(split.image_index.tolist())) == list(range(len(split.images)))
        assert len(split.tokens) == len(split.answers) == len(split.image_index)
