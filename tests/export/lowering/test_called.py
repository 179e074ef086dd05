"""Keep the sites of modules that are called as often as the graph shows them."""

from __future__ import annotations

import numpy as np
import torch
from hand_made import lowered
from onnx import helper
from torch import Tensor, nn

from autocompress.export.lowering.called import as_called
from autocompress.export.lowering.lower import LoweredModel, Site
from autocompress.model.modules import CompressibleModule, ModuleMap


class Twice(nn.Module):
    """Call `fc` as often as it is told, and a convolution with a normalisation behind it once."""

    def __init__(self, calls: int = 2) -> None:
        super().__init__()
        self.calls = calls
        self.fc = nn.Linear(4, 4)
        self.conv = nn.Conv1d(1, 2, 1)
        self.bn = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.calls):
            x = self.fc(x)
        return self.bn(self.conv(x[:, None]))


def map_of(*kinds: tuple[str, str], aliases: tuple[str, ...] = ()) -> ModuleMap:
    modules = tuple(
        CompressibleModule(name, kind, (4, 4), True, 0, 1, "", "mlp", None, aliases)
        for name, kind in kinds
    )
    return ModuleMap(modules, (), (), 0, 0)


MAP = map_of(("fc", "linear"), ("conv", "conv"))
NORM = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]


def graph(kind: str = "linear", uses: int = 2, norms: int = 1) -> LoweredModel:
    products = [helper.make_node("MatMul", [f"h{i}", "w"], [f"h{i + 1}"]) for i in range(uses)]
    conv = helper.make_node("Conv", ["u", "k"], ["c"])
    tails = [helper.make_node("BatchNormalization", ["c", *NORM], [f"n{i}"]) for i in range(norms)]
    relu = helper.make_node("Relu", ["n0"], ["r"])
    sites = {
        "fc": tuple(Site("fc", "fc", kind, n, n.input[0], n.output[0], None) for n in products),
        "conv": (Site("conv", "conv", "conv", conv, "u", "r", None, (), ("n0", "r")),),
    }
    nodes = [*products, conv, *tails, relu]
    return lowered(nodes, {"w": np.eye(4, dtype=np.float32)}, {"h0": [1, 4]}, ["r"], sites)


X = torch.rand(3, 4)


def names(found: LoweredModel) -> dict[str, int]:
    return {owner: len(sites) for owner, sites in found.sites.items()}


def test_sites_stay_where_graph_and_model_agree() -> None:
    given = graph()
    found = as_called(given, Twice().eval(), MAP, X)
    assert found.sites == given.sites


def test_a_module_that_the_graph_computes_another_number_of_times_has_no_site() -> None:
    assert names(as_called(graph(uses=3), Twice().eval(), MAP, X)) == {"conv": 1}
    assert names(as_called(graph(uses=2), Twice(1).eval(), MAP, X)) == {"conv": 1}


def test_one_site_and_lookups_stay_however_often_they_are_called() -> None:
    assert names(as_called(graph(uses=1), Twice(5).eval(), MAP, X)) == {"fc": 1, "conv": 1}
    tables = map_of(("fc", "embedding"), ("conv", "conv"))
    found = as_called(graph("embedding", uses=3), Twice(5).eval(), tables, X)
    assert names(found) == {"fc": 3, "conv": 1}


def test_calls_of_tied_modules_are_added_up() -> None:
    class Tied(Twice):
        def __init__(self) -> None:
            super().__init__(1)
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.head(x))

    tied = map_of(("fc", "linear"), aliases=("head",))
    modules = ModuleMap((*tied.modules, MAP["conv"]), (), (), 0, 0)
    assert names(as_called(graph(uses=2), Tied().eval(), modules, X)) == {"fc": 2, "conv": 1}


def conv_of(found: LoweredModel) -> Site:
    return found.sites["conv"][0]


def test_a_normalisation_that_does_more_stays_apart() -> None:
    model = Twice().eval()
    assert conv_of(as_called(graph(), model, MAP, X)).output == "r"
    model.bn.register_forward_hook(lambda module, inputs, output: output * 2)
    apart = conv_of(as_called(graph(), model, MAP, X))
    assert (apart.output, apart.tail) == ("c", ())


def test_a_normalisation_of_another_class_or_called_otherwise_stays_apart() -> None:
    class Own(nn.BatchNorm1d):
        pass

    model = Twice().eval()
    model.bn = Own(2)
    assert conv_of(as_called(graph(), model.eval(), MAP, X)).tail == ()
    assert conv_of(as_called(graph(norms=2), Twice().eval(), MAP, X)).tail == ()
    model = Twice().eval()
    model.bn.forward = lambda x: x
    assert conv_of(as_called(graph(), model, MAP, X)).tail == ()


def test_no_hook_is_left_on_the_model() -> None:
    model = Twice().eval()
    as_called(graph(), model, MAP, X)
    assert not any(module._forward_pre_hooks for module in model.modules())
