"""Check that errors in the forward of a float32 copy are the user's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocompress.model.float_copy import float_copy, narrowed_types
from autocompress.task.calls import run_model
from autocompress.task.user_code import UserCodeError


class Casts(nn.Module):
    """Cast to half precision in forward, as models of mixed types do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4).half()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 3:
            raise ValueError("not three")
        return self.fc(x.half())


def test_a_copy_computes_in_float32_and_its_errors_name_the_users_file() -> None:
    model, x = Casts(), torch.ones(2, 4)
    copy = float_copy(model, x)
    assert narrowed_types(model) == {torch.float16}
    assert not narrowed_types(copy)
    assert run_model(copy, x).dtype == torch.float32
    with pytest.raises(UserCodeError, match=r"ValueError: not three \(.*test_float_copy.py:\d+\)$"):
        run_model(copy, torch.ones(3, 4))
