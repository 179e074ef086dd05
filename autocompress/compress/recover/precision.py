"""In which floating-point type training runs: 16 bits where the device has them, on a CPU only where they were measured to be faster."""

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

WORTH = 0.8  # bfloat16 must take at most this share of float32's time: its gradients are coarser
TURNS = 3
SAMPLES = 32


def training_dtype(
    task: Task, student: nn.Module, device: torch.device, folder: Path | None
) -> torch.dtype:
    """bfloat16 or float16 on CUDA; on a CPU bfloat16 or float32, whichever is faster for `student` on the first training batch.

    `student` is a model as recovery trains it: rounding weights and activations takes its time in either type. The verdict is kept in
    `folder` (None: not kept), so that a machine decides once and runs can be repeated.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    machine = f"{model_hash(student)} {torch.__version__} {platform.processor()} {platform.node()} {torch.get_num_threads()}"
    cache, name = Cache(folder), f"{key_of(machine)[:16]}.json"
    ratio = cache.read(name, _read_ratio)
    if ratio is None:
        ((inputs, _),) = task.first_samples([next(iter(task.training_batches()))], SAMPLES)
        try:
            ratio = time_ratio(task, student, inputs, device)
        except (RuntimeError, UserCodeError):  # operators that do not take mixed types
            return torch.float32
        cache.write(name, json.dumps({"bfloat16": ratio}))
    return torch.bfloat16 if ratio < WORTH else torch.float32


def _read_ratio(path: Path) -> float:
    return float(json.loads(path.read_text())["bfloat16"])


def time_ratio(task: Task, student: nn.Module, inputs: Inputs, device: torch.device) -> float:
    """Time of a forward and a backward pass under bfloat16 autocast against float32, taken in turn, the fastest of each counting."""
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
                torch.autograd.backward(
                    torch.stack([found.float().square().mean() for found in outputs.values()]).sum()
                )
                if turn > 0:
                    best[dtype] = min(best[dtype], time.perf_counter() - started)
                for parameter in student.parameters():
                    parameter.grad = None
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return best[torch.bfloat16] / best[torch.float32]
