"""Search by two metrics at once: accuracy, and the share of eights that are recognised.

The front holds the files that no other one beats in size, latency, accuracy and recall.

python examples/two_metrics.py --trials 40 --out reports/eights
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import autocompress as ac

NAME = "recall of 8"


def accuracy(outputs, targets):
    return float((outputs.argmax(1) == targets).float().mean())


def recall(outputs, targets):
    return float((outputs.argmax(1)[targets == 8] == 8).float().mean())


def task(epochs=6):
    torch.manual_seed(0)
    pictures, digits = load_digits(return_X_y=True)
    pixels = torch.tensor(pictures, dtype=torch.float32) / 16
    batches = list(zip(pixels.split(64), torch.tensor(digits).split(64), strict=True))
    train, validation, test = batches[:16], batches[16:22], batches[22:]
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(epochs):
        for inputs, targets in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    metrics = {NAME: recall}
    return ac.Task(
        "eights", model, pixels[:1], validation, accuracy, test=test, extra_metrics=metrics
    )


SPACE = {"modules": [{"match": "*", "weight_bits": [2, 3, 4, 8], "activation_bits": [8, 32]}]}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--out", default="reports/eights")
    options = parser.parse_args()
    result = ac.search(
        task(),
        SPACE,
        n_trials=options.trials,
        out=options.out,
        objectives=[NAME],
        min_metric={NAME: "90%"},  # of the float model's
    )
    for point in result.front:
        m = point.measured
        print(f"{m.size_bytes} B, accuracy {m.accuracy:.3f}, {NAME} {m.metrics[NAME]:.3f}")
