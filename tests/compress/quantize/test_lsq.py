"""Check values and gradients of learned steps against the equations, element by element."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autocompress.compress.quantize.lsq import covering_step, learned_step

X = torch.tensor([-10.0, -1.3, -0.5, 0.0, 0.5, 1.5, 2.6, 10.0])
ZERO = torch.tensor(0.0)


def scalar(value: float) -> Tensor:
    return torch.tensor(value)


def test_values_are_rounded_half_to_even_and_clipped() -> None:
    found = learned_step(X, scalar(1.0), ZERO, -2, 3)
    assert found.tolist() == [-2, -1, 0, 0, 0, 2, 3, 3]
    shifted = learned_step(X, scalar(0.5), scalar(2.0), 0, 7)  # [-2, 5] steps of 0.5
    assert shifted.tolist() == [-1.0, -1.0, -0.5, 0.0, 0.5, 1.5, 2.5, 2.5]


def test_gradients_follow_the_equations() -> None:
    x, step = X.clone().requires_grad_(), torch.tensor(1.0, requires_grad=True)
    learned_step(x, step, ZERO, -2, 3).backward(torch.arange(1.0, 9.0))
    inside = torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 0])
    assert x.grad is not None
    assert torch.equal(x.grad, inside * torch.arange(1.0, 9.0))
    each = torch.tensor([-2.0, 0.3, 0.5, 0.0, -0.5, 0.5, 0.4, 3.0])
    assert step.grad is not None
    torch.testing.assert_close(step.grad, (each * torch.arange(1.0, 9.0)).sum())


def test_each_step_gets_the_gradient_of_its_elements() -> None:
    x = torch.tensor([[0.3, 9.0], [0.4, -9.0]])
    step = torch.tensor([[1.0], [2.0]], requires_grad=True)
    zero = torch.tensor([[0.0], [1.0]])
    found = learned_step(x, step, zero, -2, 3)
    assert found.tolist() == [[0.0, 3.0], [0.0, -6.0]]
    found.sum().backward()
    assert step.grad is not None
    torch.testing.assert_close(step.grad, torch.tensor([[-0.3 + 3], [-0.2 - 3]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "expanded"])
def test_one_step_for_all_gets_the_same_gradients_in_any_layout(
    layout: str, dtype: torch.dtype
) -> None:
    """Steps per element are summed by the general way, a single one by the shorter one."""
    generator = torch.Generator().manual_seed(0)
    x = (30 * torch.randn(4, 8, 6, 6, generator=generator)).round().to(dtype)  # also at bounds
    gradient = torch.randn(x.shape, generator=generator).to(dtype)
    if layout == "channels last":
        x = x.to(memory_format=torch.channels_last)
        gradient = gradient.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        gradient = gradient.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "expanded":
        gradient = gradient[:, :1].expand(x.shape)
    found = []
    for shape in ((), x.shape):
        leaf = x.clone().requires_grad_()
        step = torch.full(shape, 0.25, dtype=dtype, requires_grad=True)
        read = leaf.mul(1.0)  # not a weight
        learned_step(read, step, torch.tensor(3.0, dtype=dtype), 0, 255).backward(gradient)
        assert leaf.grad is not None
        assert step.grad is not None
        found.append((leaf.grad, step.grad.sum()))
    (one_x, one_step), (each_x, each_step) = found
    assert torch.equal(one_x, each_x)
    assert 0 < (one_x == 0).float().mean() < 1, "some are clipped"
    torch.testing.assert_close(one_step, each_step, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("zero", [scalar(1.0), torch.tensor([[1.0], [2.0]])])
def test_without_gradients_the_values_are_the_same(zero: Tensor) -> None:
    x = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)) * 3
    step = torch.tensor([[0.3], [0.7]], requires_grad=True)
    before = x.clone()
    with_gradient = learned_step(x, step, zero, -4, 4)
    with torch.no_grad():
        without = learned_step(x, step, zero, -4, 4)
    assert with_gradient.requires_grad
    assert torch.equal(with_gradient.detach(), without)
    assert torch.equal(x, before), "the input is not written to"


def test_what_needs_no_gradient_gets_none() -> None:
    step = torch.tensor(1.0, requires_grad=True)
    learned_step(X, step, ZERO, -2, 3).sum().backward()
    assert X.grad is None
    x = X.clone().requires_grad_()
    learned_step(x, scalar(1.0), ZERO, -2, 3).sum().backward()
    assert x.grad is not None


def test_a_covering_step_passes_all_gradients_and_none_to_the_step() -> None:
    x, step = X.clone().requires_grad_(), torch.tensor(1.0, requires_grad=True)
    found = covering_step(x, step, ZERO, -2, 3)
    assert found.tolist() == [-2, -1, 0, 0, 0, 2, 3, 3]
    found.backward(torch.arange(1.0, 9.0))
    assert torch.equal(x.grad, torch.arange(1.0, 9.0))
    assert step.grad is None
    assert not covering_step(X, step, ZERO, -2, 3).requires_grad
    with torch.no_grad():
        assert not covering_step(x, step, ZERO, -2, 3).requires_grad


def test_nothing_is_rounded_to_nothing() -> None:
    assert learned_step(torch.zeros(0, 3), torch.ones(1), torch.zeros(1), -2, 3).shape == (0, 3)


def kept_bytes(x: Tensor, step: Tensor) -> int:
    """Return the bytes that the backward pass keeps beside x and its step."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in (x.data_ptr(), step.data_ptr()):
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = learned_step(x, step, ZERO, -7, 7)
    result.sum().backward()
    return sum(kept.values())


def test_a_weight_is_not_kept_twice_for_the_backward_pass() -> None:
    weight, step = torch.randn(64, 64, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    assert kept_bytes(weight, step) < 100, "bounds alone"
    outputs = (weight * 2.0).requires_grad_()
    assert kept_bytes(outputs, step) < 100 + outputs.nbytes


def test_what_a_layer_returned_may_be_overwritten_before_the_backward_pass() -> None:
    gradients = []
    for overwrites in (False, True):
        x, step = X.clone().requires_grad_(), torch.tensor(0.7, requires_grad=True)
        outputs = x + 0.1
        rounded = learned_step(outputs, step, ZERO, -2, 3)
        if overwrites:
            outputs.relu_()
        rounded.backward(torch.arange(1.0, 9.0))
        assert x.grad is not None
        assert step.grad is not None
        gradients.append((x.grad, step.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


def test_an_infinite_input_leaves_the_gradient_of_the_step_finite() -> None:
    x = torch.tensor([1.0, -torch.inf, 3.0]).requires_grad_()
    step = torch.tensor(0.5, requires_grad=True)
    learned_step(x * 1.0, step, ZERO, -4, 3).sum().backward()
    assert step.grad is not None
    assert float(step.grad) == -4 + 3
