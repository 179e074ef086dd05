"""Check the blocks of the built-in model against the same arithmetic in plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.tasks.easy_vqa_model import (
    Attention,
    Block,
    EasyVqaModel,
    Fusion,
    Mlp,
    TextEncoder,
    VisionEncoder,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def heads_by_hand(attention: Attention, query: Tensor, context: Tensor) -> Tensor:
    size = query.shape[-1] // attention.num_heads
    q, k, v = attention.q_proj(query), attention.k_proj(context), attention.v_proj(context)
    parts = []
    for i in range(attention.num_heads):
        at = slice(i * size, (i + 1) * size)
        scores = (q[..., at] @ k[..., at].mT / size**0.5).softmax(-1)
        parts.append(scores @ v[..., at])
    return attention.out_proj(torch.cat(parts, -1))


def test_attention_is_softmax_of_scaled_products_per_head() -> None:
    attention, query, context = Attention(8, 2), torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    torch.testing.assert_close(
        attention(query, context), heads_by_hand(attention, query, context), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("crossed", [False, True])
def test_a_block_normalises_first_and_adds(crossed: bool) -> None:
    block, x = Block(8, 2, 16), torch.randn(3, 4, 8)
    context = torch.randn(3, 5, 8) if crossed else None
    normed = F.layer_norm(x, (8,))
    after = x + heads_by_hand(block.attention, normed, normed if context is None else context)
    inner = F.gelu(block.mlp.up(F.layer_norm(after, (8,))))
    torch.testing.assert_close(
        block(x, context), after + block.mlp.down(inner), rtol=1e-4, atol=1e-5
    )


def test_words_have_a_position() -> None:
    encoder = TextEncoder(5, 3, 8, 0, 2)
    found = encoder(torch.tensor([[1, 1, 4]]))
    torch.testing.assert_close(found[0], encoder.embedding.weight[[1, 1, 4]] + encoder.position)


def test_an_image_is_64_patches_of_stride_8() -> None:
    encoder = VisionEncoder(96, 0, 2).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = encoder(image)
        patches = encoder.stem(image)
    assert patches.shape == (2, 96, 8, 8)
    row = patches[1, :, 2, 3] + encoder.position[2 * 8 + 3]
    torch.testing.assert_close(found[1, 2 * 8 + 3], F.layer_norm(row, (96,)), rtol=1e-4, atol=1e-5)


def test_fusion_multiplies_the_pooled_sides() -> None:
    fusion, words, patches = Fusion(8, 0, 2), torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    expected = F.layer_norm(words, (8,)).mean(1) * fusion.visual(patches.amax(1))
    torch.testing.assert_close(fusion(words, patches), expected)
    attending = Fusion(8, 1, 2)
    moved = attending(words, patches.flip(0))
    assert not torch.allclose(attending(words, patches), moved)


def test_an_image_is_encoded_once_for_all_its_questions() -> None:
    model = EasyVqaModel(7, 5, 4, width=12, num_heads=2).eval()
    images, questions = torch.rand(2, 3, 64, 64), torch.randint(0, 7, (2, 4))
    with torch.no_grad():
        logits = model(images, questions)
        patches = model.encode_image(images)
        torch.testing.assert_close(model.answer(patches, questions), logits)
        swapped = model(images.flip(0), questions.flip(0))
    assert logits.shape == (2, 5)
    torch.testing.assert_close(swapped.flip(0), logits, rtol=1e-4, atol=1e-5)
    assert isinstance(model.projector, Mlp)
    assert isinstance(model.head[-1], nn.Linear)
