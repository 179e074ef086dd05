"""Run the code that the documentation shows, and check its links."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress.arguments import build_parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(DOCS.rglob("*.md")),
]
README_BYTES, README_COLUMNS = 12 * 1024, 120
SMALL = 'n_trials=2, space={"modules": [{"match": "*", "weight_bits": [4, 8]}]}'


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language, "" for those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [code for name, code in fenced if name == language]


def run(code: str, name: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "shown", "ac": ac}
    exec(compile(code, name, "exec"), names)
    return names


def test_free_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(DOCS / "free_shapes.md", "python")
    monkeypatch.chdir(tmp_path)
    run(code, "free_shapes.md")
    shape, outputs, latency = [line for line in capsys.readouterr().out.splitlines() if line][-3:]
    assert shape == "['batch', 3, 'height', 'width']"
    assert outputs == "(5, 4)"
    assert float(latency) > 0


@pytest.fixture
def shown_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the README's my_task.py to the current folder, a new one."""
    monkeypatch.chdir(tmp_path)
    Path("my_task.py").write_text(blocks(ROOT / "README.md", "python")[1])


@pytest.mark.usefixtures("shown_task")
def test_readme_search() -> None:
    code = blocks(ROOT / "README.md", "python")[0]
    assert "n_trials=40" in code
    names = run(code.replace("n_trials=40", SMALL), "README.md")
    result = names["result"]
    assert isinstance(result, ac.SearchResult)
    assert len(result.front) > 0
    assert Path("again/model.onnx").read_bytes() == Path("best/model.onnx").read_bytes()


@pytest.mark.skipif(not hasattr(ac, "export_onnx"), reason="compress and export_onnx are not merged yet")
@pytest.mark.usefixtures("shown_task")
def test_readme_without_a_search() -> None:
    names = run(blocks(ROOT / "README.md", "python")[2], "README.md")
    module, task = names["module"], names["task"]
    assert isinstance(module, nn.Module)
    assert isinstance(task, ac.Task)
    images = torch.rand(4, 3, 8, 8)
    session = onnxruntime.InferenceSession("compressed.onnx", providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(outputs, module(images), atol=1e-2)
        assert not np.allclose(outputs, task.model(images), atol=1e-5)


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= README_BYTES
    assert [line for line in text.splitlines() if len(line) > README_COLUMNS] == []


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, part = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if part:
            assert part in map(anchor, re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)), link


def test_every_page_is_linked() -> None:
    """Every page can be reached from the README."""
    reached, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text())
        new |= {(page.parent / link).resolve() for link in links if "://" not in link} - reached
    assert set(PAGES) <= reached


def test_benchmark_pages_name_benchmarks() -> None:
    for page in (DOCS / "benchmarks").glob("*.md"):
        for name in re.findall(r"python -m benchmarks\.(\w+)", page.read_text()):
            assert name == "NAME" or (ROOT / "benchmarks" / f"{name}.py").exists(), f"{page}: {name}"


@pytest.mark.parametrize("name", ["README.md", "docs/search.md", "docs/targets.md", "docs/tasks.md", "docs/workers.md"])
def test_commands_and_options_exist(name: str) -> None:
    text, code = (ROOT / name).read_text(), "".join(blocks(ROOT / name, ""))
    (commands,) = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]
    assert set(re.findall(r"^autocompress ([a-z-]+)", code, re.MULTILINE)) <= set(commands)
    options = {option for command in commands.values() for action in command._actions for option in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= options


def test_every_option_of_search_is_documented() -> None:
    (commands,) = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]
    text = (DOCS / "search.md").read_text()
    for action in commands["search"]._actions:
        for option in action.option_strings:
            assert option in ("-h", "--help") or f"`{option}" in text, option
