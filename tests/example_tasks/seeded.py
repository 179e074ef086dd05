"""Make a network whose weights a file beside this one determines."""

from pathlib import Path

import torch
from torch import nn

from autocompress import Task


def accuracy(outputs, targets):
    return float((outputs.argmax(1) == targets).float().mean())


def task():
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    torch.manual_seed(int((Path(__file__).parent / "seed").read_text()))
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    data = [(x[:32], net(x[:32]).argmax(1)), (x[32:], net(x[32:]).argmax(1))]
    return Task("seeded", net, x[:1], data, accuracy, extra_metrics={"share": accuracy})
