"""Make the networks that `benchmarks.litert` searches, trained here on data that needs no download.

The keywords are made: each word is a pattern of energies over 49 frames and 10 coefficients, as
speech has. A sample shifts and stretches it, changes its loudness and adds noise and other words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from autocompress import Task, load_task
from benchmarks.anytime import DEMO
from benchmarks.digits import accuracy, digits_task
from benchmarks.networks import MobileNetV2

FRAMES, COEFFICIENTS, WORDS = 49, 10, 12  # of Zhang et al. 2017
SPLITS = {"train": (1, 2048), "validation": (2, 512), "test": (3, 1024)}  # (seed, samples)
EPOCHS, BATCH, RATE = 8, 32, 0.01
NOISE, OTHERS = 0.9, 0.5  # standard deviation; loudness of another word


class Keywords(nn.Module):
    """Map (n, 1, 49, 10) coefficients to (n, 12) logits: DS-CNN-S of Zhang et al. 2017, Table 5.

    "Hello Edge: Keyword Spotting on Microcontrollers", arXiv 1711.07128.
    """

    def __init__(self, width: int = 64, blocks: int = 4) -> None:
        """Set up the network with random weights.

        Args:
            width: channels of all layers.
            blocks: depthwise separable ones behind the first convolution.
        """
        super().__init__()
        layers = [nn.Conv2d(1, width, (10, 4), 2, (5, 1), bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(blocks):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, WORDS)

    def forward(self, sound: Tensor) -> Tensor:
        """Return the output of the module."""
        return self.head(self.layers(sound).mean((2, 3)))


def spoken(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Return made sounds and their words.

    Args:
        seed: of all draws but the patterns of the words.
        count: of sounds.

    Returns:
        ((count, 1, 49, 10) coefficients, (count,) words).
    """
    rough = torch.randn(WORDS, 1, 8, 5, generator=torch.Generator().manual_seed(0))
    patterns = nn.functional.interpolate(rough, (FRAMES, COEFFICIENTS), mode="bilinear")
    draw = torch.Generator().manual_seed(seed)
    words, others = torch.randint(0, WORDS, (2, count), generator=draw)
    sizes = 0.8 + 0.4 * torch.rand(count, generator=draw)
    shifts = 0.3 * (torch.rand(count, generator=draw) - 0.5)
    loud = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, generator=draw)
    # Rows of the affine maps of `grid_sample`, in coordinates from -1 to 1: (coefficient, frame).
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0], maps[:, 1, 1], maps[:, 1, 2] = 1.0, sizes, shifts
    shape = (count, 1, FRAMES, COEFFICIENTS)
    grid = nn.functional.affine_grid(maps, list(shape), align_corners=False)
    sounds = nn.functional.grid_sample(patterns[words], grid, align_corners=False)
    noise = NOISE * torch.randn(shape, generator=draw)
    return loud * sounds + OTHERS * patterns[others] + noise, words


def keywords() -> Task:
    """Return the task of a trained DS-CNN of keyword spotting."""
    data = {name: spoken(*given) for name, given in SPLITS.items()}
    batches = {
        name: list(zip(x.split(BATCH), y.split(BATCH), strict=True))
        for name, (x, y) in data.items()
    }
    torch.manual_seed(0)
    model, train = Keywords(), batches["train"]
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * len(train))
    for _ in range(EPOCHS):
        for sounds, words in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(sounds), words).backward()
            optimizer.step()
            schedule.step()
    return Task(
        "keywords",
        model.eval(),
        data["train"][0][:1],
        batches["validation"],
        accuracy,
        train=train,
        test=batches["test"],
    )


def small_mobilenet() -> nn.Module:
    """Return a MobileNetV2 of 0.35 of the width for pictures of 16 x 16 pixels and one channel."""
    model = MobileNetV2(0.35, (1, 1, 2, 2, 2, 1, 1, 1))
    model.stem[0] = nn.Conv2d(1, model.stem[0].out_channels, 3, 1, 1, bias=False)
    return model


NETWORKS: Mapping[str, Callable[[], Task]] = {
    "built_in": lambda: load_task(DEMO),
    "digits_residual": digits_task,
    "keywords": keywords,
    "digits_mobilenet": lambda: digits_task(small_mobilenet),
}
