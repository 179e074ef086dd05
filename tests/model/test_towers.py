"""Check towers that a user names, towers that are guessed, and what a module does there."""

from __future__ import annotations

import pytest
from torch import nn

from autocompress.errors import TaskError
from autocompress.model.towers import check_towers, find_towers, role_of


def test_the_first_pattern_that_matches_counts() -> None:
    names = ["vision.a", "vision.b", "text.a", "head"]
    found = find_towers(names, {"first": ["*.a"], "eyes": ["vision.*", "head"]})
    assert found == {"vision.a": "first", "vision.b": "eyes", "text.a": "first", "head": "eyes"}
    assert find_towers(names, {"eyes": ["vision.?"]})["head"] == "other"


def test_a_pattern_without_a_module_is_named() -> None:
    with pytest.raises(
        TaskError,
        match=r"task: towers\['eyes'\] pattern 'Vision.\*' matches no module; nearest: vision.a$",
    ):
        find_towers(["vision.a"], {"eyes": ["vision.*", "Vision.*"]})


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        ("eyes", "task: towers must be a mapping from names to lists of patterns, got 'eyes'; n"),
        (["eyes"], "task: towers must be a mapping from names to lists of patterns, got ['eyes']"),
        ({1: ["a"]}, "task: towers must be a mapping from names to lists of patterns, got {1: "),
        ({"eyes": "a.*"}, "task: towers['eyes'] must be a list of patterns, got 'a.*'; nearest: ["),
        ({"eyes": 3}, "task: towers['eyes'] must be a list of patterns, got 3; nearest: ['encod"),
        ({"eyes": [3]}, "task: towers['eyes'] must be a list of patterns, got [3]; nearest: ["),
    ],
)
def test_what_are_no_towers(towers: object, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        check_towers(towers)
    assert str(caught.value).startswith(message)
    check_towers(None)
    check_towers({"eyes": ("a.*",)})


@pytest.mark.parametrize(
    ("names", "towers"),
    [
        (["a", "b"], ["model", "model"]),
        (["0", "2"], ["model", "model"]),
        (["0.conv", "1.conv", "fc"], ["model", "model", "fc"]),
        (["net.left.a", "net.right.b"], ["left", "right"]),
        (["outer.net.left.a", "outer.net.classifier"], ["left", "classifier"]),
        (["only.one"], ["model"]),
        ([], []),
    ],
)
def test_a_tower_is_the_child_that_holds_several_modules(
    names: list[str], towers: list[str]
) -> None:
    assert list(find_towers(names, None).values()) == towers


class SomeAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("name", "kind", "tower", "last", "role"),
    [
        ("words", "embedding", "head", True, "embedding"),
        ("mlp.up", "linear", "model", True, "head"),
        ("mlp.up", "linear", "classifier", False, "head"),
        ("mlp.up", "conv", "model", False, "conv"),
        ("mlp.up", "conv", "lm_head", False, "head"),
        ("mlp.up", "linear", "model", False, "mlp"),
        ("block.dense", "linear", "model", False, "attention"),
        ("attn.up", "linear", "model", False, "attention"),
        ("mlp.q_proj", "linear", "model", False, "attention"),
    ],
)
def test_roles(name: str, kind: str, tower: str, last: bool, role: str) -> None:
    def part(**children: nn.Module) -> nn.Module:
        module = nn.Module()
        for key, child in children.items():
            module.add_module(key, child)
        return module

    model = part(
        words=nn.Embedding(2, 2),
        mlp=part(up=nn.Linear(2, 2), q_proj=nn.Linear(2, 2)),
        attn=part(up=nn.Linear(2, 2)),
        block=SomeAttention(),
    )
    assert role_of(model, name, kind, tower, last) == role
