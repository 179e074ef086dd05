"""Compress an image classifier: a small network for handwritten digits, which scikit-learn brings.

python examples/image_classifier.py --trials 40 --out reports/digits
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import autocompress as ac


def accuracy(outputs, targets):  # higher is better
    return float((outputs.argmax(1) == targets).float().mean())


def network():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def task(epochs=3):
    torch.manual_seed(0)
    pictures, digits = load_digits(return_X_y=True)
    images = torch.tensor(pictures, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    batches = list(zip(images.split(32), torch.tensor(digits).split(32), strict=True))
    train, validation, test = batches[:36], batches[36:46], batches[46:]
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(epochs):
        for inputs, targets in train:
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return ac.Task("digits", model.eval(), images[:1], validation, accuracy, train=train, test=test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--space", default="cnn")  # a shipped space, or a file
    parser.add_argument("--out", default="reports/digits")
    options = parser.parse_args()
    result = ac.search(task(), options.space, n_trials=options.trials, out=options.out)
    base = result.front.baseline
    for point in result.front:
        m = point.measured
        print(f"{base.size_bytes / m.size_bytes:.1f}x smaller, test {m.test_accuracy:.3f}")
    ac.export(result, result.front.smallest(max_accuracy_drop=0.01), f"{options.out}/best")
