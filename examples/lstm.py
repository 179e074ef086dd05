"""Compress an LSTM, which reads handwritten digits line by line.

python examples/lstm.py --trials 40 --out reports/lstm
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import autocompress as ac


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, lines):  # (n, 8, 8): eight lines of eight pixels
        outputs, _ = self.lstm(lines)
        return self.head(outputs[:, -1])


def task(epochs=6):
    torch.manual_seed(0)
    pictures, digits = load_digits(return_X_y=True)
    lines = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 8, 8) / 16
    batches = list(zip(lines.split(32), torch.tensor(digits).split(32), strict=True))
    train, validation, test = batches[:36], batches[36:46], batches[46:]
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for inputs, targets in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return ac.Task(
        "lines",
        model.eval(),
        lines[:1],
        validation,
        metric=lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean()),
        train=train,
        test=test,
    )


# Hidden units leave all gates at once. Weights of LSTMs are stored packed and run as floats.
SPACE = {"modules": [{"match": "*", "weight_bits": [4, 8, 16], "pruning_ratio": [0, 0.25, 0.5]}]}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--out", default="reports/lstm")
    options = parser.parse_args()
    result = ac.search(task(), SPACE, n_trials=options.trials, out=options.out)
    for point in result.front:
        m = point.measured
        print(f"trial {point.trial}: {m.size_bytes} B, {m.latency_ms:.3f} ms, {m.accuracy:.3f}")
