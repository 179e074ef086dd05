"""The product that shows saturation is a valid file, and its answer is one of the machine."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from arithmetic import EmulatedSession
from onnx import numpy_helper

from autocompress.targets.device import integer_products as module
from autocompress.targets.device.integer_products import product_model, products_here, saturates
from autocompress.targets.device.sessions import open_session


def test_the_product_is_a_valid_file_of_the_largest_weights() -> None:
    model = onnx.load_from_string(product_model())
    onnx.checker.check_model(model, full_check=True)
    (weight,) = model.graph.initializer
    assert (numpy_helper.to_array(weight) == np.full((64, 32), 127, np.int8)).all()
    assert [node.op_type for node in model.graph.node] == ["MatMulInteger"]


@pytest.mark.parametrize("wrong", [True, False])
def test_both_kinds_of_processor_are_seen(wrong: bool) -> None:
    assert saturates(EmulatedSession(product_model(), wrong)) == wrong


def test_the_answer_is_that_of_a_session_here() -> None:
    wrong = saturates(open_session(product_model()))
    assert products_here.__wrapped__() == ("saturating" if wrong else "exact")


def test_a_runtime_without_the_product_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: bytes) -> None:
        raise NotImplementedError("MatMulInteger")

    monkeypatch.setattr(module, "open_session", fails)
    assert products_here.__wrapped__() == ""
