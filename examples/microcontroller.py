"""Compress a network that tells tones apart, for a microcontroller that is not at hand.

Points are .tflite files for TensorFlow Lite Micro (pip install 'autocompress[litert]'), int8 from
input to output. Size and accuracy are measured here; the memory of activations is estimated from
the file. Latency is computed from published figures of the device: a bound, which nobody has run
there.

python examples/microcontroller.py --max-size 20KB --max-memory 1KB --out reports/tones
"""

import argparse
import math

import torch
from torch import nn

import autocompress as ac


def batch(seed, count=64, length=256):
    draw = torch.Generator().manual_seed(seed)
    tone = torch.randint(0, 4, (count,), generator=draw)
    phase, noise = torch.rand(count, 1, generator=draw), torch.randn(count, length, generator=draw)
    waves = torch.sin((tone[:, None] + 4) / 32 * torch.arange(length) * math.pi + 6 * phase)
    return (waves + noise)[:, None], tone


def task(steps=80):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv1d(1, 16, 16, stride=4), nn.ReLU(), nn.Conv1d(16, 32, 8, stride=4), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(448, 64), nn.ReLU(), nn.Linear(64, 4)),
    )
    train = [batch(seed) for seed in range(16)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(steps):
        inputs, tones = train[step % 16]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), tones).backward()
        optimizer.step()
    return ac.Task(
        "tones",
        model.eval(),
        train[0][0][:1],
        validation=[batch(100), batch(101)],
        metric=lambda outputs, tones: float((outputs.argmax(1) == tones).float().mean()),
        train=train,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-size", default="20KB")
    parser.add_argument("--max-memory", default="1KB")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--space", default="cnn")  # a shipped space, or a file
    parser.add_argument("--out", default="reports/tones")
    options = parser.parse_args()
    result = ac.search(
        task(),
        options.space,
        target="litert-micro",
        n_trials=options.trials,
        out=options.out,
        max_size=options.max_size,
        max_memory=options.max_memory,
    )
    for point in result.front:
        m = point.measured
        print(
            f"{m.size_bytes} B, {m.activation_bytes} B of activations, {m.latency_ms:.2f} ms "
            f"({m.latency_source}), accuracy {m.accuracy:.3f}"
        )
