"""optimum and sentence-transformers load exported folders, in an environment of their own.

optimum-onnx 0.1 needs an older transformers than this package. AUTOCOMPRESS_OPTIMUM names the
Python of an environment that has it; without it one is made, which needs PyPI.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_exports import SOURCES, searched

import autocompress as ac

pytestmark = [pytest.mark.slow, pytest.mark.extensive]
NEEDED = ["optimum-onnx[onnxruntime]==0.1.*", "sentence-transformers>=5", "pillow", "scipy"]
CHECK = Path(__file__).parents[2] / "optimum_check.py"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    given = os.environ.get("AUTOCOMPRESS_OPTIMUM")
    if given:
        return given
    place = tmp_path_factory.mktemp("optimum")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    own = str(place / ("Scripts" if os.name == "nt" else "bin") / "python")
    version = str(torch.__version__).partition("+")[0]
    command = [own, "-m", "pip", "install", "--quiet", f"torch=={version}", *NEEDED]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        why = made.stderr.strip().splitlines()[-1:]
        pytest.skip(f"optimum cannot be installed, or there is no network: {why}")
    return own


@pytest.mark.parametrize("kind", SOURCES)
def test_the_ecosystem_loads_exports(kind: str, python: str, tmp_path: Path) -> None:
    _, result = searched(kind, tmp_path)
    point = result.front.smallest()
    to = ac.export(result, point, tmp_path / "best")
    from PIL import Image
    from scipy.io import wavfile

    Image.new("RGB", (20, 30)).save(to / "picture.png")
    wavfile.write(to / "sound.wav", 1000, torch.zeros(200, dtype=torch.int16).numpy())
    data = next(path for path in tmp_path.iterdir() if path.suffix in (".jsonl", ".txt"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [python, str(CHECK), str(to), kind, str(data)],
        capture_output=True,
        text=True,
        env={**environment, "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    metric = json.loads(run.stdout.splitlines()[-1])["metric"]
    if metric is not None:
        assert metric == pytest.approx(point.measured.accuracy, abs=1e-4)
