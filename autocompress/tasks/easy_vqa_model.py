"""Define a small multimodal transformer that answers a question in words about a 64 x 64 image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Compute multi-head attention of a query over a context.

    softmax(Q K^T / sqrt(d)) V, Vaswani et al. 2017, eq. 1.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def _heads(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.reshape(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Return the attended context.

        Args:
            query: (B, L, C).
            context: (B, S, C).

        Returns:
            (B, L, C).
        """
        mixed = F.scaled_dot_product_attention(
            self._heads(self.q_proj(query)),
            self._heads(self.k_proj(context)),
            self._heads(self.v_proj(context)),
        )
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output


class Mlp(nn.Module):
    """Apply two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed vectors.

        Args:
            x: (..., width).

        Returns:
            (..., width).
        """
        output: Tensor = self.down(F.gelu(self.up(x)))
        return output


class Block(nn.Module):
    """Apply a pre-norm transformer block that attends to a context or to its own input."""

    def __init__(self, width: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the transformed sequence.

        Args:
            x: (B, L, width).
            context: (B, S, width), or None to attend to `x`.

        Returns:
            (B, L, width).
        """
        normed = self.norm1(x)
        x = x + self.attention(normed, normed if context is None else context)
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


class VisionEncoder(nn.Module):
    """Encode an image by a convolutional stem of stride 8 and transformer blocks."""

    def __init__(self, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        for c_in, c_out, stride in ((3, 32, 2), (32, 64, 2), (64, 96, 2), (96, width, 1)):
            self.stem.append(nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False))
            self.stem.append(nn.BatchNorm2d(c_out))
            self.stem.append(nn.ReLU())
        self.position = nn.Parameter(0.02 * torch.randn(64, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """Return the patches of an image.

        Args:
            image: (B, 3, 64, 64) in [0, 1].

        Returns:
            (B, 64, width).
        """
        x = self.stem(image).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.norm(x)
        return output


class TextEncoder(nn.Module):
    """Encode a question by word embeddings and transformer blocks."""

    def __init__(
        self, vocabulary: int, length: int, width: int, depth: int, num_heads: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, 4 * width) for _ in range(depth))

    def forward(self, question: Tensor) -> Tensor:
        """Return the encoded words.

        Args:
            question: (B, L) token ids.

        Returns:
            (B, L, width).
        """
        x = self.embedding(question) + self.position
        for block in self.blocks:
            x = block(x)
        output: Tensor = x
        return output


class Fusion(nn.Module):
    """Fuse a question and an image: words attend to patches, then both are pooled and multiplied.

    The product of the pooled sides is the low-rank bilinear pooling of Kim et al. 2017. Without it
    training stays for many epochs at what the question alone explains.
    """

    def __init__(self, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, num_heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.visual = nn.Linear(width, width)

    def forward(self, words: Tensor, patches: Tensor) -> Tensor:
        """Return the fused vector.

        Args:
            words: (B, L, width).
            patches: (B, S, width).

        Returns:
            (B, width).
        """
        for block in self.blocks:
            words = block(words, patches)
        output: Tensor = self.norm(words).mean(1) * self.visual(patches.amax(1))
        return output


class EasyVqaModel(nn.Module):
    """Answer questions about images by two encoders, a projector, fusion and an answer head."""

    def __init__(
        self, vocabulary: int, answers: int, length: int, width: int = 192, num_heads: int = 6
    ) -> None:
        super().__init__()
        self.vision = VisionEncoder(width, 2, num_heads)
        self.projector = Mlp(width, 2 * width)
        self.language = TextEncoder(vocabulary, length, width, 1, num_heads)
        self.fusion = Fusion(width, 2, num_heads)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, answers))

    def encode_image(self, image: Tensor) -> Tensor:
        """Return the patches of an image, which serve all questions about it.

        Args:
            image: (B, 3, 64, 64) in [0, 1].

        Returns:
            (B, 64, width).
        """
        patches: Tensor = self.projector(self.vision(image))
        return patches

    def answer(self, patches: Tensor, question: Tensor) -> Tensor:
        """Return the logits of the answers.

        Args:
            patches: (B, 64, width) as `encode_image` returns them.
            question: (B, length) token ids.

        Returns:
            (B, answers).
        """
        logits: Tensor = self.head(self.fusion(self.language(question), patches))
        return logits

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        """Return the logits of the answers.

        Args:
            image: (B, 3, 64, 64) in [0, 1].
            question: (B, length) int64 token ids.

        Returns:
            (B, answers).
        """
        return self.answer(self.encode_image(image), question)
