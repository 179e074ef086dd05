"""Make networks of sizes that people ship, with random weights, for their latency.

An encoder, a ResNet and a MobileNet.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress import Task


class Attention(nn.Module):
    """Attend with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module."""
        q, k, v = (
            f(x).view(*x.shape[:2], self.num_attention_heads, -1).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        mixed = (q @ k.transpose(-1, -2) / self.attention_head_size**0.5).softmax(-1) @ v
        return self.output(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))


class Layer(nn.Module):
    """Hold attention and a feed-forward network, each with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width, heads), nn.LayerNorm(width)
        self.intermediate, self.output, self.norm2 = (
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
            nn.LayerNorm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module."""
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.output(nn.functional.gelu(self.intermediate(x))))


class Encoder(nn.Module):
    """Map (n, tokens) of word numbers to (n, 4) logits, as BERT does."""

    def __init__(
        self,
        width: int = 384,
        layers: int = 6,
        heads: int = 12,
        words: int = 2000,
        tokens: int = 32,
    ) -> None:
        super().__init__()
        self.words, self.places, self.norm = (
            nn.Embedding(words, width),
            nn.Embedding(tokens, width),
            nn.LayerNorm(width),
        )
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.classifier = nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the output of the module."""
        x = self.norm(self.words(ids) + self.places.weight)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x[:, 0])


class Block(nn.Module):
    """Hold two convolutions with a residual connection."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        wider = into != out or stride > 1
        self.shortcut = (
            nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if wider
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """Map (n, 3, 32, 32) images to (n, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        widths = [16] * 3 + [32] * 3 + [64] * 3
        blocks = [Block(a, b, 1 + (a != b)) for a, b in zip([16, *widths], widths, strict=False)]
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Inverted(nn.Module):
    """Expand, filter each channel, and project back (Sandler et al. 2018)."""

    def __init__(self, into: int, out: int, stride: int, growth: int) -> None:
        super().__init__()
        wide = into * growth
        parts: list[nn.Module] = []
        if growth > 1:
            parts += [nn.Conv2d(into, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        parts += [
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
        ]
        self.path = nn.Sequential(*parts, nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out))
        self.same = into == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module."""
        return x + self.path(x) if self.same else self.path(x)


class MobileNetV2(nn.Module):
    """Map (n, 3, 96, 96) images to (n, 10) logits.

    The paper's widths and depths (Sandler et al. 2018, Table 2).
    """

    def __init__(
        self, width: float = 1.0, strides: tuple[int, ...] = (2, 1, 2, 2, 2, 1, 2, 1)
    ) -> None:
        """Set up the network with random weights.

        Args:
            width: multiplier of all channels, which are multiples of 8.
            strides: of the stem and of each stage; smaller ones suit smaller images.
        """
        super().__init__()

        def channels(count: int) -> int:
            return max(8, int(count * width + 4) // 8 * 8)

        into = channels(32)
        self.stem = nn.Sequential(
            nn.Conv2d(3, into, 3, strides[0], 1, bias=False), nn.BatchNorm2d(into), nn.ReLU6()
        )
        blocks = []
        stages = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3)]
        for (growth, out, count), stride in zip([*stages, (6, 320, 1)], strides[1:], strict=True):
            for i in range(count):
                blocks.append(Inverted(into, channels(out), stride if i == 0 else 1, growth))
                into = channels(out)
        self.blocks = nn.Sequential(*blocks)
        last = channels(1280)
        self.last = nn.Sequential(
            nn.Conv2d(into, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6()
        )
        self.head = nn.Linear(last, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module."""
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


def network(name: str, batch: int = 1) -> Task:
    """Make a task of "encoder", "resnet" or "mobilenet", with random weights and data."""
    torch.manual_seed(0)
    model = {"encoder": Encoder, "resnet": ResNet20, "mobilenet": MobileNetV2}[name]().eval()

    def inputs(count: int) -> Tensor:
        if name == "encoder":
            return torch.randint(0, 2000, (count, 32))
        side = 32 if name == "resnet" else 96
        return torch.randn(count, 3, side, side)

    samples = inputs(16)
    with torch.no_grad():
        answers = model(samples).argmax(-1)
    return Task(
        name,
        model,
        inputs(batch),
        [(samples, answers)],
        lambda o, t: float((o.argmax(-1) == t).float().mean()),
    )
