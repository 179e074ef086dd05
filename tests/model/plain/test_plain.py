"""Check which modules are plain, the forms of a model, and where two models are said to differ."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from autocompress import Task, find_modules
from autocompress.errors import TaskError
from autocompress.model.plain.plain import (
    form_of,
    in_form,
    is_plain,
    plain_model,
    plain_task,
)

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnConv(nn.Conv1d):
    def _conv_forward(self, *arguments: Tensor) -> Tensor:
        return super()._conv_forward(*arguments) * 2


class Renamed(nn.Linear):
    """A subclass that changes nothing."""


def hooked(pre: bool) -> nn.Module:
    module = nn.Linear(4, 4)
    if pre:
        module.register_forward_pre_hook(lambda *_: None)
    else:
        module.register_forward_hook(lambda *_: None)
    return module


def patched() -> nn.Module:
    module = nn.Linear(4, 4)
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Linear(4, 4), True),
        (lambda: Renamed(4, 4), True),
        (lambda: nn.ReLU(), True),
        (lambda: Own(4, 4), False),
        (lambda: OwnConv(4, 4, 1), False),
        (lambda: hooked(pre=True), False),
        (lambda: hooked(pre=False), False),
        (patched, False),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), False),
    ],
)
def test_a_plain_module_does_what_its_class_does(
    make: Callable[[], nn.Module], expected: bool
) -> None:
    assert is_plain(make()) is expected


def own_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Own(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()


def test_a_tree_of_plain_modules_stays_a_tree_and_others_become_a_program() -> None:
    tree = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).train()
    found = plain_model(tree, X)
    assert form_of(found) == "whole"
    assert not found.training
    assert tree.training
    assert found[0].weight is not tree[0].weight
    model = own_model()
    program = plain_model(model, X)
    assert form_of(program) == "program"
    assert all(is_plain(module) for module in program.modules())
    assert {name for name, _ in program.named_parameters()} >= {"0.weight", "2.weight"}
    torch.testing.assert_close(program(X), model(X))


def test_a_form_is_made_again() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    model = Recurrent().eval()
    split = plain_model(model, X)
    assert form_of(split) == "split"
    assert form_of(in_form("split", model, X)) == "split"
    assert form_of(in_form("whole", model, X)) == "whole"
    torch.testing.assert_close(in_form("split", model, X)(X), model(X))
    assert isinstance(in_form("program", own_model(), X), fx.GraphModule)


def test_a_module_in_two_places_is_not_left_in_a_tree() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    found = plain_model(model, X)
    assert form_of(found) == "program"
    torch.testing.assert_close(found(X), model(X))


def test_a_task_gets_programs_for_its_model_and_its_student() -> None:
    tree = nn.Sequential(nn.Linear(4, 2)).eval()
    task = Task("t", own_model(), X, [(X, None)], lambda o, t: 0.0, student=tree)
    found = plain_task(task)
    assert isinstance(found.model, fx.GraphModule)
    assert found.student is tree
    same = Task("t", tree, X, [(X, None)], lambda o, t: 0.0)
    assert plain_task(same).model is tree


class CausalEncoder(nn.Module):
    """An encoder of PyTorch with a causal mask, and a product with a parameter (as in CLIP)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1
        )
        self.projection = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden: Tensor = self.encoder(x, mask=mask)
        return hidden[:, -1] @ self.projection


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_encoders_with_a_mask_are_followed_operator_by_operator() -> None:
    torch.manual_seed(0)
    model, x = CausalEncoder().eval(), torch.randn(2, 5, 4)
    program = plain_model(model, x)
    assert form_of(program) == "program"
    called = {str(node.target) for node in program.graph.nodes}
    assert not any("_transformer_encoder_layer_fwd" in name for name in called)
    layer = "encoder.layers.0"
    weights = {"self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2"}
    modules = {name for name, part in program.named_modules() if isinstance(part, nn.Linear)}
    assert modules >= {f"{layer}.{name}" for name in weights}
    assert any(name.startswith("projection") for name in modules)
    changed = x.clone()
    changed[:, -1] += 1  # the last position is hidden from the others
    for batch in (x, changed, torch.randn(1, 5, 4)):
        torch.testing.assert_close(program(batch), model(batch))


class Words(nn.Module):
    """Looks words up, in one of several ways, and multiplies by a matrix of another form."""

    def __init__(self, way: str, max_norm: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.max_norm = way, max_norm
        if way == "subclass":
            self.table: nn.Module = OwnTable(9, 4, max_norm=max_norm)
        elif way == "bag":
            self.table = nn.EmbeddingBag(9, 4, mode="mean", max_norm=max_norm)
        elif way == "parametrized":
            table = nn.Embedding(9, 4, max_norm=max_norm)
            self.table = parametrizations.weight_norm(table)
        else:
            limit = None if way == "function" else max_norm
            self.table = nn.Embedding(9, 4, max_norm=limit)
        self.last = Own(4, 3) if way == "program" else nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        if self.way == "function":
            rows = F.embedding(ids, self.table.weight, max_norm=self.max_norm)
        else:
            rows = self.table(ids)
        return self.last(rows)


class OwnTable(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return 2 * super().forward(ids)


IDS = torch.tensor([[1, 2], [0, 1]])  # of nine words


@pytest.mark.parametrize("way", ["tree", "program", "bag"])
def test_all_rows_of_a_table_are_as_a_lookup_leaves_them(way: str) -> None:
    """A file only reads its table, so words that the example does not have count too."""
    model = Words(way).eval()
    before = copy.deepcopy(model.state_dict())
    every = torch.arange(9)[:, None]
    plain = plain_model(model, IDS)
    assert form_of(plain) == ("whole" if way == "tree" else "program")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.table.max_norm == 0.5
    torch.testing.assert_close(plain(every), copy.deepcopy(model)(every))
    kinds = nn.Embedding, nn.EmbeddingBag
    tables = [module for module in plain.modules() if isinstance(module, kinds)]
    assert [table.max_norm for table in tables] == [None]
    again = in_form(form_of(plain), model, IDS)
    assert torch.equal(again(every), plain(every))


@pytest.mark.parametrize("way", ["function", "subclass", "parametrized"])
def test_other_lookups_that_write_to_their_table_are_refused(way: str) -> None:
    model = Words(way).eval()
    before = copy.deepcopy(model.state_dict())
    message = "^model: a lookup with max_norm shortens rows of its table, .*; nearest: .* once$"
    with pytest.raises(TaskError, match=message):
        plain_model(model, IDS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("way", ["function", "subclass", "parametrized"])
def test_a_limit_that_no_row_exceeds_refuses_nothing(way: str) -> None:
    model = Words(way, max_norm=100.0).eval()
    every = torch.arange(9)[:, None]
    torch.testing.assert_close(plain_model(model, IDS)(every), model(every))


def test_a_comparison_leaves_the_users_model_alone() -> None:
    model = Words("program").eval()
    before = model.table.weight.detach().clone()
    task = plain_task(Task("t", model, IDS, [(IDS, None), (IDS + 3, None)], lambda o, t: 0.0))
    assert isinstance(task.model, fx.GraphModule)
    assert torch.equal(model.table.weight, before)


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias)


class TurnedHead(nn.Module):
    """A table that is the head too, in a model that needs a program."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(20, 8), OwnLinear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.relu(self.inner(self.table(ids)))
        return x @ torch.transpose(self.table.weight.to(x.dtype), 0, 1)


def test_a_program_keeps_a_tie_to_a_transposed_table() -> None:
    ids = torch.randint(20, (2, 5))
    plain = plain_model(TurnedHead(), ids)
    assert isinstance(plain, fx.GraphModule)
    assert sum(p.numel() for p in plain.parameters()) == 20 * 8 + 8 * 8 + 8
    modules = find_modules(TurnedHead(), ids)
    assert [(m.name, m.kind, len(m.aliases)) for m in modules] == [
        ("table", "embedding", 1),
        ("inner", "linear", 0),
    ]


class AsksForClasses(nn.Module):
    """Has a residual around linear layers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) + (x if self.linear(layer) else 0)
        return x

    def linear(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear)


class AsksForTypes(AsksForClasses):
    def linear(self, layer: nn.Module) -> bool:
        return type(layer) is nn.Linear


class AsksForParameters(AsksForClasses):
    def linear(self, layer: nn.Module) -> bool:
        return len(list(layer.parameters())) == 2


class AsksForDevice(AsksForClasses):
    """Fails without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(next(self.parameters())))


class AsksForAttributes(AsksForClasses):
    """Reads what modules that stand for others have too."""

    def linear(self, layer: nn.Module) -> bool:
        return hasattr(layer, "weight") and layer.weight.dtype is torch.float32


@pytest.mark.parametrize("kind", [AsksForClasses, AsksForTypes, AsksForParameters, AsksForDevice])
def test_a_model_that_asks_for_classes_or_parameters_of_its_layers_becomes_a_program(
    kind: type[nn.Module],
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    plain = plain_model(model, X)
    assert form_of(plain) == "program"
    assert [module.name for module in find_modules(model, X)] == ["layers.0", "layers.2"]
    torch.testing.assert_close(plain(X), model(X))


def test_a_model_that_reads_attributes_of_its_layers_stays_a_tree() -> None:
    assert form_of(plain_model(AsksForAttributes().eval(), X)) == "whole"


class Blocks(nn.Module):
    """Sum up blocks of 4 tokens, as models with chunked states do; the last one is filled up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 3)
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        filled = (4 - n % 4) % 4
        states = F.pad(F.linear(self.table(ids), self.weight), (0, 0, 0, filled))
        states = states.reshape(len(ids), -1, 4, 3).cumsum(2).reshape(len(ids), -1, 3)
        return states[:, :n] if filled > 0 else states


@pytest.mark.parametrize("traced", [8, 7])
def test_lengths_beside_whole_blocks(traced: int) -> None:
    model = Blocks().eval()
    plain = plain_model(model, {"ids": torch.randint(9, (1, traced))})
    assert form_of(plain) == "program"
    for length in (8, 7, 9, 3, 12):
        ids = torch.randint(9, (2, length))
        torch.testing.assert_close(plain(ids=ids), model(ids))
