"""Train a transformer that says which of three words is the most frequent."""

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
    return list(zip(x.split(32), y.split(32), strict=True))


def task():
    torch.manual_seed(0)
    model, data = Tagger(), batches(512, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(8):
        for x, y in data:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Task(
        "words",
        model.eval(),
        torch.randint(0, 20, (1, 12)),
        batches(192, 2),
        lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean()),
        train=data,
    )
