"""Name the models of `benchmarks.peers`, how each is loaded, and how it is searched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress import Task, load_task
from benchmarks import smollm
from benchmarks.anytime import DEMO, HERE
from benchmarks.output import require


@dataclass(frozen=True)
class Loaded:
    """Hold a model that is ready.

    Attributes:
        task: the model and its data.
        spec: of the task, as `autocompress search` takes it.
        options: further options of the search.
    """

    task: Task
    spec: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """Say how a model is loaded.

    Attributes:
        load: (folder for its data, file of images or None) -> the model.
        rate: largest learning rate of fine-tuning after pruning.
        is_transformer: told to the tools that ask.
    """

    load: Callable[[Path, Path | None], Loaded]
    rate: float
    is_transformer: bool = False


def of_spec(spec: str, arguments: Mapping[str, Any] | None = None) -> Loaded:
    """Load the task of a specification."""
    given = dict(arguments or {})
    options: list[str] = []
    for name, value in given.items():
        options += ["--task-arg", f"{name}={value}"]
    return Loaded(load_task(spec, **given), spec, tuple(options))


def built_in(folder: Path, images: Path | None) -> Loaded:
    """Load the built-in task."""
    return of_spec(DEMO)


def resnet(folder: Path, images: Path | None) -> Loaded:
    """Load the ResNet-20, which is trained at the first call."""
    if images is None:
        raise FileNotFoundError("resnet needs --images FILE.npz (docs/benchmarks/convolutional.md)")
    return of_spec(f"{HERE / 'image_task.py'}:resnet", {"data": str(images.resolve())})


def encoder(folder: Path, images: Path | None) -> Loaded:
    """Load the BERT-like encoder, which is trained at the first call."""
    return of_spec(f"{HERE / 'encoder_task.py'}:encoder")


def language(folder: Path, images: Path | None) -> Loaded:
    """Load SmolLM2-135M on plays."""
    splits, model = folder / "splits", smollm.model_folder()
    if not splits.exists():
        smollm.write_splits(smollm.TEXT, splits)
    named = {path.stem: str(path) for path in sorted(splits.glob("*.txt"))}
    options = ["--max-length", str(smollm.LENGTH)]
    for name, path in named.items():
        options += [f"--{name}", path]
    task = load_task(str(model), **named, max_length=smollm.LENGTH)
    return Loaded(task, str(model), tuple(options))


def efficientnet(folder: Path, images: Path | None) -> Loaded:
    """Load EfficientNet-Lite0; accuracy is agreement with it."""
    require("efficientnet_lite_pytorch", "benchmarks")
    return of_spec(f"{HERE / 'efficientnet.py'}:task")


MODELS = {
    "built_in": Model(built_in, 1e-3),
    "resnet": Model(resnet, 2e-3),
    "encoder": Model(encoder, 3e-4, True),
    "smollm": Model(language, 1e-4, True),
    "efficientnet": Model(efficientnet, 5e-4),
}
