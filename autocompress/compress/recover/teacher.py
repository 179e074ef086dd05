"""What the original model says about a batch: computed once, kept on disk by content where reading is cheaper than computing."""

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
from autocompress.results.tensor_files import read_tensors, tensor_bytes
from autocompress.task.batches import Inputs, input_tensors, to_device
from autocompress.task.task import Task

DISK_BYTES = 2 << 30
TOP = 64  # logits kept per position where there are more than DENSE
DENSE = 512
PATIENCE = 3  # reads before reading may be found slower than computing


@dataclass(frozen=True, eq=False)
class TopLogits:
    """The largest logits of each position, and what all of them sum to.

    Attributes:
        values, indices: (..., k) logits and their classes.
        log_sums: (..., t) log of the sum of exp(logit / T) over all classes, for each T of `temperatures`.
    """

    values: Tensor
    indices: Tensor
    log_sums: Tensor
    temperatures: tuple[float, ...]

    @classmethod
    def of(cls, logits: Tensor, temperatures: Sequence[float]) -> TopLogits:
        """The TOP largest of `logits` (..., classes)."""
        values, indices = logits.topk(TOP, dim=-1)
        sums = torch.stack(
            [(logits / temperature).logsumexp(-1) for temperature in temperatures], -1
        )
        return cls(values, indices, sums, tuple(temperatures))

    def log_probabilities(self, temperature: float) -> Tensor:
        """(..., k) log of the softmax at `temperature`; ValueError when its sums were not kept."""
        return (
            self.values / temperature
            - self.log_sums[..., self.temperatures.index(temperature), None]
        )


Outputs = dict[str, Tensor | TopLogits]


def model_hash(model: nn.Module) -> str:
    """Hash of names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(_bytes(value) if value.dim() else str(value.item()).encode())
    return digest.hexdigest()


def weight_hashes(task: Task) -> dict[str, str | None]:
    """Hashes of the task's model and of its student as it comes, by which a run knows them again."""
    return {
        "model": model_hash(task.model),
        "student_model": None if task.student is None else model_hash(task.student),
    }


def changed_weights(task: Task, known: Mapping[str, Any]) -> str:
    """Return "model" or "student" where its weights are not those that a run or recipe knows; "" where all are."""
    found = weight_hashes(task)
    changed = [name for name in found if name in known and known[name] != found[name]]
    return changed[0].removesuffix("_model") if changed else ""


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@dataclass
class Teacher:
    """The original model of a task, in eval mode on `device`, and its answers.

    Answers are float32; logits over more than DENSE classes are reduced to `TopLogits`, whether they are kept or not, so that a cache
    changes nothing. `folder` None keeps nothing. A batch is known by its content: loaders may shuffle. What is kept stays below
    DISK_BYTES, and once reading has taken longer than computing nothing more is kept or read.
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
            self._digest = f"{model_hash(self.model)} {self.temperatures} {TOP} {DENSE} {self.task.output_kinds}"

    def outputs(self, inputs: Inputs) -> Outputs:
        """The answers to one batch, on the device."""

        def compute() -> dict[str, Tensor]:
            found = self.task.outputs_of(self.model, to_device(inputs, self.device))
            return {
                key: tensor
                for name, output in found.items()
                for key, tensor in _packed(name, self.reduced(name, output)).items()
            }

        kept = self._remembered(inputs, "outputs", compute)
        return {
            name: self._unpacked(kept, name)
            for name in dict.fromkeys(key.rpartition("|")[0] for key in kept)
        }

    def reduced(self, name: str, output: Tensor) -> Tensor | TopLogits:
        """What is remembered of one output of the original."""
        output = output.detach().float()
        if self.task.divergence is not None or not self.task.is_logits(name):
            return output
        kind = self.task.kind_of(name)
        many = kind.class_dim is not None and output.shape[kind.class_dim] > DENSE
        return TopLogits.of(kind.logits(output), self.temperatures) if many else output

    def continued(self, inputs: Inputs) -> Tensor:
        """(n, length + 1) tokens that the teacher writes behind the first part of each sequence (see `generate.continued`)."""
        return self._remembered(
            inputs, "sequences", lambda: {"tokens": continued(self.model, inputs, self.device)}
        )["tokens"]

    @torch.no_grad()
    def _remembered(
        self, inputs: Inputs, what: str, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        started = time.perf_counter()
        name = "" if self.folder is None else f"{self._key(inputs, what)}.safetensors"
        kept = self._disk.read(name, lambda path: read_tensors(path, self.device)[0])
        if kept is not None:
            self.read += 1
            self._read_s = min(self._read_s, time.perf_counter() - started)
            if self.read >= PATIENCE and self._read_s > self._compute_s:
                self.folder = self._disk.folder = None
            return kept
        started = time.perf_counter()
        found = compute()
        self._compute_s = min(self._compute_s, time.perf_counter() - started)
        self.computed += 1
        if self.folder is not None:
            self._write(name, found)
        return found

    def _key(self, inputs: Inputs, what: str) -> str:
        parts: list[str | bytes] = [f"{self._digest} {what}"]
        for tensor in input_tensors(inputs):
            parts += [f"{tensor.dtype} {tuple(tensor.shape)}", _bytes(tensor)]
        return key_of(*parts)[:32]

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        content = tensor_bytes(tensors)
        self._room -= len(content)
        if self._room >= 0:
            self._disk.write(name, content)

    def _unpacked(self, kept: dict[str, Tensor], name: str) -> Tensor | TopLogits:
        if f"{name}|values" not in kept:
            return kept[f"{name}|"]
        values, indices, sums = (kept[f"{name}|{part}"] for part in ("values", "indices", "sums"))
        return TopLogits(values, indices, sums, self.temperatures)


def _packed(name: str, answer: Tensor | TopLogits) -> dict[str, Tensor]:
    if isinstance(answer, Tensor):
        return {f"{name}|": answer}
    return {
        f"{name}|values": answer.values,
        f"{name}|indices": answer.indices,
        f"{name}|sums": answer.log_sums,
    }
