"""Corruptions disturb what they are for, the same way each time; fragile points are named."""

from __future__ import annotations

import pytest
import torch

from autocompress.measure.robustness import (
    SAMPLES,
    Corrupted,
    corruptions,
    corruptions_of,
    fragile_under,
)

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(32, 3, 8, 8, generator=GENERATOR)
TOKENS = torch.randint(1, 50, (32, 40), generator=GENERATOR)
MASK = torch.ones(32, 40, dtype=torch.int64)
BATCHES = [({"image": IMAGES, "ids": TOKENS, "mask": MASK}, torch.zeros(32))]


def only(name: str) -> dict[str, torch.Tensor]:
    ((inputs, target),) = list(Corrupted(BATCHES, name))
    assert target is BATCHES[0][1]
    return inputs


def test_noise_changes_signals_by_a_share_of_their_spread() -> None:
    found = only("gaussian_noise")
    assert torch.equal(found["ids"], TOKENS)
    noise = found["image"] - IMAGES
    assert abs(float(noise.std() / IMAGES.std()) - 0.3) < 0.02
    assert abs(float(noise.mean())) < 0.01


def test_a_number_alone_is_no_signal() -> None:
    for number in (torch.tensor(3.0), torch.tensor([[3.0]])):
        batches = [((number, IMAGES), None)]
        for corrupted in corruptions_of(batches).values():
            (((kept, changed), _),) = list(corrupted)
            assert torch.equal(kept, number)
            assert bool(changed.isfinite().all())
        assert corruptions([(number, None)]) == []


def test_contrast_keeps_each_samples_mean() -> None:
    found = only("contrast")["image"]
    torch.testing.assert_close(found.flatten(1).mean(1), IMAGES.flatten(1).mean(1))
    torch.testing.assert_close(found.flatten(1).std(1), 0.4 * IMAGES.flatten(1).std(1))


def test_some_tokens_are_dropped_and_masks_are_not() -> None:
    found = only("token_dropout")
    assert torch.equal(found["mask"], MASK)
    assert torch.equal(found["image"], IMAGES)
    gone = found["ids"] != TOKENS
    assert not found["ids"][gone].any()
    assert 0.07 < float(gone.float().mean()) < 0.13


def test_special_tokens_and_other_integers_are_not_dropped() -> None:
    inputs = {"input_ids": TOKENS, "attention_mask": MASK, "position_ids": TOKENS + 1}
    special = (1, 2, 3)
    corrupted = corruptions_of([(inputs, None)], special=special)["accuracy_token_dropout"]
    ((found, _),) = list(corrupted)
    assert list(found) == list(inputs)
    assert torch.equal(found["position_ids"], inputs["position_ids"])
    kept = torch.isin(TOKENS, torch.tensor(special))
    assert bool(kept.any())
    assert torch.equal(found["input_ids"][kept], TOKENS[kept])
    gone = found["input_ids"][~kept] != TOKENS[~kept]
    assert 0.05 < float(gone.float().mean()) < 0.15
    assert bool((found["input_ids"][~kept][gone] == 0).all())


def test_integers_that_are_no_tokens_are_left_alone() -> None:
    places = torch.arange(40).repeat(32, 1)
    for inputs in (
        {"tokens": MASK, "image_grid_thw": TOKENS, "position_ids": TOKENS, "labels": TOKENS},
        {"steps": places},
        places,
    ):
        assert not corruptions_of([(inputs, None)])
    inputs = {"words": TOKENS, "bbox": TOKENS}
    ((found, _),) = list(corruptions_of([(inputs, None)])["accuracy_token_dropout"])
    assert torch.equal(found["bbox"], TOKENS)
    assert not torch.equal(found["words"], TOKENS)


def test_blur_takes_the_mean_of_a_square() -> None:
    found = only("blur")["image"]
    torch.testing.assert_close(found[:, :, 3, 4], IMAGES[:, :, 2:5, 3:6].mean((2, 3)))
    corner = IMAGES[:, :, :2, :2] * torch.tensor([[4.0, 2.0], [2.0, 1.0]]) / 9
    torch.testing.assert_close(found[:, :, 0, 0], corner.sum((2, 3)))


def test_gain_makes_sounds_quiet() -> None:
    waves = {"input_values": IMAGES[:, 0, 0], "lengths": TOKENS}
    ((found, _),) = list(Corrupted([(waves, None)], "gain"))
    assert torch.equal(found["input_values"], waves["input_values"] / 4)
    assert torch.equal(found["lengths"], TOKENS)


def test_every_pass_is_the_same_and_only_what_applies_is_measured() -> None:
    corrupted = Corrupted(BATCHES, "gaussian_noise")
    assert torch.equal(next(iter(corrupted))[0]["image"], next(iter(corrupted))[0]["image"])
    of_images = {"accuracy_gaussian_noise", "accuracy_contrast", "accuracy_blur"}
    assert set(corruptions_of(BATCHES)) == {*of_images, "accuracy_token_dropout"}
    assert set(corruptions_of([(IMAGES, None)])) == of_images
    sounds = corruptions_of([({"input_values": IMAGES[:, 0, 0]}, None)])
    assert set(sounds) == {"accuracy_gaussian_noise", "accuracy_contrast", "accuracy_gain"}
    assert set(corruptions_of([((TOKENS, MASK), None)])) == {"accuracy_token_dropout"}


def test_samples_are_read_once_for_all_corruptions() -> None:
    read = []

    class Counting:
        def __iter__(self):
            read.append(1)
            return iter(BATCHES)

        def __len__(self) -> int:
            return len(BATCHES)

    names = corruptions(Counting())
    assert len(read) == 1, "only the first batch is looked at"
    split = corruptions_of(Counting())
    assert list(split) == [f"accuracy_{name}" for name in names]
    assert len(read) == 3
    for _ in range(2):
        assert all(list(one) for one in split.values())
    assert len(read) == 3


@pytest.mark.parametrize("has_length", [True, False])
def test_a_part_of_a_split_is_also_run_as_it_is(has_length: bool) -> None:
    batches = [(torch.rand(SAMPLES // 2, 3), i) for i in range(3)]

    class Stream:
        def __iter__(self):
            return iter(batches)

    whole = batches[:2]
    assert "accuracy_undisturbed" not in corruptions_of(whole)
    split = corruptions_of(batches if has_length else Stream())
    assert [target for _, target in split["accuracy_undisturbed"]] == [0, 1]
    assert torch.equal(next(iter(split["accuracy_undisturbed"]))[0], batches[0][0])
    assert corruptions_of([(TOKENS[:, 0], 0)] * SAMPLES) == {}


def test_clean_inputs_are_the_samples_that_were_disturbed() -> None:
    """The float model and the point are equal on the first class, and not on the others."""
    base = {"accuracy_undisturbed": 0.95, "accuracy_contrast": 0.9}
    point = {"accuracy_undisturbed": 0.95, "accuracy_contrast": 0.8}
    assert fragile_under(base, point, accuracy=0.9, clean_loss=0.2) == ("contrast",)
    weak = {"accuracy_undisturbed": 0.85, "accuracy_contrast": 0.8}
    assert fragile_under(base, weak, accuracy=0.9, clean_loss=0.0) == ()
    assert fragile_under(base, {"accuracy_contrast": 0.8}, 0.9, clean_loss=0.2) == ()


def test_what_loses_more_than_on_clean_inputs_is_fragile() -> None:
    base = {"accuracy_gaussian_noise": 0.90, "accuracy_contrast": 0.80, "f1": 0.9}
    point = {"accuracy_gaussian_noise": 0.85, "accuracy_contrast": 0.79, "f1": 0.1}
    assert fragile_under(base, point, accuracy=1.0, clean_loss=0.0) == ("gaussian_noise",)
    assert fragile_under(base, point, accuracy=1.0, clean_loss=0.04) == (), (
        "it lost as much on clean inputs"
    )
    assert fragile_under(base, point, accuracy=1.0, clean_loss=-0.04) == ("gaussian_noise",)
    # Minus a perplexity, which is 55 on clean inputs and 250 on disturbed ones: 2 % more on both.
    key = "accuracy_contrast"
    near, far = {key: -255.0}, {key: -265.0}
    for disturbed, names in ((near, ()), (far, ("contrast",))):
        assert fragile_under({key: -250.0}, disturbed, -55.0, clean_loss=1.1) == names
    # A metric in other units, such as minus a perplexity of 20.
    assert (
        fragile_under(
            {"accuracy_contrast": -22.0},
            {"accuracy_contrast": -22.3},
            accuracy=-20.0,
            clean_loss=0.0,
        )
        == ()
    )
