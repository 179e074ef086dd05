"""Write the models of a latency table, and one script that measures them without PyTorch.

Behind `autocompress export-probes`, for another device.
"""

from __future__ import annotations

import tempfile
import zipapp
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import set_external_data

import autocompress.targets.device
from autocompress.errors import TargetError
from autocompress.measure.size import FILE_BYTES
from autocompress.results.files import write_atomic, write_json
from autocompress.targets.device.job import FEED_FILE, PROBES_FILE
from autocompress.targets.device.litert.nodes import profile_digest
from autocompress.targets.device.tuning import Source
from autocompress.targets.latency_model.plan import Plan, Subject
from autocompress.targets.latency_model.profile import job_of
from autocompress.targets.target import Target

SCRIPT_FILE = "measure.pyz"
NOISE_FILES = {"float": "float32.bin", "half": "float16.bin", "bytes": "bytes.bin"}
NOISE_OF = {
    TensorProto.FLOAT: "float",
    TensorProto.FLOAT16: "half",
    TensorProto.INT8: "bytes",
    TensorProto.UINT8: "bytes",
    TensorProto.UINT4: "bytes",
}
SPREAD = 0.04  # of the noise: activations neither explode nor vanish in models of usual widths
ALIGNED = 4096  # offsets that runtimes can map into memory
LARGE = 4096  # bytes from which a weight is read from the shared noise
MAIN = """import sys
from pathlib import Path
from device.job import main
main(Path(sys.argv[0]).resolve().parent)
"""


def export_probes(subject: Subject, target: Target, folder: Path, seed: int = 0) -> int:
    """Write models, inputs and the script into a folder.

    The values of weights play no part in latency. So all ONNX models read their large weights from
    the same few files of noise. Each .tflite file holds its own weights: of noise, but for the
    float model.

    Args:
        subject: the model, and the forms of a space.
        target: the runtime of the device.
        folder: made if it is not there.
        seed: of the choice of models and of the noise.

    Returns:
        The number of models.

    Raises:
        RunFolderError: a file cannot be written.
        TargetError: the target runs .tflite files on a device whose latency is computed, or the
            float model is too large.
    """
    if target.litert and target.figures is not None:
        raise TargetError(
            f"target {target.name}: its latency is computed from figures of the device, not "
            "measured; nearest: --target litert-cpu"
        )
    plan = Plan.of(subject, seed)
    job = job_of(subject, target, plan, seed)
    needed = dict.fromkeys(NOISE_FILES, 0)
    names: dict[str, list[str]] = {}
    for role, sources in (
        ("baseline", [job.baseline]),
        ("product", [job.product]),
        ("profiled", job.profiled),
        ("timed", job.timed),
    ):
        if target.litert:
            names[role] = _write_flat(folder, role, sources)
        else:
            names[role] = _write_models(folder, role, sources, needed)
    if not target.litert:
        _write_noise(folder, needed, np.random.default_rng(seed))
    np.savez(
        folder / FEED_FILE,
        allow_pickle=False,
        **{name: np.asarray(array) for name, array in subject.feed.items()},
    )
    flat = names["profiled"] if target.litert else []
    digests = [profile_digest(str(folder / name)) for name in flat]
    data = {
        "baseline": names["baseline"][0],
        "product": names["product"][0],
        "profiled": names["profiled"],
        "timed": names["timed"],
        "tuned": [names["baseline"][0], *names["profiled"][1:2]],
        "settings": asdict(job.settings),
        "threads": list(job.threads),
        "budget_s": job.budget_s,
        "seed": seed,
        "plan": {
            **plan.to_json(),
            "target": target.name,
            "model": subject.layout.digest,
            "multiples": dict(subject.layout.multiples),
            "integer_forms": subject.layout.integer_forms,
            "files": digests,
        },
    }
    write_json(folder / PROBES_FILE, data)
    _write_script(folder / SCRIPT_FILE)
    return sum(map(len, names.values()))


def _write_models(
    folder: Path, role: str, sources: Sequence[Source], needed: dict[str, int]
) -> list[str]:
    """Write models and return their file names.

    `needed` grows to the bytes of noise that the largest model reads. Within a model each weight
    reads a part of its own: a runtime would keep equal weights once, and caches would hold them.
    """
    written = []
    for i, source in enumerate(sources):
        proto = _read(source())
        read = dict.fromkeys(NOISE_FILES, 0)
        for tensor in proto.graph.initializer:
            # Only weights of two or more dimensions become noise: variances stay what they are.
            noise = NOISE_OF.get(tensor.data_type)
            size = len(tensor.raw_data)
            if (
                noise is not None
                and len(tensor.dims) >= 2
                and size >= LARGE
                and prod(tensor.dims) > 0
            ):
                set_external_data(tensor, NOISE_FILES[noise], read[noise], size)
                tensor.ClearField("raw_data")
                read[noise] += -(-size // ALIGNED) * ALIGNED
        needed.update({noise: max(needed[noise], size) for noise, size in read.items()})
        written.append(f"{role}{i:03d}.onnx")
        write_atomic(folder / written[-1], proto.SerializeToString())
    return written


def _read(model: bytes | str) -> ModelProto:
    """Return a graph with its weights, from its content or from the path of its files."""
    if isinstance(model, str):  # graphs with towers have their weights beside them
        return onnx.load(model)
    if len(model) > FILE_BYTES:
        raise TargetError(
            f"probes: the float model takes {len(model) / 1e9:.1f} GB, and probes have one file "
            "for it, which holds 2 GB; nearest: autocompress profile on the device"
        )
    proto: ModelProto = ModelProto.FromString(model)
    return proto


def _write_flat(folder: Path, role: str, sources: Sequence[Source]) -> list[str]:
    """Write .tflite models and return their file names."""
    written = []
    for i, source in enumerate(sources):
        content = source()
        assert isinstance(content, bytes)
        written.append(f"{role}{i:03d}.tflite")
        write_atomic(folder / written[-1], content)
    return written


def _write_noise(folder: Path, needed: Mapping[str, int], generator: np.random.Generator) -> None:
    """Write the files that weights are read from, each as long as its models need."""
    floats, halves = needed["float"] // 4, needed["half"] // 2
    values = generator.standard_normal(max(floats, halves), dtype=np.float32) * np.float32(SPREAD)
    write_atomic(folder / NOISE_FILES["float"], values[:floats].tobytes())
    write_atomic(folder / NOISE_FILES["half"], values[:halves].astype(np.float16).tobytes())
    write_atomic(folder / NOISE_FILES["bytes"], generator.bytes(needed["bytes"]))


def _write_script(path: Path) -> None:
    """Write the package that measures as one file that Python runs."""
    source = Path(autocompress.targets.device.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "device"
        package.mkdir()
        for file in source.rglob("*.py"):
            place = package / file.relative_to(source)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(file.read_bytes())
        (Path(folder) / "__main__.py").write_text(MAIN)
        zipapp.create_archive(folder, path)
