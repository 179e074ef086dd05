"""Choose the floating-point type of training.

CUDA devices train in 16 bits. A CPU does so only if it was measured to be faster. `search/problem`
asks once per run and passes the type to the `Trainer`.
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
SAMPLES = 32  # samples per measurement


def training_dtype(
    task: Task, student: nn.Module, device: torch.device, folder: Path | None
) -> torch.dtype:
    """Return the floating-point type of training.

    Args:
        task: gives the first training batch.
        student: a model as recovery trains it, with rounding of weights and activations.
        device: device of training.
        folder: cache of measurements, so that a machine measures once and runs can be repeated;
            None for none.

    Returns:
        bfloat16 or float16 on CUDA, the faster one of bfloat16 and float32 on a CPU.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    machine = f"{platform.processor()} {platform.node()} {torch.get_num_threads()}"
    key = key_of(f"{model_hash(student)} {torch.__version__} {machine}")
    cache, name = Cache(folder), f"{key[:16]}.json"
    ratio = cache.read(name, _read_ratio)
    if ratio is None:
        ((inputs, _),) = task.first_samples([next(iter(task.training_batches()))], SAMPLES)
        try:
            ratio = time_ratio(task, student, inputs, device)
        except (RuntimeError, UserCodeError):  # an operator that takes no mixed types
            return torch.float32
        cache.write(name, json.dumps({"bfloat16": ratio}))
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
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        for turn in range(TURNS + 1):
            for dtype in best:
                started = time.perf_counter()
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    outputs = task.outputs_of(student, inputs)
                losses = [output.float().square().mean() for output in outputs.values()]
                torch.autograd.backward(torch.stack(losses).sum())
                if turn > 0:
                    best[dtype] = min(best[dtype], time.perf_counter() - started)
                for parameter in student.parameters():
                    parameter.grad = None
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return best[torch.bfloat16] / best[torch.float32]
