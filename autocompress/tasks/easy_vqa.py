"""Visual question answering on easy-VQA with the shipped weights: a small multimodal task that needs no download."""

from __future__ import annotations

from importlib.resources import files

import torch
from safetensors.torch import load
from torch import Tensor

from autocompress.task.task import Task
from autocompress.tasks.easy_vqa_data import QUESTION_LENGTH, Loader, load_easy_vqa
from autocompress.tasks.easy_vqa_model import EasyVqaModel


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of right answers; outputs (n, answers) logits, targets (n,)."""
    return float((outputs.argmax(-1) == targets).float().mean())


def easy_vqa(batch_size: int = 64, validation_images: int = 200) -> Task:
    """The task: 192-wide vision, text and fusion transformer on 64 x 64 images; latency is that of one question."""
    data = load_easy_vqa(int(validation_images))
    model = EasyVqaModel(len(data.vocabulary), len(data.answers), QUESTION_LENGTH)
    weights = load(files("autocompress.tasks").joinpath("data/easy_vqa.safetensors").read_bytes())
    model.load_state_dict(weights)
    example, _ = data.validation.batch(torch.tensor([0]))
    return Task(
        "easy_vqa",
        model.eval(),
        example,
        Loader(data.validation, int(batch_size), seed=0),
        accuracy,
        train=Loader(data.train, 16, seed=1),
        calibration=Loader(data.train, int(batch_size), seed=2),
        test=Loader(data.test, int(batch_size)),
        towers={
            name: [f"{name}*"] for name in ("vision", "projector", "language", "fusion", "head")
        },
    )
