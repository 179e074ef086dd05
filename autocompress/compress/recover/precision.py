"""Choose the floating-point type of training.

CUDA devices train in 16 bits. A CPU does so only if it was measured to be faster, on the first
model that is trained. `Trainer.settle` asks before that training; a search without training never
does.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import torch
from torch import nn

from autocompress.cache import Cache, key_of
from autocompress.compress.recover.teacher import model_hash
from autocompress.task.batches import Inputs, to_device
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError

WORTH = 0.8  # bfloat16 must take less than this share of float32's time, since it is less exact
TURNS = 3  # measurements per type, after one to warm up
LIMIT_S = 4.0  # no turn begins after it; a turn to warm up counts where no other fits
SAMPLES = 16  # samples per measurement; with fewer, 16 bits look slower than they are


def training_dtype(
    task: Task, student: nn.Module, device: torch.device, folder: Path | None
) -> torch.dtype:
    """Return the floating-point type of training, after timing both if nothing else decides.

    Args:
        task: gives the first training batch. Its model names the measurement.
        student: a model as recovery trains it, with rounding of weights and activations.
        device: device of training.
        folder: cache of measurements, so that a machine measures once and runs can be repeated;
            None for none.

    Returns:
        bfloat16 or float16 on CUDA, the faster one of bfloat16 and float32 on a CPU.
    """
    known = known_dtype(task, device, folder)
    if known is not None:
        return known
    ((inputs, _),) = task.first_samples([next(iter(task.training_batches()))], SAMPLES)
    try:
        ratio = time_ratio(task, student, inputs, device)
    except (RuntimeError, UserCodeError):  # an operator that takes no mixed types
        return torch.float32
    Cache(folder).write(_entry(task), json.dumps({"bfloat16": ratio}))
    return _verdict(ratio)


def known_dtype(task: Task, device: torch.device, folder: Path | None) -> torch.dtype | None:
    """Return the floating-point type of training if it is known without a measurement.

    Args:
        task: its model names the measurement.
        device: device of training.
        folder: cache of measurements; None for none.

    Returns:
        The type; None on a CPU that may be faster in 16 bits and was not measured.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if not multiplies_bfloat16():
        return torch.float32
    ratio = Cache(folder).read(_entry(task), _read_ratio)
    return None if ratio is None else _verdict(ratio)


def multiplies_bfloat16() -> bool:
    """Return False if the processor has no instruction that multiplies bfloat16.

    PyTorch tells it of x86 processors alone: others are taken to have one, and are timed.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    tests = [getattr(torch.cpu, name, None) for name in asked]
    return any(test is None or test() for test in tests)


def _entry(task: Task) -> str:
    """Return the name of the cached measurement of this model on this machine."""
    machine = f"{platform.processor()} {platform.node()} {torch.get_num_threads()}"
    key = key_of(f"{model_hash(task.model)} {torch.__version__} {machine}")
    return f"{key[:16]}.json"


def _verdict(ratio: float) -> torch.dtype:
    return torch.bfloat16 if ratio < WORTH else torch.float32


def _read_ratio(path: Path) -> float:
    return float(json.loads(path.read_text())["bfloat16"])


def time_ratio(task: Task, student: nn.Module, inputs: Inputs, device: torch.device) -> float:
    """Return the time of a training pass under bfloat16 autocast, divided by that under float32.

    Both types run in turn, and the fastest pass of each counts.

    Args:
        task: gives the model call.
        student: a model on the device; its gradients are cleared.
        inputs: one batch of inputs.
        device: device of the student.

    Returns:
        Ratio of times; below 1 if bfloat16 is faster.
    """
    parameters = [p for p in student.parameters() if p.is_floating_point() and not p.requires_grad]
    inputs = to_device(inputs, device)
    best: dict[torch.dtype, float] = {}
    began = time.perf_counter()
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        for turn in range(TURNS + 1):
            if turn > 0 and time.perf_counter() - began > LIMIT_S:
                break
            spent = {}
            for dtype in (torch.float32, torch.bfloat16):
                started = time.perf_counter()
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    outputs = task.outputs_of(student, inputs)
                losses = [output.float().square().mean() for output in outputs.values()]
                torch.autograd.backward(torch.stack(losses).sum())
                spent[dtype] = time.perf_counter() - started
                for parameter in student.parameters():
                    parameter.grad = None
            if turn > 1:
                spent = {dtype: min(best[dtype], seconds) for dtype, seconds in spent.items()}
            best = spent
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return best[torch.bfloat16] / best[torch.float32]
