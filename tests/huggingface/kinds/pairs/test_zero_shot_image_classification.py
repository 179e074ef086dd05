"""Models of pictures and texts: the answers of the pipeline of transformers, and recall."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_folders import SPECIAL, WORDS, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import NotComputableError, TaskError
from autocompress.huggingface.metrics.retrieval import Recall, class_accuracy
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.prepare import prepared
from autocompress.task.calls import score as score_of

images = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 64, **size, **ids}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={"image_size": 16, "patch_size": 4, **size},
        projection_dim=16,
    )
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    place = tmp_path_factory.mktemp("folders") / "clip"
    return save(place, transformers.CLIPModel(config), tokenizer(), processor, spread=6.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    files = []
    for i in range(24):
        pixels = draw.integers(0, 256, 3) + draw.integers(-60, 60, (16, 16, 3))
        files.append(place / f"{i}.png")
        images.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1])
    return files


def score(task: ac.Task) -> tuple[float, dict[str, float]]:
    ready = prepared(task)
    found, _ = evaluate_model(ready, ready.model, ready.validation, torch.device("cpu"))
    return found.accuracy, dict(found.metrics)


def alone(folder: Path, file: Path, caption: str) -> Any:
    """Return both embeddings of one sample by the plain model."""
    from transformers import AutoImageProcessor, CLIPModel

    pixels = AutoImageProcessor.from_pretrained(folder)(
        images=[images.open(file)], return_tensors="pt"
    )
    with torch.no_grad():
        result = CLIPModel.from_pretrained(folder)(
            **pixels, **tokenizer()(caption, return_tensors="pt")
        )
    return result.image_embeds[0], result.text_embeds[0]


def test_classes_by_their_names(folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    names = ["w1 w2", "w3", "w4 w5 w6"]
    classes = [alone(folder, pictures[0], f"This is a photo of {name}.")[1] for name in names]
    rows = []
    for file in pictures:
        image, _ = alone(folder, file, "w1")
        best = int((torch.stack(classes) @ image).argmax())
        rows.append({"image": str(file), "label": names[best]})
    present = {row["label"] for row in rows}
    assert len(present) > 1
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    assert score(ac.from_pretrained(folder, validation=data, test=data, batch_size=5)) == (1.0, {})
    rows[0]["label"] = next(name for name in present if name != rows[0]["label"])
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    accuracy, _ = score(ac.from_pretrained(folder, validation=data, test=data))
    assert accuracy == pytest.approx(23 / 24)


def test_pairs_have_the_embeddings_of_the_plain_model(
    folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    pairs = list(zip(pictures, texts(24, 3, 9), strict=True))
    rows = [{"image": str(file), "caption": caption} for file, caption in pairs]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=5)
    found = {}
    pairs_of = []
    for inputs, target in task.validation:
        pairs_of += target
        with torch.no_grad():
            outputs = task.model(**inputs)["embeddings"]
        for ids, output in zip(inputs["input_ids"], outputs, strict=True):
            found[tokenizer().decode(ids, skip_special_tokens=True)] = output
    assert len(found) == len(pairs)
    for file, caption in pairs:
        expected = torch.stack(alone(folder, file, caption))
        torch.testing.assert_close(found[caption], expected, atol=1e-5, rtol=1e-4)
    accuracy, metrics = score(task)
    outputs = torch.stack(list(found.values()))
    assert len({picture for picture, _ in pairs_of}) == len({text for _, text in pairs_of}) == 24
    assert accuracy == Recall(1)(outputs, pairs_of)
    assert metrics["recall@10"] == Recall(10)(outputs, pairs_of)


OWN = [(0, 0), (1, 1), (2, 2)]  # three pairs that share nothing


def test_recall_counts_both_ways() -> None:
    angles = torch.tensor([[0.0, 0.1], [1.0, 1.3], [1.2, 2.0]])  # of pictures and texts
    outputs = torch.stack([angles.cos(), angles.sin()], -1)
    # Text by picture: 1.0 and 1.2 are both nearest to 1.3. Picture by text: 1.3 is nearest to 1.2.
    assert Recall(1)(outputs, OWN) == pytest.approx((2 + 2) / 6)
    assert Recall(2)(outputs, OWN) == 1.0
    twice = outputs[[0, 0, 1]]  # equal texts of equal pictures are equally near
    assert Recall(1)(twice, [(0, 0), (0, 0), (1, 1)]) == 1.0


def test_wrong_answers_that_are_equally_near_are_misses() -> None:
    """Embeddings that are all equal find nothing, and those that are not finite are told."""
    draw = torch.Generator().manual_seed(0)
    outputs = F.normalize(torch.randn(6, 2, 8, generator=draw), dim=-1)
    own = [(i, i) for i in range(6)]
    for flat in (outputs[:1].expand(6, 2, 8), F.normalize(torch.ones(6, 2, 8), dim=-1)):
        assert [Recall(k)(flat, own) for k in (1, 5, 6)] == [0.0, 0.0, 1.0]
    halved = outputs.clone()
    halved[3:] = halved[:3]  # each wrong answer ties with a right one
    assert Recall(1)(halved, own) == 0.0
    assert Recall(1)(halved, [(i, i % 3) for i in range(6)]) == Recall(1)(outputs[:3], OWN)
    for bad in (float("nan"), float("inf")):
        broken = outputs.clone()
        broken[2, 1, 0] = bad
        assert math.isnan(Recall(1)(broken, own))
    with pytest.raises(NotComputableError, match="metric returned nan on 6 outputs"):
        score_of(Recall(1), torch.full((6, 2, 8), float("nan")), own)


def test_all_captions_of_a_picture_are_right() -> None:
    angles = torch.tensor([[0.0, 0.2], [0.0, 0.1], [1.0, 1.1], [1.0, 0.3]])
    outputs = torch.stack([angles.cos(), angles.sin()], -1)
    pairs = [(0, 0), (0, 1), (1, 2), (1, 3)]
    # Text 1 is nearer to picture 0 than text 0 is, which is no loss. Only text 3 has a nearer
    # picture that is not its own.
    assert Recall(1)(outputs, pairs) == pytest.approx((4 + 3) / 8)
    more = [*pairs, (1, 1)]  # text 1 is of picture 1 too
    outputs = torch.cat([outputs, torch.stack([outputs[2, 0], outputs[1, 1]])[None]])
    assert Recall(1)(outputs, more) == pytest.approx(right_ones(outputs, more))


def right_ones(outputs: torch.Tensor, pairs: list[tuple[int, int]]) -> float:
    """Return recall@1, counted one by one."""
    hits = []
    for i, (picture, text) in enumerate(pairs):
        for side in (0, 1):
            own = outputs[i, 0] @ outputs[i, 1]
            others = []
            for j, (other, caption) in enumerate(pairs):
                asked = (picture, caption) if side == 0 else (other, text)
                if asked not in pairs:
                    others.append(float(outputs[i, side] @ outputs[j, 1 - side]))
            hits.append(all(value < float(own) for value in others))
    return sum(hits) / len(hits)


def test_one_sample_tells_nothing() -> None:
    """A search scores single samples where their mean is the metric, which it is not here."""
    outputs = F.normalize(torch.randn(1, 2, 8), dim=-1)
    assert math.isnan(Recall(1)(outputs, [(0, 0)]))
    assert math.isnan(class_accuracy(outputs, ["cat"]))


def test_pairs_of_equal_captions_and_pictures(
    folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    captions = ["w1 w2", "w3", "w1 w2", "w4"]
    files = [pictures[i] for i in (0, 1, 2, 1)]
    rows = [{"image": str(f), "caption": c} for f, c in zip(files, captions, strict=True)]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=4)
    ((inputs, pairs),) = task.validation
    found = {}
    for ids, pair in zip(inputs["input_ids"], pairs, strict=True):
        found.setdefault(tokenizer().decode(ids, skip_special_tokens=True), set()).add(pair)
    assert {text: len(of_text) for text, of_text in found.items()} == {"w1 w2": 2, "w3": 1, "w4": 1}
    assert len({text for _, text in found["w1 w2"]}) == 1
    assert len({picture for picture, _ in found["w1 w2"]}) == 2
    assert {picture for picture, _ in found["w3"]} == {picture for picture, _ in found["w4"]}
    assert len({picture for picture, _ in pairs}) == 3


def test_captions_or_labels_are_needed(folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"image": str(file)} for file in pictures])
    with pytest.raises(TaskError, match=r"^dev\.jsonl line 1: has no column for label among image"):
        ac.from_pretrained(folder, validation=data, test=data)


def test_captions_of_one_picture_do_not_count_it_several_times() -> None:
    """Three captions of the first picture are three rows: it is one picture all the same."""
    turns = torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.0, 0.2], [1.5, 0.3]])
    outputs = torch.stack([turns.cos(), turns.sin()], 2)  # the last caption is nearer to the first
    pairs = [(0, 0), (0, 1), (0, 2), (1, 3)]
    # By picture the own caption is nearest each time. By caption the last one, at 0.3, has the
    # first picture, at 0, in front of its own one, at 1.5.
    assert Recall(1)(outputs, pairs) == pytest.approx((4 + 3) / 8)
    assert Recall(2)(outputs, pairs) == 1.0, "one wrong picture, not three"
    texts = [(text, picture) for picture, text in pairs]
    assert Recall(1)(outputs.flip(1), texts) == pytest.approx((3 + 4) / 8)
    assert Recall(2)(outputs.flip(1), texts) == 1.0


def test_folders_of_splits_are_no_classes(
    folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    for i, file in enumerate(pictures):
        place = tmp_path / "photos" / ("train" if i % 3 else "validation") / f"w{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    task = ac.from_pretrained(folder, data=tmp_path / "photos", columns={"label": "label"})
    targets = [target for _, batch in task.validation for target in batch]
    assert sorted(targets) == ["w0"] * 4 + ["w1"] * 4


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
WORDS_OF = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("family", ["Blip", "ChineseCLIP", "AltCLIP", "CLIPSeg", "MetaClip2"])
def test_families_with_other_names_of_the_table_of_tokens(
    family: str, pictures: list[Path], tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    more = {"Blip": {"encoder_hidden_size": 32}, "AltCLIP": {"project_dim": 16}}.get(family, {})
    config = getattr(transformers, f"{family}Config")(
        text_config={**SIZES, **WORDS_OF, **more},
        vision_config={"image_size": 16, "patch_size": 4, **SIZES},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config).eval()
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    folder = save(tmp_path / "model", model, tokenizer(), processor, spread=6.0)
    captions = texts(8, 3, 9)
    rows = [{"image": str(f), "caption": c} for f, c in zip(pictures, captions, strict=False)]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=8)
    inputs, _ = next(iter(task.validation))
    with torch.no_grad():
        found = {
            tokenizer().decode(ids, skip_special_tokens=True): pair
            for ids, pair in zip(
                inputs["input_ids"], task.model(**inputs)["embeddings"], strict=True
            )
        }
    read = AutoImageProcessor.from_pretrained(folder)
    for file, caption in zip(pictures, captions, strict=False):
        pixels = read(images=[images.open(file)], return_tensors="pt")
        words = tokenizer()(caption, return_tensors="pt")
        with torch.no_grad():
            result = model(**pixels, **words)
        expected = torch.stack([result.image_embeds[0], result.text_embeds[0]])
        torch.testing.assert_close(found[caption], expected, atol=1e-5, rtol=1e-4)
