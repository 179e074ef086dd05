"""Check damping against its formula, and that a factor is one of the inverse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import autocompress
from autocompress.compress.calibrate.linear_algebra import (
    DAMPING,
    SMALL,
    damped,
    damped_factor,
    inverse_factor,
    traces_of_quotients,
)

PACKAGE = Path(autocompress.__file__).parent


def gram(rows: int, columns: int) -> torch.Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).double()
    return x.T @ x / rows


def test_a_share_of_the_mean_diagonal_is_added() -> None:
    given = torch.tensor([[2.0, 1.0], [1.0, 4.0]]).double()
    found = damped(given)
    assert DAMPING == 0.01
    torch.testing.assert_close(found, given + 0.03 * torch.eye(2).double())
    assert given.tolist() == [[2.0, 1.0], [1.0, 4.0]], "the matrix itself is not changed"


def test_inputs_that_were_never_seen_get_the_mean() -> None:
    given = torch.diag(torch.tensor([2.0, 0.0, 4.0]).double())
    mean = torch.tensor([2.0, 2.0, 4.0]).double()
    torch.testing.assert_close(damped(given), torch.diag(mean * 1 + 0.01 * mean.mean()))
    found = damped(torch.zeros(3, 3).double())
    assert bool((found.diagonal() > 0).all())
    assert not (found - torch.diag(found.diagonal())).any()


def test_a_matrix_of_low_rank_has_a_factor() -> None:
    for given in (gram(1, 6), gram(2, 6), 1e-20 * gram(2, 6), 1e20 * gram(2, 6)):
        assert int(torch.linalg.cholesky_ex(damped(given))[1]) == 0
    one = damped(torch.tensor([[3.0]]).double())
    assert one.tolist() == [[3.03]]


def test_damping_grows_until_an_indefinite_matrix_has_a_factor() -> None:
    indefinite = torch.tensor([[1.0, 3.0], [3.0, 1.0]]).double()
    found = damped(indefinite)
    assert int(torch.linalg.cholesky_ex(found)[1]) == 0
    torch.testing.assert_close(found, indefinite + 10 * torch.eye(2).double())


def test_where_no_damping_helps_the_diagonal_is_left() -> None:
    hopeless = torch.tensor([[1.0, 1e9], [1e9, 1.0]]).double()
    assert damped(hopeless).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert inverse_factor(4 * hopeless).tolist() == [[0.5, 0.0], [0.0, 0.5]]


def test_the_factor_is_upper_and_multiplies_to_the_inverse() -> None:
    given = gram(50, 5)
    upper = inverse_factor(given)
    assert torch.equal(upper, upper.triu())
    assert bool((upper.diagonal() > 0).all())
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(damped(given)))


def test_triangles_of_any_size_are_inverted() -> None:
    for columns in (1, SMALL, SMALL + 1, 3 * SMALL + 7):
        given = gram(2 * columns, columns)
        upper = inverse_factor(given)
        assert torch.equal(upper, upper.triu())
        identity = upper.T @ upper @ damped(given)
        torch.testing.assert_close(identity, torch.eye(columns).double(), rtol=0, atol=1e-9)


def test_the_lower_factor_is_that_of_the_damped_matrix() -> None:
    for given in (gram(50, 5), gram(2, 6)):
        lower = damped_factor(given)
        assert torch.equal(lower, lower.tril())
        torch.testing.assert_close(lower @ lower.T, damped(given))


@pytest.mark.parametrize("columns", [5, 192, 320])
def test_traces_are_those_of_each_pair_alone(columns: int) -> None:
    """Sizes at which PyTorch's batched LU factorisation is wrong with several threads."""
    matrices = torch.stack(
        [gram(2 * columns, columns) + (i + 1) * torch.eye(columns).double() for i in range(3)]
    )
    moments = torch.stack([gram(7 + i, columns) for i in range(3)])
    expected = [
        float((m @ torch.linalg.inv(a)).trace()) for a, m in zip(matrices, moments, strict=True)
    ]
    found = traces_of_quotients(matrices, moments)
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_a_matrix_that_rounding_made_indefinite_is_solved_too() -> None:
    matrices = torch.stack([torch.diag(torch.tensor([2.0, -1e-3])), torch.eye(2)]).double()
    moments = torch.stack([torch.eye(2), 3 * torch.eye(2)]).double()
    expected = torch.tensor([0.5 - 1e3, 6.0]).double()
    torch.testing.assert_close(traces_of_quotients(matrices, moments), expected)


def test_nothing_else_solves_systems_by_lu_factorisation() -> None:
    """Batches of large matrices would be wrong; the places below factor one matrix at a time."""
    # Both files solve one system at a time.
    word = re.compile(
        r"torch\.(linalg\.(solve|inv|lu|det|slogdet|tensor)(?!_triangular)\w*|inverse|lu)\(|"
        r"\.inverse\(\)"
    )
    files = {
        str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if word.search(p.read_text())
    }
    assert files == {"compress/calibrate/linear_algebra.py", "compress/prune/surgeon.py"}
