"""Exported folders: which files they hold, and the program in the card runs there."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from scipy.io import wavfile
from small_exports import ANSWERING, FURTHER, RATE, SAMPLES, SIDE, SOURCES, SPEECH_RATE
from small_folders import SPECIAL, WORDS

from autocompress import Candidate, FrontPoint, Measurement, ModuleConfig
from autocompress.errors import ExportError
from autocompress.export.artifact import RECIPE_FORMAT, write_model
from autocompress.huggingface.folder import open_folder
from autocompress.huggingface.options import Options
from autocompress.huggingface.out.files import digests
from autocompress.huggingface.out.lines import DECODED, LINES, WRITTEN
from autocompress.huggingface.out.write import write_point
from autocompress.targets.device.sessions import SessionSettings

images = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
BASE = Measurement(1000, 2.0, 0.9, 0.89, {"f1": 0.8}, True, 4000)
MEASURED = Measurement(250, 0.5, 0.875, None, {"f1": 0.75}, True, 2000)
CONFIGS = {
    "layer.0.query": ModuleConfig(4),
    "layer.1.query": ModuleConfig(4),
    "head": ModuleConfig(8),
    "key": ModuleConfig(8, 8, group_size=32),
    "table": ModuleConfig(5, 8),
}
POINT = FrontPoint(7, Candidate.of(CONFIGS), MEASURED, MEASURED, "models/0007")
PICTURE = ("batch", 3, SIDE, SIDE)
TOKENS = {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}
TEXT_SO_FAR = {WRITTEN: ("batch", "written")}
INPUTS = {
    "image-classification": {"pixel_values": PICTURE},
    "zero-shot-image-classification": {**TOKENS, "pixel_values": PICTURE},
    "image-segmentation": {"pixel_values": PICTURE},
    "audio-classification": {"input_values": ("batch", SAMPLES)},
    "automatic-speech-recognition": {"input_values": ("batch", SAMPLES)},
    "object-detection": {"pixel_values": PICTURE},
    "visual-question-answering": {**TOKENS, "pixel_values": PICTURE},
    "text2text-generation": {**TOKENS, **TEXT_SO_FAR},
    "image-to-text": {"pixel_values": PICTURE, **TEXT_SO_FAR},
    "transcription": {"input_features": ("batch", 8, 100), **TEXT_SO_FAR},
    "image-text-to-text": {**TOKENS, "pixel_values": ("batch", 3, 32, 32), **TEXT_SO_FAR},
}
OF_WORDS = ("fill-mask", "text-generation", "token-classification")
NEXT = 24  # a decoder's next token is that many behind the last one
# An object in the middle of a picture, as logits of two classes and of none, and as a box.
OBJECT = {"class_logits": [4, 0, 0], "pred_boxes": [0.5, 0.5, 0.25, 0.25]}


def task_of(kind: str) -> str:
    return "automatic-speech-recognition" if kind == "transcription" else kind


def graph(kind: str) -> Any:
    """Return a graph with the inputs and outputs of a kind of task, and few operators."""
    inputs, nodes, outputs = [], [], []
    shapes = INPUTS.get(kind, TOKENS)
    for name, shape in shapes.items():
        is_text = name in TOKENS or name == WRITTEN
        number = TensorProto.INT64 if is_text else TensorProto.FLOAT
        inputs.append(helper.make_tensor_value_info(name, number, shape))
    words = 3 if kind == "token-classification" else len(SPECIAL) + len(WORDS)
    constants = [
        numpy_helper.from_array(np.array(words, np.int64), "words"),
        numpy_helper.from_array(np.array(NEXT, np.int64), "next"),
        numpy_helper.from_array(np.array([0, 1], np.float32), "off_on"),
        numpy_helper.from_array(np.array([0, -1], np.int64), "rows"),
        numpy_helper.from_array(np.array([1], np.int64), "last"),
    ]
    first = next(iter(shapes))
    nodes.append(helper.make_node("Cast", [first], ["floats"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Reshape", ["floats", "rows"], ["flat"]))
    nodes.append(helper.make_node("ReduceMean", ["flat", "last"], ["mean"]))
    nodes.append(helper.make_node("Neg", ["mean"], ["other"]))
    nodes.append(helper.make_node("Sub", ["mean", "mean"], ["zero"]))
    if WRITTEN in shapes:
        nodes.append(helper.make_node("Add", [WRITTEN, "next"], ["later"]))
        nodes.append(helper.make_node("Mod", ["later", "words"], ["known"]))
    elif "input_ids" in shapes:
        nodes.append(helper.make_node("Mod", ["input_ids", "words"], ["known"]))
    for name in (DECODED if WRITTEN in shapes else LINES)[task_of(kind)].outputs:
        if kind in OF_WORDS or WRITTEN in shapes:
            nodes.append(helper.make_node("OneHot", ["known", "words", "off_on"], [name]))
        elif kind == "question-answering":
            nodes.append(helper.make_node("Identity", ["floats"], [name]))
        elif kind == "automatic-speech-recognition":  # of one frame
            nodes.append(helper.make_node("Concat", ["mean", "other"], ["pair"], axis=1))
            nodes.append(helper.make_node("Unsqueeze", ["pair", "last"], [name]))
        elif kind == "object-detection":
            row = np.array([OBJECT[name]], np.float32)
            constants.append(numpy_helper.from_array(row, f"{name}_row"))
            nodes.append(helper.make_node("Add", ["zero", f"{name}_row"], [f"{name}_rows"]))
            nodes.append(helper.make_node("Unsqueeze", [f"{name}_rows", "last"], [name]))
        else:
            nodes.append(helper.make_node("Concat", ["mean", "other"], [name], axis=1))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    made = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run_folder(place: Path, kind: str) -> tuple[Path, Path]:
    """Write a model folder, and the folder of a run with one point."""
    place.mkdir(exist_ok=True)
    folder, run = {**SOURCES, **FURTHER, **ANSWERING}[kind](place).folder, place / "run"
    task = task_of(kind)
    source = run / POINT.artifact
    write_model(source, graph(kind))
    (source / "model.safetensors").write_bytes(b"weights")
    (source / "README.md").write_text("old")
    files = digests(open_folder(Options(str(folder), task=task)))
    recipe = {
        "format": RECIPE_FORMAT,
        "portable": True,
        "origin": {
            "source": {
                "spec": "autocompress.huggingface.pretrained:from_pretrained",
                "arguments": {"folder": str(folder), "data": "/home/me/train.jsonl", "samples": 9},
            },
            "pretrained": {"folder": str(folder), "task": task, "metric": "m", "files": files},
        },
        "modules": {
            name: {"kind": "embedding" if name == "table" else "linear"} for name in CONFIGS
        },
        "kernels": {"integer_forms": {"key": "reduced"}},
        "session": asdict(SessionSettings(threads=2)) | {"disabled_optimizers": []},
    }
    (source / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    record = {"task": "model", "target": "onnxruntime-cpu", "seed": 3}
    asked = {"trials": 40, "timeout_s": 600.0, "max_size": "25%", "min_metric": {"f1": 0.5}}
    record |= {"space": {"file": "None"}, "asked": asked}
    (run / "run.json").write_text(json.dumps(record))
    return run, folder


def front_matter(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, flags=re.S)
    assert found is not None
    return dict(yaml.safe_load(found[1]))


OURS = {"model.onnx", "recipe.yaml", "model.safetensors", "README.md", "ort_config.json"}
TEXT = {"tokenizer.json", "tokenizer_config.json"}
FILES = {
    "image-classification": {"preprocessor_config.json"},
    "image-segmentation": {"preprocessor_config.json"},
    "audio-classification": {"preprocessor_config.json"},
    "automatic-speech-recognition": {"preprocessor_config.json", "tokenizer_config.json"}
    | {"vocab.json"},
    "zero-shot-image-classification": {*TEXT, "preprocessor_config.json"},
    "sentence-similarity": {*TEXT, "modules.json", "sentence_bert_config.json"}
    | {"1_Pooling/config.json"},
    "text-generation": {*TEXT, "generation_config.json"},
    "text2text-generation": {*TEXT, "generation_config.json"},
    "image-to-text": {*TEXT, "generation_config.json", "preprocessor_config.json"},
    "object-detection": {"preprocessor_config.json"},
    "visual-question-answering": {*TEXT, "preprocessor_config.json"},
    "transcription": {*TEXT, "generation_config.json", "preprocessor_config.json"},
}
SAID = {
    "automatic-speech-recognition": "\n",  # its transcript is empty
    "text2text-generation": "w19\n",
    "object-detection": "low 0.965 [7.5, 11.25, 12.5, 18.75]\n",
}


@pytest.mark.parametrize("kind", [*SOURCES, *FURTHER])
def test_a_folder_holds_what_the_program_in_its_card_needs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = run_folder(tmp_path, kind)
    to = tmp_path / "best"
    assert write_point(run, POINT, BASE, to) == []
    found = {p.relative_to(to).as_posix() for p in to.rglob("*") if p.is_file()}
    assert found == OURS | {"config.json"} | FILES.get(kind, TEXT)
    for name in found - OURS:
        own = json.loads((to / name).read_text())
        expected = json.loads((folder / name).read_text())
        if kind == "text-generation" and name in ("config.json", "generation_config.json"):
            expected["use_cache"] = False
        if name == "tokenizer_config.json" and "tokenizer.json" in found:
            assert expected["tokenizer_class"] == "TokenizersBackend"
            expected["tokenizer_class"] = "PreTrainedTokenizerFast"
            expected["model_input_names"] = ["input_ids", "attention_mask"]
        assert own == expected
    card = (to / "README.md").read_text()
    assert front_matter(card)["pipeline_tag"] == task_of(kind)
    shutil.rmtree(folder)  # the exported folder needs nothing else
    images.new("RGB", (20, 30)).save(to / "picture.png")
    rate = SPEECH_RATE if kind == "transcription" else RATE
    wavfile.write(to / "sound.wav", rate, np.zeros(SAMPLES // 2, np.int16))
    monkeypatch.chdir(to)
    programs = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    capsys.readouterr()
    exec(programs[0], {})
    said = capsys.readouterr().out
    assert said.strip() or kind in SAID
    assert said == SAID.get(kind, said)
    for program in programs[1:]:  # they need other libraries
        compile(program, "README.md", "exec")


@pytest.mark.parametrize("template", [True, False])
def test_the_program_of_a_card_answers_a_question_about_a_picture(
    template: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, folder = run_folder(tmp_path, "image-text-to-text")
    if not template:
        (folder / "chat_template.jinja").unlink()
        path = run / POINT.artifact / "recipe.yaml"
        recipe = yaml.safe_load(path.read_text())
        del recipe["origin"]["pretrained"]["files"]["chat_template.jinja"]
        path.write_text(yaml.safe_dump(recipe))
    to = tmp_path / "best"
    assert write_point(run, POINT, BASE, to) == []
    found = {path.name for path in to.iterdir()}
    papers = {"processor_config.json", "generation_config.json", "config.json"}
    papers |= {"chat_template.jinja"} if template else set()
    assert found == OURS | TEXT | papers
    images.new("RGB", (20, 30)).save(to / "picture.png")
    shutil.rmtree(folder)
    monkeypatch.chdir(to)
    card = (to / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    assert ("apply_chat_template" in program) == template
    capsys.readouterr()
    exec(program, {})
    assert capsys.readouterr().out.strip()


def test_the_card_tells_numbers_changes_and_the_command(tmp_path: Path) -> None:
    run, folder = run_folder(tmp_path, "text-classification")
    (folder / "README.md").write_text("---\nlicense: mit\ndatasets: [x]\n---\n# Model\n")
    write_point(run, POINT, BASE, tmp_path / "best")
    card = (tmp_path / "best" / "README.md").read_text()
    assert front_matter(card) == {
        "license": "mit",
        "library_name": "onnx",
        "pipeline_tag": "text-classification",
        "tags": ["onnx", "onnxruntime", "autocompress"],
    }
    for line in (
        "| size (bytes) | 1000 | 250 | 4.00x smaller |",
        "| m (validation) | 0.9000 | 0.8750 | |",
        "| f1 (validation) | 0.8000 | 0.7500 | |",
        "| `layer.*.query` (2) | weight_bits 4 |",
        "| `head` (1) | weight_bits 8 |",
        "| `key` (1) | weight_bits 7, activation_bits 8 |",
        "| `table` (1) | weight_bits 5 |",
        "autocompress search model --data train.jsonl --samples 9 --target onnxruntime-cpu "
        "--trials 40 --timeout 600s --max-size 25% --min-metric f1=0.5 --seed 3",
    ):
        assert line in card.splitlines()
    assert str(tmp_path) not in card


def test_a_model_of_a_hub_is_named_as_the_base(tmp_path: Path) -> None:
    run, folder = run_folder(tmp_path, "text-classification")
    cached = tmp_path / "models--owner--some-name" / "snapshots" / "0"
    cached.parent.mkdir(parents=True)
    shutil.move(folder, cached)
    path = run / POINT.artifact / "recipe.yaml"
    path.write_text(path.read_text().replace(str(folder), str(cached)))
    assert write_point(run, POINT, BASE, tmp_path / "best") == []
    matter = front_matter((tmp_path / "best" / "README.md").read_text())
    assert matter["base_model"] == "owner/some-name"
    assert matter["base_model_relation"] == "quantized"


def test_nothing_is_lost_with_the_model_folder(tmp_path: Path) -> None:
    run, folder = run_folder(tmp_path, "text-classification")
    shutil.rmtree(folder)
    (line,) = write_point(run, POINT, BASE, tmp_path / "best")
    assert line == (
        f"{tmp_path / 'best'}: lacks config.json, tokenizer.json, tokenizer_config.json of the "
        f"model folder {folder}, which is gone; nearest: copy them there, or put the model folder "
        "back and export again"
    )
    assert {p.name for p in (tmp_path / "best").iterdir()} == OURS


def test_points_of_other_tasks_are_copied_as_they_are(tmp_path: Path) -> None:
    run, _ = run_folder(tmp_path, "text-classification")
    path = run / POINT.artifact / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    for pretrained in ({}, {"pretrained": None}):
        recipe["origin"] = pretrained
        path.write_text(yaml.safe_dump(recipe))
        assert write_point(run, POINT, BASE, tmp_path / "best") == []
        assert {p.name for p in (tmp_path / "best").iterdir()} == OURS - {"ort_config.json"}
        assert (tmp_path / "best" / "README.md").read_text() == "old"


def test_passes_are_turned_off_with_optimum_too(tmp_path: Path) -> None:
    run, _ = run_folder(tmp_path, "text-classification")
    path = run / POINT.artifact / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    settings = replace(SessionSettings(), disabled_optimizers=("GeluFusionL2",))
    recipe["session"] = {**asdict(settings), "disabled_optimizers": ["GeluFusionL2"]}
    path.write_text(yaml.safe_dump(recipe))
    write_point(run, POINT, BASE, tmp_path / "best")
    card = (tmp_path / "best" / "README.md").read_text()
    assert "disabled_optimizers=['GeluFusionL2']" in card
    line = (
        'options.add_session_config_entry("optimization.disable_specified_optimizers", '
        '"GeluFusionL2")'
    )
    assert line in card.splitlines()


def test_the_model_folder_itself_is_not_written_to(tmp_path: Path) -> None:
    run, folder = run_folder(tmp_path, "text-classification")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ExportError, match="is the model folder itself"):
        write_point(run, POINT, BASE, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_towers_of_an_earlier_export_do_not_stay(tmp_path: Path) -> None:
    run, _ = run_folder(tmp_path, "text-classification")
    (tmp_path / "best").mkdir()
    (tmp_path / "best/text_model.onnx").write_bytes(b"old")
    write_point(run, POINT, BASE, tmp_path / "best")
    assert not (tmp_path / "best/text_model.onnx").exists()


def test_nothing_is_written_if_there_are_no_towers_to_split(tmp_path: Path) -> None:
    run, _ = run_folder(tmp_path, "text-classification")
    with pytest.raises(ExportError, match="so no towers that can be split"):
        write_point(run, POINT, BASE, tmp_path / "best", split_towers=True)
    assert not (tmp_path / "best").exists()
