"""Write what an inspection found in plain types."""

from __future__ import annotations

import json
from types import SimpleNamespace

from autocompress.errors import ExportError
from autocompress.export.identity import Identity
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.model.uncovered import Uncovered
from autocompress.search import inspection
from autocompress.search.inspection import Inspection, inspect_task
from autocompress.search.problem.ranks import RankVerdict

MODULE = CompressibleModule("fc", "linear", (8, 4), True, 32, 1, "", "mlp", "fc", ("tied",))
GROUPS = (
    ChannelGroup("fc", "neurons", 8, 1, ()),
    ChannelGroup("q", "heads", 64, 16, (), reason="an output"),
)
MAP = ModuleMap((MODULE,), GROUPS, (Uncovered("norm", "LayerNorm", 0.25, 0.0),), 1, 1)
RANK = RankVerdict("fc", 0.5, "svd", 24, 32, None)


def test_everything_that_was_found_is_plain() -> None:
    found = Inspection(
        MAP, [RANK], {"note": ""}, Identity(0.0, 1e-6, 0.01), ("a line",), ("no",)
    ).to_json()
    assert json.loads(json.dumps(found)) == {
        "modules": [
            {
                "name": "fc",
                "kind": "linear",
                "weight_shape": [8, 4],
                "has_bias": True,
                "macs": 32,
                "positions": 1,
                "tower": "",
                "role": "mlp",
                "group": "fc",
                "aliases": ["tied"],
                "groups": 1,
                "parameters": 40,
            }
        ],
        "groups": [
            {"name": "fc", "kind": "neurons", "units": 8, "reason": None},
            {"name": "q", "kind": "heads", "units": 4, "reason": "an output"},
        ],
        "uncovered": [
            {"name": "norm", "what": "LayerNorm", "parameters_share": 0.25, "macs_share": 0.0}
        ],
        "ranks": [
            {
                "module": "fc",
                "rank_ratio": 0.5,
                "decomposition": "svd",
                "weights": 24,
                "whole": 32,
                "time_ratio": None,
                "verdict": "gain",
            }
        ],
        "identity": {
            "simulation": 0.0,
            "float_file": 1e-6,
            "rounded_file": 0.01,
            "rounded_module": None,
        },
        "not_free": ["a line"],
        "without_effect": ["no"],
        "latency": {"note": ""},
    }


def test_a_file_that_differs_has_an_error_and_no_free_dimensions() -> None:
    found = Inspection(MAP, [], None, ExportError("export: differs"), ("a line",)).to_json()
    assert found["identity"] == {"error": "export: differs"}
    assert found["not_free"] == []
    assert "latency" not in found


def test_a_model_that_cannot_be_exported_is_inspected_as_far_as_it_goes(monkeypatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ExportError("export: no graph")

    monkeypatch.setattr(inspection, "find_modules", lambda *_: MAP)
    monkeypatch.setattr(inspection, "builder_for", fails)
    monkeypatch.setattr(inspection, "rank_verdicts", lambda bound, modules: [(bound, modules)])
    task = SimpleNamespace(model=None, example_inputs=None, towers=None)
    space = SimpleNamespace(bind=lambda modules, target: (modules, target))
    found = inspect_task(task, "a target", space)
    assert found.modules is MAP
    assert found.ranks == [((MAP, "a target"), MAP)]
    assert isinstance(found.identity, ExportError)
    assert (found.latency, found.not_free) == (None, ())
