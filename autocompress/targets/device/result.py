"""Hold the results of a job, and write and read them as JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .integer_products import products_here
from .profiler import NodeTime
from .sessions import DEFAULT, SessionSettings

FORMAT = 2
# Lines of /proc/cpuinfo that tell processors apart.
PROCESSOR_LINES = (
    *("model name", "cpu family", "model\t", "CPU part"),
    *("CPU implementer", "CPU variant"),  # of Arm: parts of two makers share numbers
)
# Lines that say nothing of the model, where a system has none of those above.
OTHER_LINES = ("processor", "hart", "bogomips", "BogoMIPS", "cpu MHz", "clock", "timebase")
# Lines that list what a processor can do. Updates of the kernel and of microcode change them, so
# only the instructions count that products are computed with and that Linux names since 2021.
INSTRUCTION_LINES = ("flags", "Features")
INSTRUCTIONS = {
    *("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni", "amx_int8", "amx_bf16"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16"),
}


@dataclass(frozen=True)
class JobResult:
    """Hold the results of a job.

    Attributes:
        versions: of runtime and machine.
        settings: as tuned.
        tuning: one row per tried setting.
        baseline_ms: latency of the baseline.
        ratios: to the baseline, of the profiled models and then of the timed ones.
        intervals: 95 % interval of each ratio.
        profiles: operators of each profiled model.
        warning: for the user if the machine was busy, else "".
        product_rate: multiply-adds per microsecond of a large float product.
        plan: candidates of exported probes.
        left_out: number of unmeasured models for lack of time, the last ones of each kind.
        model_s: seconds that measuring one model took on average; 0 if not known.
    """

    versions: Mapping[str, str]
    settings: SessionSettings
    tuning: Sequence[Mapping[str, Any]]
    baseline_ms: float
    ratios: Sequence[float]
    intervals: Sequence[tuple[float, float]]
    profiles: Sequence[Sequence[NodeTime]]
    warning: str
    product_rate: float
    plan: Mapping[str, Any] = field(default_factory=dict)
    left_out: int = 0
    model_s: float = 0.0


def versions(settings: SessionSettings = DEFAULT) -> dict[str, str]:
    """Return the runtime and machine of measurements here.

    Args:
        settings: decide which runtimes' versions count.
    """
    names = {"machine": platform.machine(), "processor": _processor()}
    with contextlib.suppress(ImportError):  # a device may have LiteRT alone
        import onnxruntime

        names["onnxruntime"] = str(onnxruntime.__version__)
    if settings.runtime == "openvino":
        import openvino

        names["openvino"] = str(openvino.__version__)
    if settings.runtime == "litert":
        names["litert"] = _litert_version()
    return names


def _litert_version() -> str:
    try:
        return version("ai-edge-litert")
    except PackageNotFoundError:  # of a nightly build, or of a build without metadata
        import ai_edge_litert

        return str(getattr(ai_edge_litert, "__version__", "unknown"))


def _processor() -> str:
    if sys.platform == "darwin":
        return _apple() or platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return f"{platform.processor()} {products_here()}".strip()
    return processor_name(cpuinfo.read_text(), products_here())


def processor_name(cpuinfo: str, products: str = "") -> str:
    """Return a hash that tells processors apart, before and after updates of the system.

    Args:
        cpuinfo: content of /proc/cpuinfo.
        products: as `products_here` says.
    """
    lines = cpuinfo.split("\n\n")[0].splitlines()
    wanted = []
    for line in lines:
        if line.startswith(PROCESSOR_LINES):
            wanted.append(line)
        elif line.startswith(INSTRUCTION_LINES):
            wanted.append(" ".join(sorted(INSTRUCTIONS & set(line.split()))))
    wanted = wanted or [line for line in lines if not line.startswith(OTHER_LINES)]
    return hashlib.sha256("\n".join([*wanted, products]).encode()).hexdigest()[:16]


def _apple() -> str:
    """Return the name of the chip on macOS; Python calls all of Apple's "arm"."""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def write_result(path: Path, result: JobResult) -> None:
    """Write the results of a job as JSON.

    Args:
        path: file to write.
        result: of one job.
    """
    path.write_text(json.dumps({"format": FORMAT, **asdict(result)}))


def read_result(path: Path) -> JobResult:
    """Read the results of a job.

    Args:
        path: file from `write_result`.

    Raises:
        ValueError: if the file is not of this format (also KeyError, TypeError).
    """
    data = json.loads(path.read_text())
    if data.pop("format") != FORMAT:
        raise ValueError("another format")
    data["settings"] = SessionSettings.from_json(data["settings"])
    data["intervals"] = [(float(low), float(high)) for low, high in data["intervals"]]
    data["profiles"] = [[_node_time(row) for row in profile] for profile in data["profiles"]]
    return JobResult(**data)


def _node_time(row: Sequence[Any]) -> NodeTime:
    operator, names, microseconds, inputs, outputs, weights = row
    return NodeTime(
        operator,
        tuple(names),
        float(microseconds),
        _shapes(inputs),
        _shapes(outputs),
        None if weights is None else tuple(weights),
    )


def _shapes(entries: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((kind, tuple(shape)) for kind, shape in entries)
