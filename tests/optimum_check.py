"""Run an exported folder with optimum and sentence-transformers, in an environment that has them.

`python optimum_check.py FOLDER KIND DATA` runs the programs of the card, compares what they compute
with the file, and prints the metric of the data where a pipeline gives it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from optimum.onnxruntime import ORTConfig


def same_outputs(names: dict, session: onnxruntime.InferenceSession) -> None:
    """Compare the outputs of optimum's model with those of the file, on the program's inputs."""
    feed = {value.name: names["inputs"][value.name].numpy() for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]
    expected = dict(zip(outputs, session.run(None, feed), strict=True))
    shared = [name for name in names["outputs"] if name in expected]
    assert shared, f"optimum gives {list(names['outputs'])}, the file {outputs}"
    for name in shared:
        np.testing.assert_allclose(names["outputs"][name].numpy(), expected[name], atol=1e-4)


def accuracy(names: dict, rows: list[dict]) -> float:
    """Return the share of texts to which the pipeline gives their label."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=names["model"], tokenizer=names["tokenizer"])
    right = [classify(row["text"])[0]["label"] == row["label"] for row in rows]
    return sum(right) / len(right)


def spearman(names: dict, rows: list[dict]) -> float:
    """Return the correlation of scores with cosines of sentence-transformers' embeddings."""
    from scipy import stats

    first, second = [
        names["model"].encode([row[part] for row in rows], normalize_embeddings=True)
        for part in ("sentence1", "sentence2")
    ]
    return float(stats.spearmanr((first * second).sum(1), [row["score"] for row in rows]).statistic)


def main(folder: str, kind: str, data: str) -> None:
    """Run all programs of a card but the first, and print the metric as JSON."""
    rows = Path(data).read_text().splitlines()
    os.chdir(folder)
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    config = ORTConfig.from_pretrained(".")
    assert config.optimization is config.quantization is None
    _, optimum, *others = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)
    names: dict = {}
    exec(optimum, names)
    same_outputs(names, session)
    metric = None
    if kind == "text-classification":
        metric = accuracy(names, [json.loads(row) for row in rows])
    for program in others:
        names = {}
        exec(program, names)
        metric = spearman(names, [json.loads(row) for row in rows])
    print(json.dumps({"metric": metric}))


if __name__ == "__main__":
    main(*sys.argv[1:])
