"""Model folders: what is read of them, and one line for each that cannot be used."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_folders import (
    SMALL,
    SPECIAL,
    WORDS,
    bert,
    save,
    texts,
    tokenizer,
    transformers,
    write_jsonl,
)

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.task.task import Pretrained


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = transformers.BertForSequenceClassification(bert(num_labels=2))
    return save(tmp_path_factory.mktemp("folders") / "original", model, tokenizer())


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts(12))]
    return write_jsonl(tmp_path / "dev.jsonl", rows)


def error(folder: Any, data: Path, **arguments: Any) -> str:
    with pytest.raises(TaskError) as caught:
        ac.from_pretrained(folder, validation=data, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_task_can_be_made_again_from_anywhere(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    task = ac.load_task("./model", validation="dev.jsonl", metric="f1")
    assert task.source == {
        "spec": "autocompress.huggingface.pretrained:from_pretrained",
        "arguments": {"folder": str(folder), "validation": str(data), "metric": "f1"},
    }
    assert task.pretrained == Pretrained(
        str(folder),
        "text-classification",
        "f1",
        task.pretrained.special_tokens,
        task.pretrained.files,
    )
    assert set(task.pretrained.files) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    monkeypatch.chdir(folder)
    again = ac.load_task(task.source["spec"], **task.source["arguments"])
    pairs = zip(task.validation, again.validation, strict=True)
    assert all(torch.equal(a[0]["input_ids"], b[0]["input_ids"]) for a, b in pairs)


def test_shards_and_pickled_weights(folder: Path, data: Path) -> None:
    weights = ac.from_pretrained(folder, validation=data).model.state_dict()
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    sharded = ac.from_pretrained(folder, validation=data).model.state_dict()
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    pickled = ac.from_pretrained(folder, validation=data).model.state_dict()
    for name, weight in weights.items():
        assert torch.equal(weight, sharded[name])
        assert torch.equal(weight, pickled[name])


class Evil:
    """Write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickled_weights_run_no_code(folder: Path, data: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    trace = tmp_path / "trace"
    torch.save({"weight": Evil(trace)}, folder / "pytorch_model.bin")
    assert "the model cannot be loaded" in error(folder, data)
    assert not trace.exists()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(trace)))
    assert "the model cannot be loaded" in error(folder, data)
    assert not trace.exists()


def test_weights_that_do_not_fit(folder: Path, data: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    assert f"{folder}: the model cannot be loaded" in error(folder, data)
    file.unlink()
    assert f"{folder}: the model cannot be loaded" in error(folder, data)
    file.write_bytes(whole)
    change(folder, num_hidden_layers=2)
    assert "the weights lack bert.encoder.layer.1." in error(folder, data)
    change(folder, num_hidden_layers=1, intermediate_size=128)
    assert error(folder, data).startswith(f"{folder}: the ")
    change(folder, intermediate_size=64)
    assert load_file(file)
    ac.from_pretrained(folder, validation=data)


def test_no_task_for_a_head_that_is_not_there(folder: Path, data: Path) -> None:
    assert error(folder, data, task="token-classification") == (
        f"{folder}: BertForSequenceClassification has no head for token-classification; "
        "nearest: text-classification"
    )
    change(folder, architectures=["BertModel"])
    assert error(folder, data, task="text-classification").endswith(
        "BertModel has no head for text-classification; nearest: feature-extraction, "
        "sentence-similarity"
    )
    change(folder, architectures=None)
    assert "config.json names no architecture; give the task: " in error(folder, data)
    task = ac.from_pretrained(folder, validation=data, task="text-classification")
    assert task.pretrained.task == "text-classification"


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("SpeechT5ForSpeechToText", "automatic-speech-recognition"),
        ("Mask2FormerForUniversalSegmentation", "image-segmentation of objects"),
        ("BlipForQuestionAnswering", "visual-question-answering"),
        ("PaliGemmaForConditionalGeneration", "image-text-to-text"),
        ("BertForMultipleChoice", "multiple-choice"),
        ("DPTForDepthEstimation", "depth-estimation"),
        ("PatchTSTForRegression", "time-series-regression"),
        *((name, "") for name in ("ViTModel", "Wav2Vec2Model", "ClapModel", "FlavaModel")),
        *((name, "") for name in ("LxmertModel", "PatchTSTModel", "Nothing")),
    ],
)
def test_tasks_that_are_not_there_yet(
    folder: Path, data: Path, architecture: str, task: str
) -> None:
    change(folder, architectures=[architecture])
    line = error(folder, data)
    assert f"no task for {architecture}" in line
    assert task in line
    assert "text-classification, token-classification" in line


def test_names_of_tasks(folder: Path, data: Path) -> None:
    assert error(folder, data, task="text-clasification") == (
        "task 'text-clasification' is unknown; nearest: text-classification"
    )


def test_folders_that_are_none(folder: Path, data: Path, tmp_path: Path) -> None:
    assert error(tmp_path / "modell", data) == (
        f"{tmp_path / 'modell'}: no such model folder; nearest: model"
    )
    (tmp_path / "empty").mkdir()
    assert error(tmp_path / "empty", data) == (
        f"{tmp_path / 'empty'}: has no config.json; expected a folder that save_pretrained wrote"
    )
    (folder / "config.json").write_text("{")
    assert f"{folder / 'config.json'}: cannot be read: " in error(folder, data)
    (folder / "config.json").write_text('{"model_type": "nothing"}')
    assert f"{folder / 'config.json'}: cannot be read: " in error(folder, data)


def refused(folder: Path, size: int, table: int, rest: str) -> str:
    return (
        f"{folder}: the tokenizer has {size} tokens, the model {table}, and {rest}; nearest: the "
        "tokenizer that the model was trained with"
    )


def test_tokenizers_that_do_not_fit(folder: Path, data: Path, tmp_path: Path) -> None:
    words = tokenizer()
    words.add_tokens(["more", "most"])
    words.save_pretrained(folder)
    task = ac.from_pretrained(folder, validation=data)  # no text has these tokens
    assert all(int(inputs["input_ids"].max()) < 45 for inputs, _ in task.validation)
    rows = [{"text": f"{text} most more", "label": i % 2} for i, text in enumerate(texts(12))]
    used = write_jsonl(tmp_path / "used.jsonl", rows)
    line = refused(folder, 47, 45, "texts of test have 'most', token 46")
    assert error(folder, data, test=used) == line
    pairs = write_jsonl(
        tmp_path / "pairs.jsonl",
        [{"premise": "w1", "hypothesis": "w2 more w3", "label": i % 2} for i in range(12)],
    )
    line = refused(folder, 47, 45, "texts of validation have 'more', token 45")
    assert error(folder, pairs, test=data) == line
    words.add_special_tokens({"unk_token": "[NEW]"})
    words.save_pretrained(folder)
    line = refused(folder, 48, 45, "the task needs '[NEW]', token 47")
    assert error(folder, data) == line
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert error(folder, data).startswith(f"{folder}: has no tokenizer (tokenizer.json); save it")


SMALL_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
SMALL_GPT = {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}


@pytest.mark.parametrize(
    ("model", "config", "row", "more"),
    [
        ("BertForMaskedLM", bert(), {"text": "w1 w2"}, {}),
        (
            "T5ForConditionalGeneration",
            transformers.T5Config(vocab_size=45, decoder_start_token_id=0, **SMALL_T5),
            {"source": "w1", "target": "w1 w2"},
            {},
        ),
        (
            "GPT2LMHeadModel",
            transformers.GPT2Config(vocab_size=45, bos_token_id=2, eos_token_id=3, **SMALL_GPT),
            {"text": "w1 w2 w3"},
            {"max_length": 8},
        ),
    ],
)
def test_spare_tokens_of_other_tasks(
    model: str, config: Any, row: dict[str, str], more: dict[str, Any], tmp_path: Path
) -> None:
    words = tokenizer()
    words.add_tokens(["more"])
    folder = save(tmp_path / "model", getattr(transformers, model)(config), words)
    files = []
    for name, ending in (("plain", ""), ("used", " more")):
        last = list(row)[-1]
        rows = [{**row, last: row[last] + ending}] * 12
        files.append(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    plain, used = files
    task = ac.from_pretrained(folder, validation=plain, test=plain, **more)
    assert task.pretrained.task in ("fill-mask", "text2text-generation", "text-generation")
    line = refused(folder, 46, 45, "texts of validation have 'more', token 45")
    assert error(folder, used, test=plain, **more) == line


def test_a_mask_that_the_model_does_not_know_hides_nothing(data: Path, tmp_path: Path) -> None:
    words = tokenizer()
    words.add_special_tokens({"mask_token": "[HIDE]"})
    folder = save(tmp_path / "words", transformers.BertForMaskedLM(bert()), words)
    line = refused(folder, 46, 45, "the task needs '[HIDE]', token 45")
    assert error(folder, data) == line
    model = transformers.BertForSequenceClassification(bert(num_labels=2))
    ac.from_pretrained(save(tmp_path / "classes", model, words), validation=data)


def test_code_of_a_folder_runs_only_with_the_flag(folder: Path, data: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (folder / "own.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import BertConfig\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
    )
    change(folder, model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    assert "config.json: cannot be read" in error(folder, data)
    assert not trace.exists()
    assert error(folder, data, trust_remote_code=True)  # its model has no class
    assert trace.exists()


def test_the_hub_is_asked_only_by_its_name(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def snapshot_download(name: str) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    ac.from_pretrained(folder, validation=data)
    assert asked == []
    task = ac.from_pretrained("hf://owner/name", validation=data)
    assert asked == ["owner/name"]
    assert task.source["arguments"]["folder"] == "hf://owner/name"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {"metric": "acuracy"},
            "model: metric 'acuracy' is none of text-classification on these "
            "data (accuracy, f1, matthews); nearest: accuracy",
        ),
        ({"batch_size": 0}, "from_pretrained: batch_size must be at least 1, got 0; nearest: 1"),
        (
            {"max_length": "8"},
            "from_pretrained: max_length must be a whole number, got '8'; nearest valid value: 8",
        ),
        (
            {"columns": "text"},
            "from_pretrained: columns must be a mapping, got 'text'; nearest: {'text': 'body'}",
        ),
        (
            {"columns": {"txt": "text"}},
            "--column txt=text: txt is no part of text-classification; nearest: text",
        ),
        ({"length": [8, 100]}, "model: length 100 is above the model's 64 positions; nearest: 64"),
        (
            {"trust_remote_code": "yes"},
            "from_pretrained: trust_remote_code must be True or False, "
            "got 'yes'; nearest valid value: True",
        ),
    ],
)
def test_options_that_cannot_be_used(
    folder: Path, data: Path, arguments: dict[str, Any], line: str
) -> None:
    assert error(folder, data, **arguments) == line


def test_without_the_extra(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # the import fails
    assert error(folder, data).endswith("nearest: pip install 'autocompress[huggingface]'")


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "LMHeadModel"])
def test_families_that_cannot_be_exported(head: str, folder: Path, data: Path) -> None:
    """They are refused at once, not at the end of a search."""
    name = head if head == "LMHeadModel" else f"For{head}"
    transformers.XLNetConfig(architectures=[f"XLNet{name}"]).save_pretrained(folder)
    line = f"{folder}: models of xlnet cannot be exported to ONNX; nearest: bert"
    assert error(folder, data) == line


@pytest.mark.parametrize(
    ("family", "near"),
    [
        *(("Longformer", "modernbert"), ("LED", "bart"), ("Canine", "bert"), ("Funnel", "bert")),
        *(("Reformer", "bert"), ("SwitchTransformers", "t5"), ("NllbMoe", "m2m_100")),
        *(("Dbrx", "mixtral"), ("LongcatFlash", "deepseek_v3")),
    ],
)
def test_families_whose_shapes_follow_values(
    family: str, near: str, folder: Path, data: Path
) -> None:
    config = getattr(transformers, f"{family}Config")
    config(architectures=[f"{family}ForSequenceClassification"]).save_pretrained(folder)
    line = f"{folder}: models of {config.model_type} cannot be exported to ONNX; nearest: {near}"
    assert error(folder, data) == line


@pytest.mark.parametrize(
    ("family", "more"), [("LayoutLM", {}), ("Lilt", {"channel_shrink_ratio": 2}), ("Bros", {})]
)
def test_families_that_read_more_than_tokens(
    family: str, more: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    """Without the places of words their answers would be those of other pages."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(SPECIAL) + len(WORDS), num_labels=3, **{**SMALL, **more}
    )
    model = getattr(transformers, f"{family}ForTokenClassification")(config)
    folder = save(tmp_path / "pages", model, tokenizer())
    rows = [{"tokens": ["w1", "w2"], "tags": [0, 1]}] * 8
    line = error(folder, write_jsonl(tmp_path / "words.jsonl", rows))
    assert line == (
        f"pages: models of {family.lower()} read where words stand on a page (bbox), which no "
        "column gives; nearest: a model of texts alone, such as bert"
    )


@pytest.mark.parametrize(
    ("name", "more", "what"),
    [
        ("VisualBertModel", {}, "regions of pictures (visual_embeds)"),
        (
            "LxmertForQuestionAnswering",
            {"l_layers": 1, "x_layers": 1, "r_layers": 1},
            "regions of pictures (visual_feats)",
        ),
        ("TapasForSequenceClassification", {}, "tables"),
        ("LayoutLMModel", {}, "where words stand on a page (bbox)"),
    ],
)
def test_families_that_read_pictures_pages_or_tables_too(
    name: str, more: dict[str, Any], what: str, data: Path, tmp_path: Path
) -> None:
    model = getattr(transformers, name)
    config = model.config_class(
        vocab_size=len(SPECIAL) + len(WORDS), num_labels=3, **{**SMALL, **more}
    )
    folder = save(tmp_path / "both", model(config), tokenizer())
    assert error(folder, data) == (
        f"both: models of {config.model_type} read {what}, which no column gives; nearest: a model "
        "of texts alone, such as bert"
    )


def test_texts_under_another_name(data: Path, tmp_path: Path) -> None:
    """Perceiver reads texts, pictures and sounds as `inputs`."""
    sizes = {"num_latents": 2, "d_latents": 8, "d_model": 8, "num_self_attends_per_block": 1}
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2}
    config = transformers.PerceiverConfig(num_labels=3, **sizes, **heads)
    model = transformers.PerceiverForSequenceClassification(config)
    folder = save(tmp_path / "m", model, transformers.PerceiverTokenizer())
    line = "models of perceiver read texts as inputs, not as input_ids"
    assert line in error(folder, data)


@pytest.mark.parametrize("family", ["Bert", "Albert", "MobileBert"])
def test_weights_with_a_head_of_the_next_sentence_too(family: str, tmp_path: Path) -> None:
    """Their head of hidden tokens is searched, as that of a model which has no other."""
    more = {"MobileBert": {"true_hidden_size": 32, "intra_bottleneck_size": 32}}.get(family, {})
    narrow = {"embedding_size": 16} if family != "Bert" else {}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(SPECIAL) + len(WORDS), pad_token_id=0, **{**SMALL, **narrow, **more}
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForPreTraining")(config).eval()
    folder = save(tmp_path / "both", model, tokenizer())
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": text} for text in texts(8)])
    task = ac.from_pretrained(folder, validation=data)
    assert task.pretrained is not None
    assert task.pretrained.task == "fill-mask"
    inputs, _ = next(iter(task.validation))
    with torch.no_grad():
        expected = model(**inputs).prediction_logits
        torch.testing.assert_close(task.model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
