"""Pooled lookups become lookups of an nn.Embedding, of the same values and under the same name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autocompress.model.modules import find_modules
from autocompress.model.plain.plain import plain_model
from autocompress.model.plain.program import exported_program
from autocompress.model.plain.rewrites.bags import plain_lookups

IDS = torch.tensor([[3, 0, 7, 9], [9, 9, 9, 9], [0, 0, 0, 0], [1, 2, 0, 5]])


class Bags(nn.Module):
    def __init__(self, mode: str, padding: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(10, 6, mode=mode, padding_idx=padding)
        nn.init.normal_(self.bag.weight)  # the padding's row too, which must not count
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.head(self.bag(ids, per_sample_weights=weights))


@pytest.mark.parametrize("padding", [None, 0, -1])
@pytest.mark.parametrize("mode", ["sum", "weights", "mean", "max"])
def test_a_table_that_is_pooled_is_an_embedding(mode: str, padding: int | None) -> None:
    model = Bags("sum" if mode == "weights" else mode, padding).eval()
    inputs = (IDS, torch.rand(4, 4)) if mode == "weights" else (IDS,)
    plain = plain_model(model, tuple(tensor[:1] for tensor in inputs))
    assert isinstance(plain, fx.GraphModule)
    assert type(plain.get_submodule("bag")) is nn.Embedding
    assert plain.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(plain(*inputs), model(*inputs))
        shorter = tuple(tensor[:3, :2] for tensor in inputs)
        torch.testing.assert_close(plain(*shorter), model(*shorter))


def test_gradients_are_those_of_the_bag() -> None:
    model = Bags("mean", 0).eval()
    plain = plain_model(model, IDS)
    for net in (model, plain):
        net(IDS).square().sum().backward()
    wanted, own = model.bag.weight.grad, plain.get_parameter("bag.weight").grad
    assert wanted is not None
    assert own is not None
    torch.testing.assert_close(own, wanted)


class Tied(nn.Module):
    """A table that is looked up, pooled, and multiplied by; ids of several fields at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.one = nn.EmbeddingBag(10, 6, mode="sum"), nn.Embedding(10, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.one.weight = self.head.weight = self.bag.weight

    def forward(self, ids: Tensor) -> Tensor:  # (n, fields, length)
        pooled = self.bag(ids.flatten(0, 1)).unflatten(0, ids.shape[:2]).mean(1)
        return self.head(pooled + self.one(ids[:, 0, 0]))


def test_a_tied_table_is_one_module_with_other_names() -> None:
    model, ids = Tied().eval(), torch.stack([IDS, IDS.flip(1)], 1)
    plain = plain_model(model, ids[:1])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids), model(ids))
    (module,) = find_modules(model, ids[:1])
    assert (module.kind, module.weight_shape) == ("embedding", (10, 6))
    assert "head" in module.aliases
    assert not find_modules(model, ids[:1]).uncovered


class Function(nn.Module):
    """Offsets that forward makes, as `F.embedding_bag` takes them."""

    def __init__(self, step: int | None, last: bool) -> None:
        super().__init__()
        self.table, self.step, self.last = nn.Parameter(torch.randn(10, 6)), step, last

    def forward(self, ids: Tensor) -> Tensor:
        end = ids.numel() + (1 if self.last else 0)
        offsets = torch.arange(0, end, self.step or ids.shape[1])
        return F.embedding_bag(
            ids.reshape(-1), self.table, offsets, mode="sum", include_last_offset=self.last
        )


@pytest.mark.parametrize(
    ("step", "last", "rewritten"), [(None, False, True), (2, False, False), (None, True, False)]
)
def test_only_bags_that_are_the_rows_of_ids_are_rewritten(
    step: int | None, last: bool, rewritten: bool
) -> None:
    model = Function(step, last).eval()
    program = exported_program(model, IDS, strict=False)
    plain_lookups(program)
    program.recompile()
    names = [str(node.target) for node in program.graph.nodes]
    assert ("aten.embedding.default" in names) == rewritten
    assert any("embedding_bag" in name for name in names) != rewritten
    with torch.no_grad():
        torch.testing.assert_close(program(IDS), model(IDS))


class Offsets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(10, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.head(self.bag(ids, offsets))


def test_bags_that_offsets_cut_stay_and_are_listed() -> None:
    inputs = (torch.arange(8), torch.tensor([0, 3]))
    found = find_modules(Offsets().eval(), inputs)
    assert [module.name for module in found] == ["head"]
    assert [(part.name, part.what) for part in found.uncovered] == [("bag", "EmbeddingBag")]
