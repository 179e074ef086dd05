"""Configs of an exported folder that differ from those of the model folder."""

from __future__ import annotations

import json
from pathlib import Path

from small_folders import tokenizer, transformers

from autocompress.huggingface.out.settings import (
    flat_modules,
    known_tokenizer,
    read_object,
    without_cache,
    write_ort_config,
)
from autocompress.targets.device.sessions import SessionSettings


def test_ort_config_holds_what_optimum_reads_and_the_tuned_settings(tmp_path: Path) -> None:
    write_ort_config(tmp_path, SessionSettings(threads=3, disabled_optimizers=("A", "B")))
    config = json.loads((tmp_path / "ort_config.json").read_text())
    ours = config.pop("autocompress")
    assert config == {  # the arguments of optimum's ORTConfig
        "opset": None,
        "use_external_data_format": False,
        "one_external_file": True,
        "optimization": {},
        "quantization": {},
    }
    assert ours == {
        "runtime": "onnxruntime",
        "providers": ["CPUExecutionProvider"],
        "intra_op_num_threads": 3,
        "session_config_entries": {
            "session.intra_op.allow_spinning": "1",
            "optimization.disable_specified_optimizers": "A;B",
        },
    }
    write_ort_config(tmp_path, SessionSettings("openvino", "CPU", 2))
    ours = json.loads((tmp_path / "ort_config.json").read_text())["autocompress"]
    assert ours == {"runtime": "openvino", "providers": ["CPU"], "intra_op_num_threads": 2}


def test_the_cache_is_off_where_there_is_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"use_cache": true, "model_type": "llama"}')
    without_cache(tmp_path)
    assert read_object(tmp_path / "config.json") == {"use_cache": False, "model_type": "llama"}
    assert not (tmp_path / "generation_config.json").exists()


def test_modules_name_the_folder_itself(tmp_path: Path) -> None:
    flat_modules(tmp_path, "0_Transformer")  # there is no file
    path = tmp_path / "modules.json"
    modules = [{"path": "0_Transformer", "name": "0"}, {"path": "1_Pooling", "name": "1"}]
    path.write_text(json.dumps(modules))
    flat_modules(tmp_path, "")
    assert json.loads(path.read_text()) == modules
    flat_modules(tmp_path, "0_Transformer")
    assert json.loads(path.read_text()) == [
        {"path": "", "name": "0"},
        {"path": "1_Pooling", "name": "1"},
    ]


def test_tokenizers_have_a_class_that_older_transformers_know(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    known_tokenizer(tmp_path)
    assert read_object(path) == {"tokenizer_class": "BertTokenizer"}
    path.write_text(json.dumps({"tokenizer_class": "TokenizersBackend", "pad_token": "[PAD]"}))
    known_tokenizer(tmp_path)
    assert read_object(path) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": "[PAD]",
    }


def test_lists_of_special_tokens_have_a_key_that_older_transformers_know(tmp_path: Path) -> None:
    words = tokenizer()
    words.add_special_tokens({"extra_special_tokens": ["[A]", "[B]"]})
    words.save_pretrained(tmp_path)
    path, text = tmp_path / "tokenizer_config.json", "w1 [A] w2 [B] w3"
    assert read_object(path)["extra_special_tokens"] == ["[A]", "[B]"]
    known_tokenizer(tmp_path)
    config = read_object(path)
    assert "extra_special_tokens" not in config
    assert config["additional_special_tokens"] == ["[A]", "[B]"]
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == words(text)["input_ids"]
    assert again.all_special_ids == words.all_special_ids
    for written, expected in (
        ({"extra_special_tokens": {"image": "[I]"}}, {"extra_special_tokens": {"image": "[I]"}}),
        ({"extra_special_tokens": []}, {"additional_special_tokens": []}),
        (
            {"extra_special_tokens": ["a", "b"], "additional_special_tokens": ["b", "c"]},
            {"additional_special_tokens": ["b", "c", "a"]},
        ),
    ):
        path.write_text(json.dumps({"tokenizer_class": "BertTokenizer", **written}))
        known_tokenizer(tmp_path)
        assert read_object(path) == {"tokenizer_class": "BertTokenizer", **expected}


def test_what_is_no_object_reads_as_empty(tmp_path: Path) -> None:
    for content in ("[1]", "{", ""):
        (tmp_path / "a.json").write_text(content)
        assert read_object(tmp_path / "a.json") == {}
    assert read_object(tmp_path / "none.json") == {}
