"""Train a residual network on scikit-learn's handwritten digits (8 x 8 pixels).

1000 to train, 297 to validate, 500 to test.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from autocompress import Task
from benchmarks.networks import Block

WIDTHS = (32, 64, 128)
EPOCHS = 20
Batches = list[tuple[Tensor, Tensor]]


class DigitsNet(nn.Module):
    """Map (n, 1, 16, 16) pictures to (n, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        a, b, c = WIDTHS
        self.blocks = nn.Sequential(
            Block(a, a, 1), Block(a, b, 2), Block(b, b, 1), Block(b, c, 2), Block(c, c, 1)
        )
        self.head = nn.Linear(c, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the output of the module."""
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of correct classes."""
    return float((outputs.argmax(1) == targets).float().mean())


def digits_task(network: Callable[[], nn.Module] = DigitsNet) -> Task:
    """Return the task of a trained network; pictures are doubled to 16 x 16 pixels.

    Args:
        network: makes it with random weights.
    """
    from sklearn.datasets import load_digits  # of the extra `benchmarks`

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = torch.from_numpy(data.images[order]).float().unsqueeze(1) / 16
    x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
    y = torch.from_numpy(data.target[order])

    def batches(start: int, end: int) -> Batches:
        return list(zip(x[start:end].split(50), y[start:end].split(50), strict=True))

    train = batches(0, 1000)
    return Task(
        "digits",
        _trained(network, train),
        x[:1],
        batches(1000, 1297),
        accuracy,
        train=train,
        test=batches(1297, 1797),
    )


def _trained(network: Callable[[], nn.Module], train: Batches) -> nn.Module:
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, EPOCHS * len(list(train)))
    for _ in range(EPOCHS):
        for inputs, target in train:
            loss = nn.functional.cross_entropy(model(inputs), target, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()
