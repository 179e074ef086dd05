"""Read the images, questions and answers of easy-VQA as tensors, in three splits.

No image is in two splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

QUESTION_LENGTH = 10
Batch = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Split:
    """Hold the questions of one split.

    Attributes:
        images: (N, 3, 64, 64) uint8.
        tokens: (Q, 10) token ids of each question, 0 pads.
        answers: (Q,) indices of answers.
        image_index: (Q,) the image that each question is about.
    """

    images: Tensor
    tokens: Tensor
    answers: Tensor
    image_index: Tensor

    def batch(self, rows: Tensor) -> Batch:
        """Return some questions as one batch.

        Args:
            rows: (n,) indices of questions.

        Returns:
            ({"image": (n, 3, 64, 64) in [0, 1], "question": (n, 10)}, answers (n,)).
        """
        image = self.images[self.image_index[rows]].float() / 255
        return {"image": image, "question": self.tokens[rows]}, self.answers[rows]


@dataclass(frozen=True)
class Loader:
    """Give the batches of a split; with a seed, shuffled in the same order in each pass."""

    split: Split
    batch_size: int
    seed: int | None = None

    def __len__(self) -> int:
        return -(-len(self.split.answers) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.split.answers)
        order = torch.arange(count)
        if self.seed is not None:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        for rows in torch.split(order, self.batch_size):
            yield self.split.batch(rows)


@dataclass(frozen=True)
class EasyVqa:
    """Hold the data set.

    Attributes:
        train: training questions.
        validation: questions about held-out images of the official training set.
        test: questions of the official test set.
        vocabulary: word of each token id.
        answers: text of each answer.
    """

    train: Split
    validation: Split
    test: Split
    vocabulary: tuple[str, ...]
    answers: tuple[str, ...]


def load_easy_vqa(validation_images: int = 200) -> EasyVqa:
    """Return the shipped data set.

    Args:
        validation_images: number of the 4000 official training images, from the end, that validate.

    Returns:
        The three splits.
    """
    with files("autocompress.tasks").joinpath("data/easy_vqa.npz").open("rb") as file:
        data = dict(np.load(file, allow_pickle=False))
    questions = data["questions"].tolist()
    sentences = [question.replace("?", "").lower().split() for question in questions]
    vocabulary = ("<pad>", *sorted({word for sentence in sentences for word in sentence}))
    index = {word: i for i, word in enumerate(vocabulary)}
    tokens = torch.zeros(len(sentences), QUESTION_LENGTH, dtype=torch.int64)
    for row, sentence in enumerate(sentences):
        tokens[row, : len(sentence)] = torch.tensor([index[word] for word in sentence])

    def split(prefix: str, first: int, last: int) -> Split:
        image_index = torch.from_numpy(data[f"{prefix}_image_index"]).long()
        rows = (image_index >= first) & (image_index < last)
        pixels = torch.from_numpy(data[f"{prefix}_images"][first:last])
        question = torch.from_numpy(data[f"{prefix}_question"]).long()[rows]
        answer = torch.from_numpy(data[f"{prefix}_answer"]).long()[rows]
        images = pixels.permute(0, 3, 1, 2).contiguous()
        return Split(images, tokens[question], answer, image_index[rows] - first)

    count = len(data["train_images"])
    border = count - validation_images
    train, validation = split("train", 0, border), split("train", border, count)
    test = split("test", 0, len(data["test_images"]))
    return EasyVqa(train, validation, test, vocabulary, tuple(data["answers"].tolist()))
