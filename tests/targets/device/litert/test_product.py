"""The product that shows the rate of LiteRT."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from autocompress.targets.device.job import PRODUCT
from autocompress.targets.device.sessions import DEFAULT, LITERT, open_session
from autocompress.targets.kernel_models import product_model, product_source


def test_both_runtimes_time_the_same_product() -> None:
    x = np.random.default_rng(1).standard_normal(PRODUCT[:2], dtype=np.float32)
    outputs = []
    for settings in (LITERT, DEFAULT):
        session = open_session(product_source(settings)(), settings)
        outputs.append(session.run(None, {session.get_inputs()[0].name: x})[0].shape)
    assert outputs == [(PRODUCT[0], PRODUCT[2])] * 2
    assert product_source(DEFAULT) is product_model
