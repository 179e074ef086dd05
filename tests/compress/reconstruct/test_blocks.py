"""Find the parts of a model that are reconstructed one after another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.compress.reconstruct.blocks import MOST_MODULES, Block, find_blocks

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    def __init__(self, experts: int = 0) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.experts = nn.ModuleList(Expert() for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(self.up(x).relu())
        return x + sum(expert(x) for expert in self.experts)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Stem(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        for i in range(count):
            self.add_module(f"part{i}", nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class Net(nn.Module):
    """Calls its layers from the last one to the first one, and its head twice."""

    def __init__(self, parts: int = 2, experts: int = 0) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.layers = nn.ModuleList(Layer(experts) for _ in range(2))
        self.stem = Stem(parts)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in reversed(self.layers):
            x = layer(x)
        return self.head(self.head(x))


def found(model: nn.Module) -> list[Block]:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return find_blocks(model, names, lambda: model(X))


def test_layers_parents_and_single_modules_are_blocks_in_the_order_of_calls() -> None:
    assert found(Net()) == [
        Block("stem", ("stem.part0", "stem.part1"), 1),
        Block("layers.1", ("layers.1.up", "layers.1.down"), 1),
        Block("layers.0", ("layers.0.up", "layers.0.down"), 1),
        Block("head", ("head",), 2),
    ]


def test_modules_of_a_large_parent_are_blocks_of_their_own() -> None:
    names = [block.name for block in found(Net(parts=MOST_MODULES + 1))]
    assert names[:2] == ["stem.part0", "stem.part1"]
    assert "stem" not in names


def test_an_outer_element_with_modules_of_its_own_holds_the_inner_ones() -> None:
    blocks = {block.name: block.modules for block in found(Net(experts=2))}
    inside = ("up", "down", "experts.0.fc", "experts.1.fc")
    assert blocks["layers.0"] == tuple(f"layers.0.{name}" for name in inside)
    assert not any(".experts" in name for name in blocks)


def test_elements_of_a_sequence_are_blocks_if_their_class_is_repeated() -> None:
    residual = nn.Sequential(nn.Sequential(Layer(), nn.ReLU(), Layer()), nn.Linear(4, 4))
    assert [block.name for block in found(residual)] == ["0.0", "0.2", "1"]


def test_a_model_leaves_no_hooks() -> None:
    model = Net()
    found(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
