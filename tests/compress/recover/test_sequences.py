"""Sequence-level distillation: the teacher writes on, the student learns from it.

What is no causal language model is refused.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fixture import trainer_of
from torch import Tensor, nn

from autocompress import Candidate, Distillation, ModuleConfig, Task, find_modules
from autocompress.compress.assemble.library import VariantLibrary
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.recover.recover import recover
from autocompress.compress.recover.sequences import as_batch, check_causal, continued, tokens_of
from autocompress.compress.recover.teacher import Teacher
from autocompress.errors import TaskError
from autocompress.model.plain.split import split_modules
from autocompress.task.calls import call_model

CPU = torch.device("cpu")
LENGTH, WORDS = 12, 9


class Decoder(nn.Module):
    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.up, self.head = nn.Linear(16, 32), nn.Linear(32, WORDS)
        self.causal = causal

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding(input_ids)
        x = x + F.scaled_dot_product_attention(
            self.query(x), self.key(x), self.value(x), is_causal=self.causal
        )
        return self.head(F.relu(self.up(x)))


def walks(count: int, seed: int) -> list[tuple[dict[str, Tensor], Tensor]]:
    """The next word is the last one plus one or two."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 3, (count, LENGTH + 1), generator=generator)
    words = (torch.randint(0, WORDS, (count, 1), generator=generator) + steps.cumsum(1)) % WORDS
    return [({"input_ids": w[:, :-1]}, w[:, 1:]) for w in words.split(16)]


@pytest.fixture(scope="module")
def task() -> Task:
    torch.manual_seed(0)
    model, data = Decoder(), walks(256, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(6):
        for inputs, target in data:
            loss = F.cross_entropy(model(**inputs).flatten(0, 1), target.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def negative_loss(outputs: Tensor, targets: Tensor) -> float:
        return -float(F.cross_entropy(outputs.flatten(0, 1), targets.flatten()))

    return Task(
        "walks",
        model.eval(),
        {"input_ids": data[0][0]["input_ids"][:1]},
        walks(64, 2),
        negative_loss,
        train=data,
    )


def test_the_teacher_writes_what_it_was_taught(task: Task) -> None:
    inputs, target = task.train[0]
    tokens = continued(task.model, inputs, CPU)
    assert tokens.shape == (16, LENGTH + 1)
    prompt = LENGTH // 4
    assert torch.equal(tokens[:, :prompt], inputs["input_ids"][:, :prompt])
    assert not torch.equal(tokens[:, prompt:LENGTH], inputs["input_ids"][:, prompt:])
    steps = (tokens[:, prompt:] - tokens[:, prompt - 1 : -1]) % WORDS
    assert float(((steps == 1) | (steps == 2)).float().mean()) > 0.9, (
        "every step is one that the data makes"
    )
    assert torch.equal(tokens, continued(task.model, inputs, CPU))
    some, wanted = as_batch(inputs, tokens, shifted=check_causal(task.model, inputs, target))
    assert torch.equal(some["input_ids"], tokens[:, :-1])
    assert torch.equal(wanted, tokens[:, 1:])
    assert torch.equal(as_batch(inputs, tokens, shifted=False)[1], tokens[:, :-1])


def test_targets_are_the_inputs_or_shifted_by_one(task: Task) -> None:
    inputs, target = task.train[0]
    assert check_causal(task.model, inputs, target)
    assert not check_causal(task.model, inputs, inputs["input_ids"])
    padded = target.clone()
    padded[:, 5:] = -100
    assert check_causal(task.model, inputs, padded)
    assert tokens_of((torch.rand(2, 3), inputs["input_ids"])) is inputs["input_ids"]


@pytest.mark.parametrize(
    ("model", "inputs", "target", "text"),
    [
        (
            Decoder(),
            torch.zeros(2, LENGTH, dtype=torch.int64),
            torch.tensor([0, 1]),
            "targets are the next tokens",
        ),
        (
            Decoder(),
            torch.arange(24).view(2, 12) % WORDS,
            8 - torch.arange(24).view(2, 12) % WORDS,
            "the inputs shifted by one",
        ),
        (
            Decoder(causal=False),
            torch.arange(24).view(2, 12) % WORDS,
            torch.arange(24).view(2, 12) % WORDS,
            "earlier tokens alone",
        ),
        (
            nn.Linear(4, 4),
            torch.rand(2, 4),
            torch.rand(2, 4),
            "one \\(n, length\\) tensor of tokens",
        ),
    ],
)
def test_what_is_no_causal_language_model_is_refused(
    model: nn.Module, inputs, target, text: str
) -> None:
    with pytest.raises(TaskError, match=text):
        check_causal(model, inputs, target)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_student_learns_from_what_the_teacher_writes(
    task: Task, share: float, tmp_path: Path
) -> None:
    teacher = split_modules(task.model)
    stitcher = Stitcher(
        teacher, find_modules(task.model, task.example_inputs), VariantLibrary(Evidence(teacher))
    )
    at = Candidate.of(
        {m.name: ModuleConfig(2, algorithm="nearest") for m in stitcher.module_map},
        Distillation(0.0, 1.0, 40, sequences=share, learning_rate=5e-3),
    )

    def loss(trained=None) -> float:
        model = stitcher.apply(at, trained)
        with torch.no_grad():
            return -sum(
                task.metric(call_model(model, inputs), target) for inputs, target in task.validation
            ) / len(task.validation)

    before = loss()
    trainer = trainer_of(task, stitcher)
    trainer.teacher = Teacher(task, teacher, CPU, tmp_path)
    trained, _ = recover(trainer, stitcher, at)
    assert loss(trained) < before - 0.1
    asked = trainer.teacher.computed + trainer.teacher.read
    assert asked == 40 * (1 + share), "generated sequences and answers to them"
