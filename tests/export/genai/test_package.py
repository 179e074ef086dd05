"""Files beside a model.onnx that make a package."""

from __future__ import annotations

import json
from pathlib import Path

from autocompress.export.genai.package import program, with_sounds, with_towers, write_package
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


def test_a_package_of_pictures_has_a_file_per_tower_and_its_processor(tmp_path: Path) -> None:
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    language = {"decoder": {"filename": "model.onnx", "inputs": inputs, "session_options": {}}}
    text = with_towers(json.dumps({"model": language}), 4)
    model = json.loads(text)["model"]
    towers = ("vision", "embedding", "decoder")
    assert [model[name]["filename"] for name in towers] == [f"model.{name}.onnx" for name in towers]
    assert "input_ids" not in model["decoder"]["inputs"]
    origin, folder = tmp_path / "origin", tmp_path / "point"
    origin.mkdir()
    folder.mkdir()
    names = ("config.json", "preprocessor_config.json", "README.md")
    for name in names:
        (origin / name).write_text("{}")
    known = Pretrained(str(origin), "image-text-to-text", "accuracy", (), dict.fromkeys(names, ""))
    write_package(folder, {"genai_config.json": text}, known, SessionSettings())
    assert {file.name for file in folder.iterdir()} == {"genai_config.json", *names[:2]}
    lines = program(json.loads(text), ["inputs = {}"])
    assert lines[:2] == ("import onnxruntime_genai as genai", "inputs = {}")
    assert any("(tokens == 4).sum()" in line for line in lines)


def test_embeddings_with_a_channel_of_parts_are_one_number_wider() -> None:
    decoder = {"filename": "", "inputs": {}, "session_options": {}, "hidden_size": 64}
    for marked in (False, True):
        text = with_towers(json.dumps({"model": {"decoder": decoder}}), 4, marked)
        assert json.loads(text)["model"]["decoder"]["hidden_size"] == 64 + marked


def test_a_package_of_sounds_has_two_files_and_settings_for_both(tmp_path: Path) -> None:
    towers = {
        name: {"session_options": {}, "inputs": {}, "outputs": {}}
        for name in ("encoder", "decoder")
    }
    text = with_sounds(json.dumps({"model": {**towers, "context_length": 448}}))
    write_package(tmp_path, {"genai_config.json": text}, None, SessionSettings(threads=2))
    model = json.loads((tmp_path / "genai_config.json").read_text())["model"]
    for name in towers:
        assert model[name]["filename"] == f"model.{name}.onnx"
        assert model[name]["session_options"]["intra_op_num_threads"] == 2
    cross = model["encoder"]["outputs"]["cross_present_key_names"]
    assert (
        cross.replace("present", "past_key_values")
        == (model["decoder"]["inputs"]["cross_past_key_names"])
    )
    lines = program(json.loads(text))
    assert any("max_length=448" in line for line in lines)
    assert lines[-1] == "print(tokenizer.decode(written, skip_special_tokens=True))"
    assert not any("num_image_tokens" in line for line in lines)


def test_other_files_need_none(tmp_path: Path) -> None:
    write_package(tmp_path, {}, None, SessionSettings())
    assert list(tmp_path.iterdir()) == []
