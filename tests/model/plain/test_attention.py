"""Check that split attention is PyTorch's in every call, and what it does not cover."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn.modules import transformer

from autocompress.model.plain.attention import SplitAttention, traceable_layers


def attention(**options: object) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(8, 2, batch_first=True, **options).eval()


def test_the_projections_are_the_parts_of_the_fused_weight() -> None:
    source = attention()
    nn.init.normal_(source.in_proj_bias)
    split = SplitAttention(source)
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        projection = split.get_submodule(name)
        assert torch.equal(projection.weight, source.in_proj_weight[8 * i : 8 * i + 8])
        assert torch.equal(projection.bias, source.in_proj_bias[8 * i : 8 * i + 8])
    with torch.no_grad():
        split.q_proj.weight.add_(1)
        split.out_proj.weight.add_(1)
    assert not torch.equal(split.q_proj.weight, source.in_proj_weight[:8]), "weights are copies"
    assert not torch.equal(split.out_proj.weight, source.out_proj.weight)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_weights_are_pytorchs(bias: bool, average: bool) -> None:
    source = attention(bias=bias)
    split, x, context = SplitAttention(source), torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    mask = torch.randn(3 * 2, 5, 4)
    options = {"attn_mask": mask, "average_attn_weights": average}
    for a, b in zip(
        split(x, context, context, **options), source(x, context, context, **options), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert (split.q_proj.bias is None) is (not bias)
    assert (split.out_proj.bias is None) is (not bias)


def test_weights_are_computed_only_when_asked_for() -> None:
    source, x = attention(), torch.randn(3, 5, 8)
    found = SplitAttention(source)(x, x, x, need_weights=False)
    assert found[1] is None
    torch.testing.assert_close(found[0], source(x, x, x, need_weights=False)[0])


def test_masks_of_keys_and_of_pairs_add_up() -> None:
    source, x = attention(), torch.randn(2, 4, 8)
    padding = torch.tensor([[False, False, False, True], [False, True, False, False]])
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    options = {"key_padding_mask": padding, "attn_mask": causal}
    found, weights = SplitAttention(source)(x, x, x, **options)
    torch.testing.assert_close(found, source(x, x, x, **options)[0])
    assert not weights[0, :, 3].any()
    assert not weights[1, 0, 1:].any()
    assert not weights[1, :, 1].any()


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_further_keys_are_not_covered(option: str) -> None:
    with pytest.raises(ValueError, match=r"^add_bias_kv and add_zero_attn are not covered$"):
        SplitAttention(attention(**{option: True}))


def test_threads_that_trace_leave_pytorch_as_it_was() -> None:
    before = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    inside, end = threading.Event(), threading.Event()

    def other() -> None:
        with traceable_layers(nn.Identity()):
            inside.set()
            end.wait()

    with traceable_layers(nn.Identity()):
        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        assert not inside.wait(0.2)
        with traceable_layers(nn.Identity()):  # within one thread blocks may be nested
            assert not torch.backends.mha.get_fastpath_enabled()
    inside.wait()
    end.set()
    thread.join()
    after = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    assert after == before
