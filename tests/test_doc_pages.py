"""Run the blocks of the documentation's pages, and check that each key and name is on its page."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import autocompress as ac
from autocompress.cli.main import main
from autocompress.measure.prepare import prepared
from autocompress.space.axes import AXES, NAMED, choices_of
from autocompress.space.keys import CONSTRAINTS, KEYS
from autocompress.space.recovery import KEYS as RECOVERY_KEYS
from autocompress.space.rules import MATCHERS
from autocompress.space.search_space import SearchSpace
from autocompress.targets import figures as device_figures
from autocompress.targets import target as targets

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# What a block of Python needs that no other block says, by page; blocks of other pages are run by
# the named test.
RUN_ELSEWHERE = {"free_shapes.md": "tests/test_docs.py searches"}
SHORT = "--trials 2 --finalize-steps 0 --space space.yaml"
SPACE = "modules: [{match: '*', weight_bits: [4, 8]}]"
WORDS = {
    "a fine film": "positive",
    "a dull film": "negative",
    "so fine": "positive",
    "not my film": "negative",
}


def title(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def blocks(page: str | Path, language: str = "") -> list[str]:
    text = (DOCS / page).read_text()
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [code for name, code in fenced if name == language]


def rows(page: str) -> list[list[str]]:
    """Return the cells of all rows of the tables of a page."""
    lines = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def commands(page: str) -> list[list[str]]:
    """Return the arguments of each autocompress command of a page, with joined lines."""
    text = "".join(blocks(page)).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("autocompress ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def first(cell: str) -> str:
    return cell.split("`")[1]


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_blocks_of_yaml_are_spaces_or_targets(page: Path) -> None:
    for code in blocks(page, "yaml"):
        data = yaml.safe_load(code)
        if "runtime" in data:
            assert targets.parse_target("shown", data).runtime == data["runtime"]
            continue
        space = SearchSpace.load(data)
        for rule in space.rules:
            for key in set(rule) - set(MATCHERS):
                assert choices_of("shown", key, rule[key], targets.find_target("onnxruntime-cpu"))


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_lists_and_tables_begin_after_a_blank_line(page: Path) -> None:
    """GitHub needs none, the site does."""
    code, before = False, ""
    for line in page.read_text().splitlines():
        code ^= line.startswith("```")
        begins = re.match(r"- |\d+\. |\|", line) and not re.match(r"- |\d+\. |\|| |#|$", before)
        assert code or not begins, f"{before!r} then {line!r}"
        before = line


@pytest.mark.parametrize("page", [p for p in PAGES if title(p) not in RUN_ELSEWHERE], ids=title)
def test_blocks_of_python_are_python(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, title(page), "exec")


def test_every_key_of_a_space_is_explained() -> None:
    found = {first(row[0]): row for row in rows("search_spaces.md") if len(row) == 3}
    text = (DOCS / "search_spaces.md").read_text()
    for name in AXES:
        assert sum(line.startswith(f"| `{name}` |") for line in text.splitlines()) == 2, name
        ((key, value),) = yaml.safe_load(first(found[name][1])).items()
        assert key == name
        assert choices_of("shown", key, value, targets.find_target("onnxruntime-cpu"))
        assert found[name][2], name
    for name in (*KEYS, *CONSTRAINTS):
        assert f"| `{name}` |" in text, name
    (whole,) = [code for code in blocks("search_spaces.md", "yaml") if "calibration" in code]
    assert set(yaml.safe_load(whole)) == set(KEYS)
    assert {key for rule in yaml.safe_load(whole)["modules"] for key in rule} >= set(MATCHERS)
    for axis, values in NAMED.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{axis}` | ")][:1]
        assert all(value in row for value in values), axis


def test_every_key_of_recovery_is_explained() -> None:
    explained = {name for row in rows("recovery.md") for name in re.findall(r"`(\w+)`", row[0])}
    assert set(RECOVERY_KEYS) <= explained


def test_every_key_of_a_target_is_shown() -> None:
    shown: dict[str, set[str]] = {}
    for data in map(yaml.safe_load, blocks("targets.md", "yaml")):
        for key, value in data.items():
            shown.setdefault(key, set()).update(value if isinstance(value, dict) else ())
    assert set(shown) == set(targets.KEYS)
    assert shown["device"] == set(device_figures.FIGURES)
    source = Path(targets.__file__).read_text()
    read = set(re.findall(r'(?:stores|executes)\.get\("(\w+)"', source))
    assert shown["stores"] | shown["executes"] == read


def test_the_api_page_has_all_public_names() -> None:
    names = re.findall(r"^::: autocompress\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(ac.__all__)


def test_figures_are_those_of_their_script() -> None:
    drawn = runpy.run_path(str(DOCS / "figures" / "draw.py"))["figures"]()
    files = {path.name: path.read_text() for path in (DOCS / "figures").glob("*.svg")}
    assert files == drawn


def test_a_metric_that_accumulates() -> None:
    (shown,) = [code for code in blocks("tasks.md", "python") if "compute" in code]
    code = "".join(line for line in shown.splitlines(True) if "MulticlassF1Score" not in line)
    names: dict[str, Any] = {}
    exec(compile(code, "tasks.md", "exec"), names)
    judge = names["metric"]()
    judge.update(torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long))
    assert judge.compute() == pytest.approx(-5)


def test_a_whole_task() -> None:
    (code,) = [code for code in blocks("tasks.md", "python") if "ac.Task" in code]
    names: dict[str, Any] = {}
    exec(compile(code, "tasks.md", "exec"), names)
    assert len(prepared(names["task"](samples="100")).validation) == 2


def test_a_view_has_the_shape_of_its_batch() -> None:
    names: dict[str, Any] = {"torch": torch}
    exec(compile(blocks("recovery.md", "python")[0], "recovery.md", "exec"), names)
    assert names["augment"](torch.rand(4, 3, 10, 12)).shape == (4, 3, 10, 12)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the tutorial's model folder and data to an empty folder, and enter it."""
    from small_folders import bert, tokenizer, transformers, write_jsonl

    place = tmp_path_factory.mktemp("reviews")
    words = tokenizer()
    words.add_tokens(sorted({word for text in WORDS for word in text.split()}))
    config = bert(id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1})
    config.vocab_size = len(words)
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    texts, labels = list(WORDS), [config.label2id[label] for label in WORDS.values()]
    inputs = words(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(20):
        optimizer.zero_grad()
        logits = model.train()(**inputs).logits
        nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
        optimizer.step()
    for one in (model.eval(), words):
        one.save_pretrained(place / "my-model")
    lines = [{"text": text, "label": label} for text, label in WORDS.items()] * 6
    for name in ("train", "dev", "test"):
        write_jsonl(place / f"{name}.jsonl", lines)
    (place / "space.yaml").write_text(SPACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield place


@pytest.mark.slow
def test_the_tutorial(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = []
    for arguments in commands("tutorial.md"):
        if arguments[0] == "search":
            place = arguments.index("--timeout")
            arguments[place : place + 2] = SHORT.split()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert not caught.value.code, (arguments, capsys.readouterr().err)
        done.append(arguments[0])
    assert done == [
        *("--version", "inspect", "search", "front", "export", "evaluate", "bench", "reproduce"),
    ]
    data = json.loads((reviews / "reports/reviews/front.json").read_text())
    assert data["baseline"]["test_accuracy"] == 1
    capsys.readouterr()
    (code,) = blocks("tutorial.md", "python")
    exec(compile(code, "tutorial.md", "exec"), {})
    assert capsys.readouterr().out == "[1 0]\n"
    assert {path.name for path in (reviews / "best").iterdir()} >= {"model.onnx", "README.md"}
