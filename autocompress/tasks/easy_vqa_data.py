"""The easy-VQA images, questions and answers, as tensors, in three splits that share no image."""

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
    """Images (N, 3, 64, 64) uint8; per question its tokens (Q, 10), answer (Q,) and image index (Q,)."""

    images: Tensor
    tokens: Tensor
    answers: Tensor
    image_index: Tensor

    def batch(self, rows: Tensor) -> Batch:
        """The questions `rows` as ({image, question}, answer), images scaled to [0, 1]."""
        image = self.images[self.image_index[rows]].float() / 255
        return {"image": image, "question": self.tokens[rows]}, self.answers[rows]


@dataclass(frozen=True)
class Loader:
    """A re-iterable of batches; with a seed it is shuffled, each pass in the same order."""

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
    """The data set: three splits, the words behind the token ids (0 pads) and the answers."""

    train: Split
    validation: Split
    test: Split
    vocabulary: tuple[str, ...]
    answers: tuple[str, ...]


def load_easy_vqa(validation_images: int = 200) -> EasyVqa:
    """Read the shipped data; the last `validation_images` of the 4000 official training images validate."""
    with files("autocompress.tasks").joinpath("data/easy_vqa.npz").open("rb") as file:
        data = dict(np.load(file, allow_pickle=False))
    sentences = [
        question.replace("?", "").lower().split() for question in data["questions"].tolist()
    ]
    vocabulary = ("<pad>", *sorted({word for sentence in sentences for word in sentence}))
    index = {word: i for i, word in enumerate(vocabulary)}
    tokens = torch.zeros(len(sentences), QUESTION_LENGTH, dtype=torch.int64)
    for row, sentence in enumerate(sentences):
        tokens[row, : len(sentence)] = torch.tensor([index[word] for word in sentence])

    def split(prefix: str, first: int, last: int) -> Split:
        image_index = torch.from_numpy(data[f"{prefix}_image_index"]).long()
        rows = (image_index >= first) & (image_index < last)
        return Split(
            torch.from_numpy(data[f"{prefix}_images"][first:last]).permute(0, 3, 1, 2).contiguous(),
            tokens[torch.from_numpy(data[f"{prefix}_question"]).long()[rows]],
            torch.from_numpy(data[f"{prefix}_answer"]).long()[rows],
            image_index[rows] - first,
        )

    images = len(data["train_images"])
    border = images - validation_images
    test = split("test", 0, len(data["test_images"]))
    return EasyVqa(
        split("train", 0, border),
        split("train", border, images),
        test,
        vocabulary,
        tuple(data["answers"].tolist()),
    )
