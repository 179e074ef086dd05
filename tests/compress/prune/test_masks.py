"""Check which channels of each member are kept when units of a group go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from autocompress import Candidate, ModuleConfig
from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.prune.masks import Masks, Pruner, global_ratios, ratio_below
from autocompress.model.channel_group import ChannelGroup, Member, all_of
from autocompress.model.modules import ModuleMap


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6, affine=False)
        self.read = nn.Linear(12, 2)
        self.back = nn.ConvTranspose1d(6, 2, 1)
        self.other = nn.Linear(2, 2)
        self.router = nn.Linear(3, 2)


def member(name: str, side: str, index: list[int], root: list[int]) -> Member:
    return Member(name, side, np.array(index), np.array(root))


HEADS = ChannelGroup(
    "make",
    "heads",
    6,
    2,
    (
        member("make", "out", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        member("norm", "channel", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        member("read", "in", list(range(6, 12)), [0, 1, 2, 3, 4, 5]),
        member("back", "in", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
    ),
)
EXPERTS = ChannelGroup(
    "router",
    "experts",
    2,
    1,
    (
        Member("router", "gate", all_of(2), all_of(2)),
        member("other", "whole", [0], [1]),
    ),
)


def pruner(*groups: ChannelGroup, **scores: list[float]) -> Pruner:
    """Groups with given l1 scores of their units."""
    known = {(name, "l1"): np.array(values) for name, values in scores.items()}
    evidence = Evidence(Model(), scores=known)
    return Pruner(evidence, ModuleMap((), groups, (), 1, 1))


def candidate(**ratios: float) -> Candidate:
    return Candidate.of(
        {name: ModuleConfig(pruning_ratio=ratio, importance="l1") for name, ratio in ratios.items()}
    )


def test_a_unit_goes_with_its_channels_in_every_member() -> None:
    masks = pruner(HEADS, make=[3.0, 1.0, 2.0]).masks(candidate(make=0.4))
    kept = [True, True, False, False, True, True]
    assert masks.of("make", "out").tolist() == kept
    assert masks.of("norm", "channel").tolist() == kept
    assert masks.of("read", "in").tolist() == [True] * 6 + kept
    assert masks.of("back", "in").tolist() == kept, "a transposed convolution reads along its rows"
    assert masks.of("make", "in") is None
    assert not masks.dropped("make")


def test_of_equal_scores_the_first_units_are_kept() -> None:
    masks = pruner(HEADS, make=[1.0, 1.0, 1.0]).masks(candidate(make=0.6))
    assert masks.of("make", "out").tolist() == [True, True, False, False, False, False]


def test_an_expert_goes_whole() -> None:
    chosen = pruner(EXPERTS, router=[2.0, 1.0])
    masks = chosen.masks(candidate(router=0.5))
    assert masks.of("router", "gate").tolist() == [True, False]
    assert masks.dropped("other")
    assert not masks.dropped("router")
    assert masks.of("other", "whole").tolist() == [False]


def test_what_is_not_pruned_has_no_masks() -> None:
    both = pruner(HEADS, EXPERTS, make=[3.0, 1.0, 2.0], router=[1.0, 2.0])
    assert both.masks(candidate(make=0.0)).kept == {}
    assert both.masks(candidate(make=0.1)).kept == {}, "no unit is a tenth of three"
    assert both.masks(candidate(elsewhere=0.5)).kept == {}
    only = both.masks(candidate(router=0.5))
    assert {name for name, _ in only.kept} == {"router"}, "a mask that keeps all is none"
    marked = pruner(HEADS.but("tied"), make=[3.0, 1.0, 2.0])
    assert marked.masks(candidate(make=0.5)).kept == {}


def test_groups_that_share_a_reader_both_remove_its_columns() -> None:
    left = ChannelGroup(
        "make", "neurons", 6, 1, (member("read", "in", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),)
    )
    right = ChannelGroup("router", "neurons", 2, 1, (member("read", "in", [5, 11], [0, 1]),))
    scores = {"make": [1.0, 2, 3, 4, 5, 6], "router": [1.0, 2.0]}
    masks = pruner(left, right, **scores).masks(candidate(make=0.5, router=0.5))
    assert masks.of("read", "in").tolist() == [False] * 3 + [True] * 2 + [False] + [True] * 6


def test_masks_are_made_once_for_each_choice() -> None:
    chosen = pruner(HEADS, make=[3.0, 1.0, 2.0])
    first = chosen.masks(candidate(make=0.4))
    again = Candidate.of({"make": ModuleConfig(4, pruning_ratio=0.4, importance="l1")})
    assert chosen.masks(again) is first, "bits play no part"
    assert chosen.masks(candidate(make=0.7)) is not first


def test_scores_are_computed_once_per_group_and_criterion() -> None:
    evidence = Evidence(Model())
    chosen = Pruner(evidence, ModuleMap((), (HEADS,), (), 1, 1))
    found = chosen.scores(HEADS, "l2")
    assert chosen.scores(HEADS, "l2") is found
    assert Pruner(evidence, chosen.module_map).scores(HEADS, "l2") is found
    assert set(evidence.scores) == {("make", "l2")}


def test_masks_know_no_other_sides() -> None:
    masks = Masks({("a", "out"): np.array([True, False])})
    assert masks.of("a", "in") is None
    assert masks.of("b", "out") is None
    assert not masks.dropped("a")


@pytest.mark.parametrize(("threshold", "share"), [(0.0, 0.0), (2.0, 0.25), (2.5, 0.5), (9.0, 1.0)])
def test_the_share_below_a_threshold_leaves_out_what_equals_it(
    threshold: float, share: float
) -> None:
    assert ratio_below(np.array([1.0, 2.0, 3.0, 4.0]), threshold) == share


def test_groups_without_any_score_have_no_ratio() -> None:
    found = global_ratios({"dead": np.zeros(4), "live": np.array([1.0, 3.0])}, 0.5)
    assert found["live"] == 0.0
    assert found["dead"] <= 0.75
    assert torch.isfinite(torch.tensor(list(found.values()))).all()
