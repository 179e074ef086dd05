"""Small tasks that a newcomer could have written, and a cache of their own for all tests."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

# Threads that spin while they wait make a busy machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import torch

torch.set_num_threads(2)
hypothesis.settings.register_profile("untimed", deadline=None)  # no test hangs on a clock
hypothesis.settings.load_profile("untimed")

CNN = """
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
        self.body = nn.Sequential(Residual(16), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU())
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
        x[i, 0, row:row + 4, column:column + 4] += 0.2
    return x, y

def batches(count, seed):
    x, y = images(count, seed)
    return list(zip(x.split(32), y.split(32)))

def train(model, data, steps):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        for x, y in data:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad(); loss.backward(); optimizer.step()
    return model.eval()

def task():
    torch.manual_seed(0)
    data = batches(256, 1)
    return Task("quarters", train(Net(), data, 6), torch.rand(1, 1, 8, 8), batches(192, 2),
                lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean()), train=data, test=batches(192, 3))

def not_a_task():
    return {"model": Net()}

def failing_forward():
    t = task(); t.__dict__["example_inputs"] = torch.rand(1, 3, 8, 8); return t

def empty_loader():
    t = task(); t.__dict__["validation"] = []; return t

def nan_metric():
    t = task(); t.__dict__["metric"] = lambda outputs, targets: float("nan"); return t

def other_weights():
    return Task("quarters", Net().eval(), torch.rand(1, 1, 8, 8), batches(64, 2), task().metric)

def named(name="other"):
    t = task(); t.__dict__["name"] = name; return t
"""

TRANSFORMER = """
import torch
from torch import nn
from autocompress import Task

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classifier = nn.Linear(32, 3)
    def forward(self, ids):
        return self.classifier(self.encoder(self.embedding(ids)).mean(1))

def batches(count, seed):
    # Which of the words 1, 2, 3 is most frequent?
    x = torch.randint(0, 20, (count, 12), generator=torch.Generator().manual_seed(seed))
    y = torch.stack([(x == word).sum(1) for word in (1, 2, 3)], 1).argmax(1)
    return list(zip(x.split(32), y.split(32)))

def task():
    torch.manual_seed(0)
    model, data = Tagger(), batches(512, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(8):
        for x, y in data:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad(); loss.backward(); optimizer.step()
    return Task("words", model.eval(), torch.randint(0, 20, (1, 12)), batches(192, 2),
                lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean()), train=data)
"""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    os.environ["AUTOCOMPRESS_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "cnn.py").write_text(textwrap.dedent(CNN))
    (folder / "transformer.py").write_text(textwrap.dedent(TRANSFORMER))
    return folder


@pytest.fixture(scope="session")
def cnn_spec(task_files: Path) -> str:
    return f"{task_files / 'cnn.py'}:task"


@pytest.fixture(scope="session")
def transformer_spec(task_files: Path) -> str:
    return f"{task_files / 'transformer.py'}:task"


@pytest.fixture(scope="session")
def cnn_task(cnn_spec: str):
    from autocompress import load_task

    return load_task(cnn_spec)


@pytest.fixture(scope="session")
def transformer_task(transformer_spec: str):
    from autocompress import load_task

    return load_task(transformer_spec)
