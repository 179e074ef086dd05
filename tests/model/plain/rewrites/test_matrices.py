"""Check that products with stacks of matrices become products with one matrix each, of the same
values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autocompress.model.plain.program import exported_program
from autocompress.model.plain.rewrites.matrices import single_matrices


class Holder(nn.Module):
    def __init__(self, shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.weight)


def rewritten(
    shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor], x: Tensor
) -> Counter[str]:
    """Operators of the rewritten program, which computes what the model computes."""
    model = Holder(shape, use)
    program = exported_program(model, x, strict=False)
    single_matrices(program)
    program.recompile()
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def einsum(equation: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, w: torch.einsum(equation, x, w)


def conv3d(x: Tensor, w: Tensor, stride: tuple[int, ...], padding: int = 0) -> Tensor:
    return nn.functional.conv3d(x, w, stride=stride, padding=padding)


@pytest.mark.parametrize(
    ("shape", "use", "x", "products"),
    [
        ((3, 4, 5), torch.bmm, values(3, 2, 4), 3),
        ((3, 5, 4), lambda x, w: torch.bmm(w, x), values(3, 4, 2), 3),
        ((3, 4, 5), torch.matmul, values(2, 3, 6, 4), 3),
        ((3, 4, 5), torch.matmul, values(6, 4), 3),  # the same rows for every matrix
        ((3, 4, 5), torch.matmul, values(2, 1, 6, 4), 3),
        ((3, 4, 5), lambda x, w: torch.baddbmm(x[:, :, :1], x, w), values(3, 2, 4), 3),
        ((4, 5), einsum("bi,io->bo"), values(2, 4), 1),
        ((4, 3, 5), einsum("bti,iho->bhto"), values(2, 6, 4), 1),
        ((3, 4, 5), einsum("bhi,hio->bho"), values(2, 3, 4), 3),
        ((5, 3, 4), einsum("bhti,ohi->bhto"), values(2, 3, 6, 4), 3),
        ((3, 4, 5), einsum("bhi,hio->bo"), values(2, 3, 4), 1),  # summed over both
        ((4, 5), lambda x, w: torch.einsum("io,bi->ob", w, x), values(2, 4), 1),
        ((6, 2, 2, 2, 3), lambda x, w: conv3d(x, w, (2, 2, 3)), values(2, 2, 4, 4, 6), 1),
        ((6, 2, 2, 2, 3), lambda x, w: conv3d(x, w, (2, 2, 3)), values(2, 2, 5, 4, 8), 1),
    ],
)
def test_each_matrix_has_a_product_of_its_own(
    shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor], x: Tensor, products: int
) -> None:
    found = rewritten(shape, use, x)
    assert found["aten.linear.default"] == products
    for name in ("bmm", "matmul", "baddbmm", "conv3d", "einsum"):
        assert not any(f"aten.{name}" in operator for operator in found)


@pytest.mark.parametrize(
    ("shape", "use", "x", "stays"),
    [
        ((3, 4, 5), lambda x, w: torch.bmm(x, x.mT @ x), values(3, 2, 4), "aten.bmm.default"),
        ((257, 2, 2), torch.bmm, values(257, 1, 2), "aten.bmm.default"),
        (
            (3, 4, 5),
            lambda x, w: torch.baddbmm(w[:, :1, :1], x, w, beta=2),
            values(3, 2, 4),
            "badd",
        ),
        ((6, 2, 2, 2, 2), lambda x, w: conv3d(x, w, (1, 1, 1)), values(1, 2, 4, 4, 4), "conv3d"),
        (
            (6, 2, 2, 2, 2),
            lambda x, w: conv3d(x, w, (2, 2, 2), 1),
            values(1, 2, 4, 4, 4),
            "conv3d",
        ),
        ((4,), einsum("bi,i->bi"), values(2, 4), "aten.einsum.default"),
        ((4, 5), einsum("bi,jo->bio"), values(2, 4), "aten.einsum.default"),
        ((4, 5, 6), einsum("bij,ijo->bijo"), values(2, 4, 5), "aten.einsum.default"),
        ((4, 4), einsum("bi,ii->b"), values(2, 4), "aten.einsum.default"),
    ],
)
def test_other_products_stay(
    shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor], x: Tensor, stays: str
) -> None:
    found = rewritten(shape, use, x)
    assert any(stays in operator for operator in found)
