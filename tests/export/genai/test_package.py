"""Files beside a model.onnx that make a package."""

from __future__ import annotations

import json
from pathlib import Path

from autocompress.export.genai.package import write_package
from autocompress.targets.device.sessions import SessionSettings
from autocompress.task.task import Pretrained

PAPERS = {"genai_config.json": json.dumps({"model": {"decoder": {"session_options": {"a": 1}}}})}


def test_a_package_has_the_settings_and_the_tokenizer(tmp_path: Path) -> None:
    origin, folder = tmp_path / "origin", tmp_path / "point"
    origin.mkdir()
    folder.mkdir()
    names = ("config.json", "tokenizer.json", "modeling.py")
    for name in names:
        (origin / name).write_text("{}")
    known = Pretrained(str(origin), "text-generation", "perplexity", (), dict.fromkeys(names, ""))
    settings = SessionSettings(threads=2, disabled_optimizers=("One", "Two"))
    write_package(folder, PAPERS, known, settings)
    assert {file.name for file in folder.iterdir()} == {"genai_config.json", "tokenizer.json"}
    config = json.loads((folder / "genai_config.json").read_text())
    assert config["model"]["decoder"]["session_options"] == {
        "a": 1,
        "intra_op_num_threads": 2,
        "session.intra_op.allow_spinning": "1",
        "optimization.disable_specified_optimizers": "One;Two",
    }


def test_other_files_need_none(tmp_path: Path) -> None:
    write_package(tmp_path, {}, None, SessionSettings())
    assert list(tmp_path.iterdir()) == []
