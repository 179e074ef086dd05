"""What the OpenVINO target offers, OpenVINO loads from the same file and computes as ONNX Runtime
does.
"""

from __future__ import annotations

import numpy as np
import pytest
from fixture import Fixture

from autocompress import Candidate, ModuleConfig
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.target import find_target

pytestmark = pytest.mark.slow

openvino = pytest.importorskip("openvino")
TARGET = find_target("openvino-cpu")
SETTINGS = SessionSettings("openvino", "CPU")


@pytest.fixture(scope="module", params=["cnn_task", "transformer_task"])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(
        request.getfixturevalue(request.param), KernelChoice(weight_only=TARGET.weight_only)
    )


@pytest.mark.parametrize("weight_bits", TARGET.weight_bits)
@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"group_size": 16},
        {"group_size": -1, "symmetric": False},
        {"activation_bits": 8},
        {"activation_bits": 8, "symmetric": False},
        {"activation_bits": 8, "activation_mode": "dynamic"},
        {"rank_ratio": 0.5},
        {"rank_ratio": 0.5, "decomposition": "tucker"},
        {"pruning_ratio": 0.5, "activation_bits": 8},
    ],
    ids=str,
)
def test_what_is_offered_runs(fixture: Fixture, weight_bits: int, axes: dict[str, object]) -> None:
    configs = {}
    for module in fixture.builder.module_map:
        own = dict(axes)
        if module.kind not in TARGET.integer_kinds or not TARGET.executes(
            "activation_mode", own.get("activation_mode", "auto")
        ):
            own.pop("activation_bits", None)
        if module.kind in TARGET.plain_kinds:
            own = {
                axis: value
                for axis, value in own.items()
                if axis not in ("rank_ratio", "group_size")
            }
        if module.name not in fixture.roots:
            own.pop("pruning_ratio", None)
        configs[module.name] = ModuleConfig(weight_bits, **own)
    content = fixture.build(Candidate.of(configs)).SerializeToString()
    feed = fixture.builder.lowered.feed(fixture.inputs)
    expected = open_session(content).run(None, feed)[0]
    found = open_session(content, SETTINGS).run(None, feed)[0]
    # OpenVINO computes in bfloat16 where the processor can, and rounds integers at other places.
    assert np.linalg.norm(found - expected) <= 0.1 * np.linalg.norm(expected)
