from __future__ import annotations

import numpy as np
import torch

from autocompress.compress.assemble.scatter import scatter

ROWS, COLUMNS = np.array([True, False, True]), np.array([False, True])


def test_kept_rows_and_columns_return_to_their_places() -> None:
    assert scatter(torch.tensor([1.0, 2.0]), ROWS, None, (3,)).tolist() == [1, 0, 2]
    small = torch.tensor([[1.0], [2.0]])
    assert scatter(small, ROWS, COLUMNS, (3, 2)).tolist() == [[0, 1], [0, 0], [0, 2]]
    assert scatter(small, None, COLUMNS, (2, 2)).tolist() == [[0, 1], [0, 2]]
    kernel = torch.ones(2, 2, 1, 1)
    assert scatter(kernel, ROWS, None, (3, 2, 1, 1)).flatten(1).sum(1).tolist() == [2, 0, 2]
    assert scatter(small, None, None, (2, 1)) is small
