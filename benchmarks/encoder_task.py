"""Make sentence encoders as tasks: one of 22 M parameters, trained here, and one of 110 M.

`encoder` tells which of four topics a sentence is about. A keyword counts for its topic unless the
word before it is a negation, so both the words and their order matter. The first call trains it
for some minutes and keeps the weights in AUTOCOMPRESS_BENCH_CACHE (default:
~/.cache/autocompress-benchmarks). `large` has random weights and is for memory only.

    autocompress search benchmarks/encoder_task.py:encoder
    python -m benchmarks.encoder_task    # train now, and print the accuracy of all splits
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autocompress import Task
from benchmarks.kept import kept_folder

VOCABULARY, LENGTH = 30522, 32
PAD, FIRST, LAST = 0, 101, 102  # as in BERT's vocabulary
TOPICS, KEYWORDS, NEGATIONS, FILLERS = 4, 16, 4, 120  # keywords are per topic
STEPS, BATCH, RATE = 500, 32, 3e-4
VERSION = 1  # of the data and the training: names the file of the weights

Inputs = dict[str, Tensor]


def words() -> Tensor:
    """Return the word numbers in use: keywords topic by topic, negations, fillers."""
    count = TOPICS * KEYWORDS + NEGATIONS + FILLERS
    generator = torch.Generator().manual_seed(0)
    return 1000 + torch.randperm(VOCABULARY - 1000, generator=generator)[:count]


def sentences(count: int, seed: int) -> tuple[Inputs, Tensor]:
    """Return (inputs, topics) of random sentences of 12 to 30 words.

    A sentence has one topic with more counted keywords than any other. Often it is ahead by one.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> Tensor:
        return torch.randint(high, (4 * count, LENGTH - 2), generator=generator)

    def chance(share: float) -> Tensor:
        return torch.rand(4 * count, LENGTH - 2, generator=generator) < share

    keyword, negation = chance(0.35), chance(0.12)
    main = draw(TOPICS)[:, :1]
    topic = torch.where(chance(0.3), main, draw(TOPICS))
    index = TOPICS * KEYWORDS + NEGATIONS + draw(FILLERS)
    index = torch.where(keyword, topic * KEYWORDS + draw(KEYWORDS), index)
    negation &= ~keyword
    index = torch.where(negation, TOPICS * KEYWORDS + draw(NEGATIONS), index)
    length = 12 + draw(LENGTH - 13)[:, :1]
    present = torch.arange(LENGTH - 2) < length
    counted = keyword & present
    counted[:, 1:] &= ~negation[:, :-1]
    counts = (nn.functional.one_hot(topic, TOPICS) * counted[..., None]).sum(1)
    best = counts.topk(2, dim=1).values
    clear = (best[:, 0] > best[:, 1]).nonzero()[:count, 0]
    assert len(clear) == count
    ids = torch.full((count, LENGTH), PAD)
    ids[:, 0] = FIRST
    ids[:, 1:-1] = torch.where(present, words()[index], PAD)[clear]
    ids.scatter_(1, length[clear] + 1, LAST)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}, counts[clear].argmax(1)


def batches(count: int, seed: int, size: int = BATCH) -> list[tuple[Inputs, Tensor]]:
    """Return random sentences and their topics in batches."""
    inputs, topics = sentences(count, seed)
    cuts = range(0, count, size)
    return [
        ({name: values[i : i + size] for name, values in inputs.items()}, topics[i : i + size])
        for i in cuts
    ]


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of right answers."""
    return float((outputs.argmax(-1) == targets).float().mean())


def bert() -> nn.Module:
    """Return the encoder with random weights: 6 layers of width 384, 22.6 M parameters."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=TOPICS,
    )
    return transformers.BertForSequenceClassification(config)


def bert_base() -> nn.Module:
    """Return a BERT-base with random weights: 12 layers of width 768, 109.5 M parameters."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=VOCABULARY, num_labels=TOPICS)
    return transformers.BertForSequenceClassification(config).eval()


def weights_file() -> Path:
    """Return the path of the trained weights."""
    return kept_folder() / f"encoder_{VERSION}.safetensors"


def train(model: nn.Module) -> None:
    """Train the encoder on sentences that no split holds."""
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.1)
    started = time.monotonic()
    model.train()
    for step, (inputs, topics) in enumerate(batches(STEPS * BATCH, seed=10)):
        loss = nn.functional.cross_entropy(model(**inputs).logits, topics)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 24:
            spent = time.monotonic() - started
            print(
                f"training: step {step + 1} of {STEPS}, loss {loss:.3f}, {spent:.0f} s", flush=True
            )
    model.eval()


def trained() -> nn.Module:
    """Return the trained encoder, from its file where there is one."""
    model, path = bert(), weights_file()
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    train(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_file(model.state_dict(), unfinished)
    unfinished.replace(path)
    return model


def encoder(validation: int = 640) -> Task:
    """Return the task of the trained encoder; latency is measured for one sentence.

    Args:
        validation: number of sentences in the validation split.
    """
    return Task(
        "encoder",
        trained(),
        sentences(1, seed=4)[0],
        batches(int(validation), seed=1),
        accuracy,
        train=batches(4096, seed=2),
        test=batches(1024, seed=3),
    )


def large(validation: int = 64) -> Task:
    """Return the task of a BERT-base with random weights: to answer as the float model does.

    Args:
        validation: number of sentences in the validation split.
    """
    model = bert_base()

    def answered(count: int, seed: int) -> list[tuple[Inputs, Tensor]]:
        with torch.no_grad():
            return [
                (inputs, model(**inputs).logits.argmax(-1))
                for inputs, _ in batches(count, seed, 16)
            ]

    return Task(
        "large_encoder",
        model,
        sentences(1, seed=4)[0],
        answered(int(validation), 1),
        accuracy,
        train=answered(64, 2),
        test=answered(32, 3),
    )


def main() -> None:
    task = encoder()
    for name in ("validation", "test"):
        split = getattr(task, name)
        with torch.no_grad():
            outputs = torch.cat([task.model(**inputs).logits for inputs, _ in split])
        topics = torch.cat([topics for _, topics in split])
        print(f"{name}: {len(topics)} sentences, accuracy {accuracy(outputs, topics):.4f}")


if __name__ == "__main__":
    main()
