"""Check accuracy, the steps of training, and that the saved weights are those that were tested."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.tasks import train_easy_vqa
from autocompress.tasks.easy_vqa_data import QUESTION_LENGTH, EasyVqa, Split
from autocompress.tasks.train_easy_vqa import accuracy, main, new_model, train

WORDS = ("<pad>", "is", "it", "red")
ANSWERS = ("no", "red", "yes")


def split(images: int, questions: int) -> Split:
    generator = torch.Generator().manual_seed(images)
    return Split(
        torch.randint(0, 256, (images, 3, 64, 64), dtype=torch.uint8, generator=generator),
        torch.randint(0, len(WORDS), (questions, QUESTION_LENGTH), generator=generator),
        torch.arange(questions) % len(ANSWERS),
        torch.arange(questions) % images,
    )


DATA = EasyVqa(split(3, 7), split(2, 4), split(2, 5), WORDS, ANSWERS)


class Answers(nn.Module):
    """Answer with the first word of the question."""

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        return nn.functional.one_hot(question[:, 0], 4).float()


def test_accuracy_is_the_share_of_right_answers() -> None:
    model = Answers().train()
    tokens = torch.zeros(5, QUESTION_LENGTH, dtype=torch.int64)
    tokens[:, 0] = torch.tensor([0, 1, 2, 0, 0])
    found = accuracy(model, replace(DATA.test, tokens=tokens))  # answers 0 1 2 0 1
    assert found == pytest.approx(4 / 5)
    assert not model.training


def test_a_new_model_fits_the_data() -> None:
    model = new_model(DATA)
    assert model.language.embedding.num_embeddings == len(WORDS)
    assert model.language.position.shape[0] == QUESTION_LENGTH
    assert model.head[-1].out_features == len(ANSWERS)


def test_training_depends_on_the_seed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (train(DATA, epochs=1, seed=3) for _ in range(2))
    torch.manual_seed(3)
    untrained = new_model(DATA)
    weights = [model.head[0].weight for model in (first, second, untrained)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not first.training
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch  1/1  loss ")
    expected = f"validation accuracy {accuracy(first, DATA.validation):.4f}"
    assert expected in lines[0]


def test_the_weights_that_are_saved_are_tested_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def trained(data: EasyVqa, epochs: int, seed: int) -> nn.Module:
        calls.append((epochs, seed))
        torch.manual_seed(0)
        return new_model(data).eval()

    monkeypatch.setattr(train_easy_vqa, "load_easy_vqa", lambda: DATA)
    monkeypatch.setattr(train_easy_vqa, "train", trained)
    threads = str(torch.get_num_threads())
    out = tmp_path / "weights.safetensors"
    arguments = ["--out", str(out), "--epochs", "2", "--seed", "5", "--threads", threads]
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    main()
    assert calls == [(2, 5)]
    torch.manual_seed(0)
    model = new_model(DATA).eval()
    stored = load_file(out)
    for name, value in model.state_dict().items():
        expected = value.half() if value.is_floating_point() else value
        assert torch.equal(stored[name], expected)
    model.load_state_dict(stored)
    assert capsys.readouterr().out.strip() == (
        f"test accuracy of the saved weights {accuracy(model, DATA.test):.4f}"
    )
