"""Check that caches are switched off for a while only, and dense experts against a sum by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.model.plain.hugging_face import dense_experts, exportable, without_cache


def model(*caches: Any) -> nn.Module:
    """A model whose modules have configs; the first config belongs to two modules."""
    module = nn.Module()
    for i, cache in enumerate(caches):
        child = nn.Module()
        child.config = SimpleNamespace(use_cache=cache)
        module.add_module(str(i), child)
    module.config = module.get_submodule("0").config
    return module


def caches(module: nn.Module) -> list[Any]:
    return [child.config.use_cache for child in module.children()]


def test_caches_come_back_as_they_were() -> None:
    found = model(True, False, None, True)
    with exportable(found):
        assert caches(found) == [False, False, None, False]
    assert caches(found) == [True, False, None, True]

    def fails() -> None:
        with exportable(found):
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fails()
    assert caches(found) == [True, False, None, True]


def test_a_copy_loses_its_caches_for_good() -> None:
    found = model(True, None)
    assert without_cache(found) is found
    assert caches(found) == [False, None]
    plain = nn.Linear(2, 2)
    assert without_cache(plain) is plain


def experts(gate: bool, transposed: bool, bias: bool, norm: bool) -> SimpleNamespace:
    """Three experts of width 4 and inner width 6."""
    generator = torch.Generator().manual_seed(0)

    def stack(out: int, into: int) -> Tensor:
        weight = torch.randn(3, out, into, generator=generator)
        return weight.transpose(1, 2).contiguous() if transposed else weight

    inner = 12 if gate else 6
    return SimpleNamespace(
        has_gate=gate,
        is_transposed=transposed,
        has_bias=bias,
        has_post_expert_norm=norm,
        gate_up_proj=stack(inner, 4),
        up_proj=stack(inner, 4),
        down_proj=stack(4, 6),
        gate_up_proj_bias=torch.randn(3, inner, generator=generator),
        up_proj_bias=torch.randn(3, inner, generator=generator),
        down_proj_bias=torch.randn(3, 4, generator=generator),
        act_fn=F.relu,
        _apply_gate=lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
        post_expert_norm=lambda x: x / 2,
    )


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("gate", [False, True])
def test_dense_experts_are_the_weighted_sum_of_the_chosen(
    gate: bool, transposed: bool, bias: bool, norm: bool
) -> None:
    found = experts(gate, transposed, bias, norm)
    states = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    chosen = torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1], [2, 0]])
    weights = torch.rand(5, 2, generator=torch.Generator().manual_seed(2))
    up = found.gate_up_proj if gate else found.up_proj
    up_bias = found.gate_up_proj_bias if gate else found.up_proj_bias
    expected = torch.zeros(5, 4)
    for token in range(5):
        for expert, weight in zip(chosen[token].tolist(), weights[token], strict=True):
            first, last = up[expert], found.down_proj[expert]
            first, last = (first.T, last.T) if transposed else (first, last)
            inner = first @ states[token] + (up_bias[expert] if bias else 0)
            inner = found._apply_gate(inner) if gate else inner.relu()
            out = last @ inner + (found.down_proj_bias[expert] if bias else 0)
            expected[token] += weight * (out / 2 if norm else out)
    torch.testing.assert_close(dense_experts(found, states, chosen, weights), expected)


def test_the_result_has_the_type_of_the_states() -> None:
    found = experts(gate=False, transposed=False, bias=False, norm=False)
    found.up_proj, found.down_proj = found.up_proj.half(), found.down_proj.half()
    states = torch.randn(2, 4).half()
    result = dense_experts(found, states, torch.tensor([[0], [1]]), torch.ones(2, 1))
    assert result.dtype is torch.float16
