"""Train a residual CNN that says which quarter of a picture is bright; and tasks that are wrong."""

import torch
from torch import nn

from autocompress import Task


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.bn1(self.conv1(x)))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(
            Residual(16), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()
        )
        self.fc = nn.Linear(24 * 16, 4)

    def forward(self, x):
        return self.fc(self.body(self.stem(x)).flatten(1))


def images(count, seed):
    # Which quarter of the picture is bright?
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    y = torch.randint(0, 4, (count,), generator=generator)
    for i, quarter in enumerate(y.tolist()):
        row, column = 4 * (quarter // 2), 4 * (quarter % 2)
        x[i, 0, row : row + 4, column : column + 4] += 0.2
    return x, y


def batches(count, seed):
    x, y = images(count, seed)
    return list(zip(x.split(32), y.split(32), strict=True))


def train(model, data, steps):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        for x, y in data:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def task():
    torch.manual_seed(0)
    data = batches(256, 1)
    return Task(
        "quarters",
        train(Net(), data, 6),
        torch.rand(1, 1, 8, 8),
        batches(192, 2),
        lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean()),
        train=data,
        test=batches(192, 3),
    )


def not_a_task():
    return {"model": Net()}


def failing_forward():
    t = task()
    t.__dict__["example_inputs"] = torch.rand(1, 3, 8, 8)
    return t


def empty_loader():
    t = task()
    t.__dict__["validation"] = []
    return t


def nan_metric():
    t = task()
    t.__dict__["metric"] = lambda outputs, targets: float("nan")
    return t


def other_weights():
    return Task("quarters", Net().eval(), torch.rand(1, 1, 8, 8), batches(64, 2), task().metric)


def named(name="other"):
    t = task()
    t.__dict__["name"] = name
    return t
