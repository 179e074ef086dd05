"""Model folders that a target refuses, before their data are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_decoders import TARGET, decoder
from small_folders import save, tokenizer, transformers

import autocompress as ac
from autocompress.cli.main import main
from autocompress.errors import ExportError
from autocompress.huggingface.for_target import check_target
from autocompress.targets.target import find_target

GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 32}


@pytest.fixture
def gpt2(tmp_path: Path) -> str:
    """Return a folder of an architecture that the builder has no code for."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    return str(save(tmp_path / "gpt2", model, tokenizer()))


def test_unknown_architectures_are_refused_with_those_that_are_known(gpt2: str) -> None:
    with pytest.raises(ExportError) as error:
        check_target(gpt2, {}, find_target(TARGET))
    words = str(error.value)
    assert "has no code for GPT2LMHeadModel (it has for " in words
    assert "LlamaForCausalLM" in words
    assert "nearest: --target onnxruntime-cpu, whose files have no cache" in words
    check_target(gpt2, {}, find_target("onnxruntime-cpu"))


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.BertConfig(vocab_size=64, num_attention_heads=2, num_labels=2, **sizes)
    model = transformers.BertForSequenceClassification(config)
    folder = save(tmp_path / "bert", model, tokenizer())
    with pytest.raises(ExportError, match="got the task text-classification; nearest"):
        check_target(str(folder), {}, find_target(TARGET))


def test_known_ones_and_functions_pass(tmp_path: Path) -> None:
    check_target(str(decoder(tmp_path / "llama")), {}, find_target(TARGET))
    check_target("some.module:function", {}, find_target(TARGET))


def test_no_data_are_read_before(
    gpt2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of data that is not there would be an error of its own."""
    nowhere = str(tmp_path / "nowhere.txt")
    with pytest.raises(ExportError, match="has no code for GPT2LMHeadModel"):
        ac.search(gpt2, target=TARGET, out=str(tmp_path / "run"), n_trials=1, quiet=True)
    for command in ("search", "inspect"):
        with pytest.raises(SystemExit) as end:
            main([command, gpt2, "--validation", nowhere, "--target", TARGET])
        assert end.value.code == 1
        assert "has no code for GPT2LMHeadModel" in capsys.readouterr().err
