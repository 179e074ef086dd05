"""Run the code that the documentation shows, and check its links."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress.cli.arguments import build_parser

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
README_BYTES, README_COLUMNS = 8 * 1024, 120
SMALL = 'n_trials=2, space={"modules": [{"match": "*", "weight_bits": [8, 16]}]}'
SHOWN = [README, *sorted(DOCS.glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language, "" for those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [code for name, code in fenced if name == language]


def run(code: str, name: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "shown", "ac": ac}
    exec(compile(code, name, "exec"), names)
    return names


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = [a.choices for a in build_parser()._actions if isinstance(a.choices, dict)]
    return choices


def options(command: argparse.ArgumentParser) -> set[str]:
    return {option for action in command._actions for option in action.option_strings}


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shown_task(empty_folder: None) -> None:
    """Write the README's my_task.py to the current folder, an empty one."""
    Path("my_task.py").write_text(blocks(README, "python")[1])


@pytest.mark.slow
@pytest.mark.usefixtures("empty_folder")
def test_free_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(DOCS / "free_shapes.md", "python")
    run(code, "free_shapes.md")
    shape, outputs, latency = [line for line in capsys.readouterr().out.splitlines() if line][-3:]
    assert shape == "['batch', 3, 'height', 'width']"
    assert outputs == "(5, 4)"
    assert float(latency) > 0


@pytest.mark.usefixtures("shown_task")
@pytest.mark.slow
def test_readme_search() -> None:
    code = blocks(README, "python")[0]
    assert "n_trials=40" in code
    result = run(code.replace("n_trials=40", SMALL), "README.md")["result"]
    assert isinstance(result, ac.SearchResult)
    assert result.front.most_accurate().measured.accuracy > 0.995
    assert Path("again/model.onnx").read_bytes() == Path("best/model.onnx").read_bytes()


@pytest.mark.usefixtures("shown_task")
@pytest.mark.slow
def test_readme_without_a_search() -> None:
    names = run(blocks(README, "python")[2], "README.md")
    module, task = names["module"], names["task"]
    assert isinstance(module, nn.Module)
    assert isinstance(task, ac.Task)
    images = torch.rand(4, 3, 8, 8)
    session = onnxruntime.InferenceSession("compressed.onnx", providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(outputs, module(images), atol=1e-4)
        assert not np.allclose(outputs, task.model(images), atol=1e-3)


def test_readme_is_short() -> None:
    text = README.read_text()
    assert len(text.encode()) <= README_BYTES
    assert [line for line in text.splitlines() if len(line) > README_COLUMNS] == []


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, part = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if part:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert part in [anchor(heading) for heading in headings], link


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    new = {README}
    while new:
        page = new.pop()
        reached.add(page)
        for link in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text()):
            target = (page.parent / link).resolve()
            if "://" not in link and target not in reached:
                new.add(target)
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", sorted((DOCS / "benchmarks").glob("*.md")), ids=title)
def test_benchmark_pages_name_benchmarks(page: Path) -> None:
    names = set(re.findall(r"python -m benchmarks\.([a-z_]+)", page.read_text()))
    assert names <= {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    if page.stem not in ("README", "demo"):
        assert page.stem in names


@pytest.mark.parametrize("page", SHOWN, ids=title)
def test_commands_and_options_exist(page: Path) -> None:
    code = "".join(blocks(page, ""))
    assert set(re.findall(r"^autocompress ([a-z][a-z-]*)", code, re.MULTILINE)) <= set(commands())
    known = options(build_parser()).union(*map(options, commands().values()))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text())) <= known


def test_every_option_of_search_is_documented() -> None:
    text = (DOCS / "search.md").read_text() + (DOCS / "huggingface.md").read_text()
    missing = [option for option in options(commands()["search"]) if f"`{option}" not in text]
    assert set(missing) <= {"-h", "--help"}


def test_files_of_the_architecture_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)`", (DOCS / "architecture.md").read_text())
    assert len(named) > 20
    package, here = Path(ac.__file__).parent, ""
    for name in named:
        places = [package / name, package / here / name, ROOT / name, ROOT / "benchmarks" / name]
        assert any(place.is_file() for place in places), name
        here = str(Path(name).parent) if "/" in name else here
