"""Compute the original model's answers, and cache them on disk if reading is faster than computing.

The answers are the targets of distillation (`distill.py`). The cache's key is all that decides what
the model computes, and the content of a batch, because loaders may shuffle.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.cache import Cache, key_of
from autocompress.compress.recover.sequences import continued
from autocompress.model_digest import model_digest, value_bytes
from autocompress.results.tensor_files import read_tensors, tensor_bytes
from autocompress.task.batches import Inputs, leaves, to_device
from autocompress.task.copies import named_state
from autocompress.task.task import Task

DISK_BYTES = 2 << 30
DENSE = 512  # with more classes only the TOP largest logits per position are stored
TOP = 64
PATIENCE = 3  # reads before the cache may be judged slower than computing


@dataclass(frozen=True, eq=False)
class TopLogits:
    """Hold the largest logits of each position, and the normaliser of the softmax over all classes.

    Attributes:
        values: (..., k) largest logits, descending.
        indices: (..., k) their classes.
        log_sums: (..., t) log of the sum of exp(logit / T) over all classes, per temperature T.
        temperatures: the t temperatures.
    """

    values: Tensor
    indices: Tensor
    log_sums: Tensor
    temperatures: tuple[float, ...]

    @classmethod
    def of(cls, logits: Tensor, temperatures: Sequence[float]) -> TopLogits:
        """Return the TOP largest logits.

        Args:
            logits: (..., classes), at least TOP classes.
            temperatures: temperatures for which the normaliser is stored.
        """
        values, indices = logits.topk(TOP, dim=-1)
        sums = torch.stack([(logits / t).logsumexp(-1) for t in temperatures], -1)
        return cls(values, indices, sums, tuple(temperatures))

    def log_probabilities(self, temperature: float) -> Tensor:
        """Return the log of the softmax over all classes, for the stored classes.

        Args:
            temperature: one of `temperatures`.

        Returns:
            (..., k) log probabilities.

        Raises:
            ValueError: if the normaliser of the temperature is not stored.
        """
        index = self.temperatures.index(temperature)
        return self.values / temperature - self.log_sums[..., index, None]


Outputs = dict[str, Tensor | TopLogits]


def model_hash(model: nn.Module) -> str:
    """Return a hash of names, shapes and values of all parameters and buffers.

    Runs and recipes record it. `model_digest` tells models apart that differ in anything else.

    Args:
        model: any model.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, value in named_state(model).items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value_bytes(value) if value.dim() else str(value.item()).encode())
    return digest.hexdigest()


def changed_weights(task: Task, known: Mapping[str, Any]) -> str:
    """Return which model of a task has other weights than a run or recipe records.

    Args:
        task: its model and, if it has one, its student as it comes.
        known: hashes by "model" and "student_model"; a name that is missing is not compared.

    Returns:
        "model", "student", or "" if no weights differ.
    """
    if "model" in known and known["model"] != model_hash(task.model):
        return "model"
    student = None if task.student is None else model_hash(task.student)
    if "student_model" in known and known["student_model"] != student:
        return "student"
    return ""


@dataclass
class Teacher:
    """Answer batches with the original model of a task.

    Answers are float32. Logits over more than DENSE classes are reduced to `TopLogits`, with or
    without a cache, so that the cache changes no result. Views depend on the seed and the step, so
    that each further training reads the answers of an earlier one. The cache stays below
    DISK_BYTES. It is given up once reading takes longer than computing.

    Attributes:
        task: gives the model call and the kinds of outputs.
        model: the original model, in eval mode on `device`.
        device: device of the model and of the answers.
        folder: cache; None for none.
        temperatures: temperatures that distillation may use.
        computed: number of batches computed so far.
        read: number of batches read from the cache so far.
    """

    task: Task
    model: nn.Module
    device: torch.device
    folder: Path | None = None
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0)
    computed: int = 0
    read: int = 0

    def __post_init__(self) -> None:
        self._compute_s = self._read_s = float("inf")
        self._digest = ""
        self._disk = Cache(self.folder, DISK_BYTES)
        self._room = DISK_BYTES // 2
        if self.folder is not None:
            own = self.task.divergence is not None
            form = f"{self.temperatures} {TOP} {DENSE} {self.task.output_kinds} {own}"
            if self.task.sample_dims:
                form += f" {dict(self.task.sample_dims)}"
            self._digest = f"{model_digest(self.model)} {form}"

    def outputs(self, inputs: Inputs) -> Outputs:
        """Return the answers to one batch.

        Args:
            inputs: one batch of inputs.

        Returns:
            Answers by name of the output, on the device.
        """

        def compute() -> dict[str, Tensor]:
            tensors: dict[str, Tensor] = {}
            outputs = self.task.outputs_of(self.model, to_device(inputs, self.device))
            for name, output in outputs.items():
                tensors |= _packed(name, self.reduced(name, output))
            return tensors

        tensors = self._remembered(inputs, "outputs", compute)
        names = dict.fromkeys(key.rpartition("|")[0] for key in tensors)
        return {name: self._unpacked(tensors, name) for name in names}

    def reduced(self, name: str, output: Tensor) -> Tensor | TopLogits:
        """Return the answer that one output of the original gives.

        Args:
            name: name of the output.
            output: as the model returns it.

        Returns:
            float32 output, or its largest logits if there are more than DENSE classes.
        """
        output = output.detach().float()
        if self.task.divergence is not None or not self.task.is_logits(name):
            return output
        kind = self.task.kind_of(name)
        many = kind.class_dim is not None and output.shape[kind.class_dim] > DENSE
        return TopLogits.of(kind.logits(output), self.temperatures) if many else output

    def continued(self, inputs: Inputs) -> Tensor:
        """Return sequences that the teacher continues (`sequences.continued`).

        Args:
            inputs: one batch of inputs with tokens.

        Returns:
            (n, length + 1) tokens.
        """

        def compute() -> dict[str, Tensor]:
            return {"tokens": continued(self.model, inputs, self.device)}

        return self._remembered(inputs, "sequences", compute)["tokens"]

    @torch.no_grad()
    def _remembered(
        self, inputs: Inputs, part: str, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the tensors of a batch from the cache, or compute and cache them."""
        started = time.perf_counter()
        name = "" if self.folder is None else f"{self._key(inputs, part)}.safetensors"
        tensors = self._disk.read(name, lambda path: read_tensors(path, self.device)[0])
        if tensors is not None:
            self.read += 1
            self._read_s = min(self._read_s, time.perf_counter() - started)
            if self.read >= PATIENCE and self._read_s > self._compute_s:
                self.folder = self._disk.folder = None
            return tensors
        started = time.perf_counter()
        tensors = compute()
        self._compute_s = min(self._compute_s, time.perf_counter() - started)
        self.computed += 1
        if self.folder is not None:
            self._write(name, tensors)
        return tensors

    def _key(self, inputs: Inputs, part: str) -> str:
        parts: list[str | bytes] = [f"{self._digest} {part}"]
        for name, value in leaves(inputs).items():
            if isinstance(value, Tensor):
                parts += [f"{name} {value.dtype} {tuple(value.shape)}", value_bytes(value)]
            else:
                parts.append(f"{name} {value!r}")
        return key_of(*parts)[:32]

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        content = tensor_bytes(tensors)
        self._room -= len(content)
        if self._room >= 0:
            self._disk.write(name, content)

    def _unpacked(self, tensors: dict[str, Tensor], name: str) -> Tensor | TopLogits:
        """Undo `_packed` for one output."""
        if f"{name}|values" not in tensors:
            return tensors[f"{name}|"]
        parts = ("values", "indices", "sums")
        values, indices, sums = (tensors[f"{name}|{part}"] for part in parts)
        return TopLogits(values, indices, sums, self.temperatures)


def _packed(name: str, answer: Tensor | TopLogits) -> dict[str, Tensor]:
    """Return an answer as tensors for a file, by "name|part"."""
    if isinstance(answer, Tensor):
        return {f"{name}|": answer}
    return {
        f"{name}|values": answer.values,
        f"{name}|indices": answer.indices,
        f"{name}|sums": answer.log_sums,
    }
