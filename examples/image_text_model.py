"""Compress a model of pictures and texts, whose two towers have rules of their own.

The pictures are coloured bars and the texts name them. The model embeds both.

python examples/image_text_model.py --trials 40 --out reports/pairs
"""

import argparse

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

import autocompress as ac


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(784, 32)
        )
        self.text = nn.Sequential(nn.Embedding(16, 16), nn.Flatten(), nn.Linear(32, 32))

    def forward(self, pixel_values, input_ids):  # (n, 64): picture, then text
        return torch.cat([normalize(self.vision(pixel_values)), normalize(self.text(input_ids))], 1)


def contrastive(outputs, labels):
    pictures, texts = outputs.chunk(2, 1)
    same = (labels[:, None] == labels).float()
    return cross_entropy(10 * pictures @ texts.T, same / same.sum(1, keepdim=True))


def recall(outputs, labels):  # the share of pictures whose nearest text is a right one
    pictures, texts = outputs.chunk(2, 1)
    return float((labels[(pictures @ texts.T).argmax(1)] == labels).float().mean())


def batch(seed):
    draw = torch.Generator().manual_seed(seed)
    colours, rows = (torch.randint(0, n, (64,), generator=draw) for n in (3, 8))
    pictures = 0.5 * torch.rand(64, 3, 16, 16, generator=draw)
    for picture, colour, row in zip(pictures, colours, rows, strict=True):
        picture[colour, 2 * row : 2 * row + 2] += 0.5
    words = torch.stack([colours, 8 + rows], 1)
    return {"pixel_values": pictures, "input_ids": words}, 8 * colours + rows


def task(steps=100):
    torch.manual_seed(0)
    model, train = Pairs(), [batch(seed) for seed in range(8)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(steps):
        inputs, labels = train[step % 8]
        optimizer.zero_grad()
        contrastive(model(**inputs), labels).backward()
        optimizer.step()
    return ac.Task(
        "pairs",
        model.eval(),
        example_inputs={name: tensor[:1] for name, tensor in batch(0)[0].items()},
        validation=[batch(100), batch(101)],
        metric=recall,
        loss=contrastive,
        divergence=lambda student, teacher: 1 - cosine_similarity(student, teacher),
        train=train,
        towers={"vision": ["vision.*"], "text": ["text.*"]},
    )


VISION = {"tower": "vision", "weight_bits": [4, 8], "activation_bits": 8, "pruning_ratio": [0, 0.5]}
SPACE = {"modules": [VISION, {"tower": "text", "weight_bits": [3, 4, 8]}]}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--out", default="reports/pairs")
    options = parser.parse_args()
    result = ac.search(task(), SPACE, n_trials=options.trials, out=options.out)
    for point in result.front:
        print(point.trial, point.measured.size_bytes, point.measured.accuracy)
