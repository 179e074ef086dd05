"""Make image classifiers as tasks: a ResNet-20 and a MobileNetV2, trained here.

`resnet` and `mobilenet` take the path of a NumPy file with the uint8 arrays train_images,
validation_images and test_images (n, 32, 32, 3), and labels 0 to 9 (train_labels, ...), such as a
part of CIFAR-10. The first call trains the network and keeps the weights in
AUTOCOMPRESS_BENCH_CACHE (default: ~/.cache/autocompress-benchmarks).

    autocompress search benchmarks/image_task.py:resnet --task-arg data=images.npz
    python -m benchmarks.image_task --data images.npz      # train now, and print accuracies
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autocompress import Task
from benchmarks.kept import kept_folder
from benchmarks.networks import MobileNetV2, ResNet20

BATCH, DECAY, WARM_UP = 64, 5e-4, 0.2
SPLITS = ("train", "validation", "test")
VERSION = 1  # of the training: names the file of the weights


@dataclass(frozen=True)
class Recipe:
    """Hold how a network is made and trained.

    Attributes:
        make: makes it with random weights.
        rate: largest learning rate.
        epochs: of training.
    """

    make: Callable[[], nn.Module]
    rate: float
    epochs: int


RECIPES = {
    "resnet": Recipe(ResNet20, 0.2, 14),
    "mobilenet": Recipe(lambda: MobileNetV2(0.5, (1, 2, 1, 2, 1, 1, 2, 1)), 0.1, 14),
}


@dataclass(frozen=True)
class Images:
    """Yield images and labels in batches; they are floats only while they are in use.

    Attributes:
        pixels: (n, 3, 32, 32) uint8.
        labels: (n,) classes.
        mean: (3, 1, 1) of the training images, in pixels.
        deviation: (3, 1, 1) likewise.
    """

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    deviation: Tensor

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.labels) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, labels) in a fixed order."""
        yield from self.ordered(torch.arange(len(self.labels)))

    def ordered(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, labels) in the order of some numbers of images."""
        for part in order.split(BATCH):
            yield (self.pixels[part] - self.mean) / self.deviation, self.labels[part]


def read_images(data: str | Path) -> dict[str, Images]:
    """Return the images of each split."""
    images = {}
    with np.load(data) as arrays:
        pixels = torch.from_numpy(arrays["train_images"]).float()
        mean, deviation = (of(pixels, (0, 1, 2))[:, None, None] for of in (torch.mean, torch.std))
        for split in SPLITS:
            pixels = torch.from_numpy(arrays[f"{split}_images"]).permute(0, 3, 1, 2).contiguous()
            labels = torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64))
            images[split] = Images(pixels, labels, mean, deviation)
    return images


def augment(images: Tensor) -> Tensor:
    """Return images of which half are mirrored, all moved by up to 4 pixels."""
    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    top, left = torch.randint(0, 9, (2,)).tolist()
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    return padded[:, :, top : top + images.shape[2], left : left + images.shape[3]]


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of right answers."""
    return float((outputs.argmax(-1) == targets).float().mean())


def half_is_faster(model: nn.Module, inputs: Tensor, steps: int = 3) -> bool:
    """Return True if steps of training take less time in bfloat16 than in float32."""
    seconds = []
    for enabled in (False, True):
        times = []
        for _ in range(steps):
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                total = model(inputs).float().sum()
            total.backward()
            times.append(time.perf_counter() - started)
        seconds.append(min(times))
    model.zero_grad()
    return seconds[1] < 0.8 * seconds[0]


def cycle(share: float) -> float:
    """Return the share of the largest learning rate: linear warm-up, then half a cosine wave."""
    if share < WARM_UP:
        return max(share, 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def train(
    model: nn.Module, images: Images, rate: float, share_of: Callable[[int], float]
) -> nn.Module:
    """Train a network with SGD and one cycle of the learning rate, in place.

    Args:
        model: the network.
        images: of the training split.
        rate: largest learning rate.
        share_of: says for a number of steps which share of the training is done.

    Returns:
        The network, in evaluation mode.
    """
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(
        model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=DECAY
    )
    started, step = time.monotonic(), 0
    model.train().to(memory_format=torch.channels_last)
    half = half_is_faster(copy.deepcopy(model), next(iter(images))[0])
    while share_of(step) < 1:
        for inputs, labels in images.ordered(torch.randperm(len(images.labels))):
            share = share_of(step)
            if share >= 1:
                break
            optimizer.param_groups[0]["lr"] = rate * cycle(share)
            view = augment(inputs).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                outputs = model(view)
            loss = nn.functional.cross_entropy(outputs.float(), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        spent = time.monotonic() - started
        print(f"training: step {step}, loss {loss:.3f}, {spent:.0f} s", flush=True)
    return model.eval().to(memory_format=torch.contiguous_format)


def trained(name: str, data: str | Path, images: Images) -> nn.Module:
    """Return a trained network, from its file where there is one."""
    torch.manual_seed(0)
    recipe = RECIPES[name]
    model = recipe.make()
    digest = hashlib.sha256(Path(data).read_bytes()).hexdigest()[:8]
    path = kept_folder() / f"{name}_{digest}_{VERSION}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    steps = recipe.epochs * len(images)
    train(model, images, recipe.rate, lambda step: step / steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_file(model.state_dict(), unfinished)
    unfinished.replace(path)
    return model


def task(name: str, data: str | Path) -> Task:
    """Return the task of a trained network; latency is measured for one image.

    Args:
        name: of the network: "resnet" or "mobilenet".
        data: path of the images.
    """
    images = read_images(data)
    return Task(
        name,
        trained(name, data, images["train"]),
        next(iter(images["test"]))[0][:1],
        images["validation"],
        accuracy,
        train=images["train"],
        test=images["test"],
        augment=augment,
    )


def resnet(data: str) -> Task:
    """Return the task of a ResNet-20."""
    return task("resnet", data)


def mobilenet(data: str) -> Task:
    """Return the task of a MobileNetV2 of half the width, with strides for small images."""
    return task("mobilenet", data)


def main() -> None:
    """Train what is not trained yet, and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", required=True, help="NumPy file with the images")
    parser.add_argument("--only", choices=list(RECIPES), help="one network")
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else RECIPES:
        network = task(name, arguments.data)
        count = sum(parameter.numel() for parameter in network.model.parameters())
        for split, batches in (("validation", network.validation), ("test", network.test)):
            with torch.no_grad():
                outputs = torch.cat([network.model(inputs) for inputs, _ in batches or ()])
            labels = torch.cat([labels for _, labels in batches or ()])
            print(f"{name}, {count} weights: {split} accuracy {accuracy(outputs, labels):.4f}")


if __name__ == "__main__":
    main()
