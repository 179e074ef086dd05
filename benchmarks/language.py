"""Train a small decoder language model on the characters of Shakespeare's plays.

It takes some minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress import Task

TEXT = Path(__file__).parent / "data" / "shakespeare.txt"
LENGTH, WIDTH, HEADS, DEPTH = 96, 96, 4, 4
Batches = list[tuple[Tensor, Tensor]]


class Attention(nn.Module):
    """Attend to earlier characters with several heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(WIDTH, WIDTH) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module."""
        batch, length, _ = x.shape
        q, k, v = (
            p(x).view(batch, length, HEADS, -1).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    """Hold masked attention and a feed-forward network, each with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """Map (n, length) characters to (n, length, characters) logits of the next ones."""

    def __init__(self, characters: int, depth: int = DEPTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the output of the module."""
        x = self.embedding(ids) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Windows:
    """Give batches of (n, LENGTH) characters and the next ones, the same in each pass."""

    text: Tensor
    batch_size: int
    count: int
    seed: int

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.count):
            starts = torch.randint(
                len(self.text) - LENGTH - 1, (self.batch_size,), generator=generator
            )
            windows = self.text[starts[:, None] + torch.arange(LENGTH + 1)]
            yield windows[:, :-1], windows[:, 1:]


def read() -> tuple[Tensor, Tensor, Tensor, int]:
    """Return (first 90 % of the text, next 5 %, last 5 %, number of characters)."""
    text = TEXT.read_text()
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([index[character] for character in text])
    first, second = int(0.9 * len(codes)), int(0.95 * len(codes))
    return codes[:first], codes[first:second], codes[second:], len(index)


def trained(text: Tensor, characters: int, steps: int, depth: int = DEPTH) -> Decoder:
    """Train a decoder on the text."""
    torch.manual_seed(0)
    model = Decoder(characters, depth)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for inputs, targets in Windows(text, 32, steps, 0):
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def whole(text: Tensor, batch_size: int = 32) -> Batches:
    """Return every character of `text` once, in rows of LENGTH."""
    rows = (len(text) - 1) // LENGTH
    inputs, targets = (
        text[: rows * LENGTH].view(rows, LENGTH),
        text[1 : rows * LENGTH + 1].view(rows, LENGTH),
    )
    return list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))


def negative_perplexity(outputs: Tensor, targets: Tensor) -> float:
    """Return -exp(mean cross-entropy); higher is better."""
    return -float(F.cross_entropy(outputs.flatten(0, 1), targets.flatten()).exp())


def language_task(steps: int, rows: int, depth: int = DEPTH) -> Task:
    """Return the task of a decoder trained here; `rows` limits validation and test."""
    train, validation, test, characters = read()
    model = trained(train, characters, steps, depth)
    return Task(
        "shakespeare",
        model,
        train[:LENGTH].view(1, LENGTH),
        whole(validation[: rows * LENGTH + 1]),
        negative_perplexity,
        train=Windows(train, 16, 1000, 1),
        calibration=list(Windows(train, 32, 4, 2)),
        test=whole(test[: rows * LENGTH + 1]),
    )
