"""Train the built-in model: `python -m autocompress.tasks.train_easy_vqa --out FILE`."""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from autocompress.tasks.easy_vqa_data import QUESTION_LENGTH, EasyVqa, Loader, Split, load_easy_vqa
from autocompress.tasks.easy_vqa_model import EasyVqaModel

IMAGES_PER_STEP = 16
QUESTIONS_PER_IMAGE = 4


def new_model(data: EasyVqa) -> EasyVqaModel:
    """Return an untrained model.

    Args:
        data: gives the sizes of vocabulary and answers.

    Returns:
        The model with random weights.
    """
    return EasyVqaModel(len(data.vocabulary), len(data.answers), QUESTION_LENGTH)


def _steps_of_epoch(split: Split, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Return for each step its images and its question rows.

    Each image has QUESTIONS_PER_IMAGE consecutive rows.
    """
    by_image = torch.argsort(split.image_index, stable=True)
    counts = torch.bincount(split.image_index, minlength=len(split.images))
    starts = counts.cumsum(0) - counts
    order = torch.randperm(len(split.images), generator=generator)
    steps = []
    for images in torch.split(order[counts[order] > 0], IMAGES_PER_STEP):
        draw = torch.rand(len(images), QUESTIONS_PER_IMAGE, generator=generator)
        rows = by_image[starts[images, None] + (draw * counts[images, None]).long()]
        steps.append((images, rows.flatten()))
    return steps


def _image_answers(split: Split, yes_no: tuple[int, int]) -> Tensor:
    """Return (images, answers) 1 where a question about the image has that answer.

    Yes and no are left out, since they do not describe the image.
    """
    present = torch.zeros(len(split.images), int(split.answers.max()) + 1)
    present[split.image_index, split.answers] = 1
    present[:, list(yes_no)] = 0
    return present


@torch.inference_mode()
def accuracy(model: EasyVqaModel, split: Split) -> float:
    """Return the share of questions answered right.

    Args:
        model: it is put into eval mode.
        split: the questions.

    Returns:
        Between 0 and 1.
    """
    model.eval()
    right = 0
    for inputs, answers in Loader(split, 128):
        right += int((model(**inputs).argmax(1) == answers).sum())
    return right / len(split.answers)


def train(data: EasyVqa, epochs: int, seed: int, learning_rate: float = 5e-4) -> EasyVqaModel:
    """Train a model by AdamW with a one-cycle schedule.

    Each image is encoded once per step and asked several questions. A further head, which is thrown
    away afterwards, learns to name the image's colour and shape from the encoded patches. Without
    it the image side starts to learn only after many epochs, since the question alone explains two
    answers of three.

    Args:
        data: the splits.
        epochs: passes over the training images.
        seed: of weights and order.
        learning_rate: highest rate of the schedule.

    Returns:
        The model in eval mode.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = new_model(data)
    named = _image_answers(data.train, (data.answers.index("yes"), data.answers.index("no")))
    naming = torch.nn.Linear(model.fusion.visual.in_features, named.shape[1])
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *naming.parameters()], lr=learning_rate, weight_decay=0.05
    )
    per_epoch = len(_steps_of_epoch(data.train, torch.Generator().manual_seed(seed)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * per_epoch, pct_start=0.15
    )
    started = time.monotonic()
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for images, rows in _steps_of_epoch(data.train, generator):
            patches = model.encode_image(data.train.images[images].float() / 255)
            present = named[images]
            # Only present answers are rewarded: others are unknown, not absent.
            naming_loss = -(naming(patches.amax(1)).log_softmax(1) * present).sum(1).mean()
            patches = patches.repeat_interleave(QUESTIONS_PER_IMAGE, 0)
            loss = 0.3 * naming_loss + F.cross_entropy(
                model.answer(patches, data.train.tokens[rows]), data.train.answers[rows]
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        score, seconds = accuracy(model, data.validation), time.monotonic() - started
        print(
            f"epoch {epoch + 1:2d}/{epochs}  loss {total / per_epoch:.4f}  "
            f"validation accuracy {score:.4f}  {seconds:.0f} s",
            flush=True,
        )
    return model.eval()


def main() -> None:
    """Train a model, test it once, and save its weights in float16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="where the float16 safetensors file goes")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_easy_vqa()
    model = train(data, arguments.epochs, arguments.seed)
    half = {}
    for name, tensor in model.state_dict().items():
        half[name] = tensor.half() if tensor.is_floating_point() else tensor
    model.load_state_dict(half)
    print(f"test accuracy of the saved weights {accuracy(model, data.test):.4f}")
    save_file(half, arguments.out)


if __name__ == "__main__":
    main()
