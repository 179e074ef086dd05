"""Run each example as a user does, with few trials."""

from __future__ import annotations

import ast
import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_folders import SPECIAL, WORDS, bert, save, texts, tokenizer, transformers

from autocompress.cli.main import main

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
MOST_LINES = 85
UNTRAINED = "modules: [{match: '*', weight_bits: [4, 8]}]"
LONE = 0.9  # least accuracy of a float model that learned its task


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter an empty folder that holds a space without training."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(UNTRAINED)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> dict:
    """Run an example with two trials, and return the content of front.json."""
    words = [name, *arguments, "--trials", "2", "--out", "run"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    data = json.loads(Path("run/front.json").read_text())
    assert data["points"]
    assert all(point["size_bytes"] < data["baseline"]["size_bytes"] for point in data["points"])
    return data


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("image_classifier.py", "--space space.yaml"),
        ("image_text_model.py", ""),
        ("lstm.py", ""),
        ("microcontroller.py", "--space space.yaml --max-size 60% --max-memory 50%"),
        ("two_metrics.py", ""),
        ("ray_workers.py", "--space space.yaml --workers 1"),
        pytest.param(
            *("ray_workers.py", "--space space.yaml --workers 2"), marks=pytest.mark.extensive
        ),
    ],
)
def test_networks(name: str, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = run(monkeypatch, name, *arguments.split())
    assert data["baseline"]["accuracy"] > LONE
    if name == "image_classifier.py":
        assert Path("run/best/model.onnx").is_file()
    if name == "two_metrics.py":
        assert data["objectives"] == ["recall of 8"]
    if name == "microcontroller.py":
        assert data["points"][0]["latency_source"] == "analytic"
        assert data["points"][0]["size_bytes"] < 0.6 * data["baseline"]["size_bytes"]


def test_sentence_encoder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(Path("my-encoder"), transformers.BertModel(bert()), tokenizer())
    lines = texts(40)
    Path("sentences.txt").write_text("\n".join(lines))
    arguments = ("my-encoder", "sentences.txt", "--space", "space.yaml")
    data = run(monkeypatch, "sentence_encoder.py", *arguments)
    assert data["baseline"]["accuracy"] == pytest.approx(1, abs=1e-4), "the cosine to itself"
    assert folder.is_dir()
    assert lines[0][:40] in capsys.readouterr().out


def test_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes |= {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes, **heads)
    save(Path("my-model"), transformers.LlamaForCausalLM(config), tokenizer())
    Path("plays.txt").write_text("\n".join(texts(120)))
    arguments = ("my-model", "plays.txt", "--window", "16", "--space", "space.yaml")
    data = run(monkeypatch, "language_model.py", *arguments)
    assert data["baseline"]["accuracy"] < -1, "a negative perplexity"
    assert Path("run/best/tokenizer.json").is_file()


def test_another_device(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    places = {"probes": here / "probes", "probes/measured.json": here / "probes/measured.json"}
    places |= {"probes/measure.pyz": here / "probes/measure.pyz", "reports/device": here / "run"}
    places |= {"cnn": here / "space.yaml"}
    done = []
    for line in (EXAMPLES / "another_device.sh").read_text().splitlines():
        program, *rest = shlex.split(line, comments=True) or ["set"]
        words = [str(places.get(word, word)) for word in rest]
        if program == "python":
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            measured = json.loads(places["probes/measured.json"].read_text())
            measured["versions"]["processor"] = "that of the device"
            places["probes/measured.json"].write_text(json.dumps(measured))
        elif program == "autocompress":
            more = ["--trials", "2"] if words[0] == "search" else []
            with pytest.raises(SystemExit) as caught:
                main([*words, *more])
            assert not caught.value.code
        done.append(program)
    assert done.count("autocompress") == 2
    assert json.loads((here / "run/run.json").read_text())["latency_source"] == "table"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_they_are_short_and_use_public_names(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(text))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("autocompress"), "import autocompress as ac"


def test_the_list_names_all() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for path in [*SCRIPTS, *EXAMPLES.glob("*.sh")]:
        assert f"| `{path.name}` |" in listed
