"""Token classification: our answers are those of the pipeline of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_folders import SMALL, bert, save, score, texts, tokenizer, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.huggingface.kinds.text.token_classification import NAMELESS, SPACED
from autocompress.huggingface.out.snippets import Facts, runtime_lines
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.prepare import prepared
from autocompress.targets.device.sessions import SessionSettings
from autocompress.task.outputs import IGNORED

NAMES = {0: "O", 1: "B-PER", 2: "I-PER"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = bert(id2label=NAMES, label2id={name: i for i, name in NAMES.items()})
    model = transformers.BertForTokenClassification(config)
    return save(tmp_path_factory.mktemp("folders") / "tagger", model, tokenizer())


def test_f1_of_entities_and_accuracy_of_words(folder: Path, tmp_path: Path) -> None:
    pipeline = transformers.pipeline("token-classification", model=str(folder), ignore_labels=[])
    rows = []
    for text in texts(24):
        tags = [entry["entity"] for entry in pipeline(text)]
        rows.append({"tokens": text.split(), "ner_tags": tags})
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = prepared(ac.from_pretrained(folder, validation=data, test=data, batch_size=5))
    scores, _ = evaluate_model(task, task.model, task.validation, torch.device("cpu"))
    assert (scores.accuracy, dict(scores.metrics)) == (1.0, {"accuracy": 1.0})
    words = sum(len(row["tokens"]) for row in rows)
    numbers = {"O": 1, "B-PER": 2, "I-PER": 0}
    rows[0]["ner_tags"] = [numbers[tag] for tag in rows[0]["ner_tags"]]  # all are wrong
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = prepared(ac.from_pretrained(folder, validation=data, test=data, batch_size=5))
    scores, _ = evaluate_model(task, task.model, task.validation, torch.device("cpu"))
    wrong = len(rows[0]["tokens"])
    assert scores.metrics["accuracy"] == pytest.approx(1 - wrong / words)
    assert 0 < scores.accuracy < 1


def test_classes_without_names_have_no_f1(tmp_path: Path) -> None:
    model = transformers.BertForTokenClassification(bert(num_labels=3))
    place = save(tmp_path / "nameless", model, tokenizer())
    rows = [
        {"tokens": t.split(), "ner_tags": [i % 3 for i in range(len(t.split()))]} for t in texts(12)
    ]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(place, validation=data, test=data)
    assert NAMELESS in task.notes
    assert task.pretrained.metric == "accuracy"
    assert 0 < score(task)[0] < 1
    with pytest.raises(TaskError) as caught:
        ac.from_pretrained(place, validation=data, test=data, metric="f1")
    assert str(caught.value) == (
        "nameless: metric 'f1' is none of token-classification on these data (accuracy); "
        "nearest: accuracy"
    )


def test_without_labels_the_float_model_answers(folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"words": t.split()} for t in texts(12)])
    task = prepared(ac.from_pretrained(folder, validation=data, test=data, batch_size=5))
    scores, _ = evaluate_model(task, task.model, task.validation, torch.device("cpu"))
    assert scores.accuracy == 1.0
    assert scores.metrics["divergence"] == pytest.approx(0, abs=1e-6)


def test_lists_in_cells_and_words_without_a_token(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "dev.csv"
    table.write_text("tokens,ner_tags\n\"['w1', ' ', 'w2']\",\"[1, 1, 0]\"\n")
    task = ac.from_pretrained(folder, validation=table, test=table)
    ((inputs, target),) = task.validation
    assert inputs["input_ids"].shape == (1, 4)
    assert target[0, 1:3].tolist() == [1, 0]
    assert (
        "data: 1 of 3 words of validation have no token of the tokenizer; their labels do not count"
    ) in task.notes
    long = {"tokens": ["w1"] * 80, "ner_tags": [1] * 80}
    data = write_jsonl(tmp_path / "dev.jsonl", [long])
    cut = ac.from_pretrained(folder, validation=data, test=data)
    assert not any("have no token" in note for note in cut.notes)


def test_words_and_labels_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    def error(row: dict[str, object]) -> str:
        data = write_jsonl(tmp_path / "dev.jsonl", [row] * 3)
        with pytest.raises(TaskError) as caught:
            ac.from_pretrained(folder, validation=data, test=data)
        return str(caught.value)

    assert error({"tokens": ["w1", "w2"], "tags": [0]}) == (
        "dev.jsonl line 1: column 'tags' must have one label for each of 2 words, got 1"
    )
    assert error({"tokens": [1, 2], "tags": [0, 0]}) == (
        "dev.jsonl line 1: column 'tokens' must be a list of words, got [1, 2]"
    )
    assert "label 'B-LOC' is none of the model's 3 labels" in error(
        {"tokens": ["w1"], "tags": ["B-LOC"]}
    )


WORDS = ("he", "lives", "in", "Paris", "12", ",")


def byte_level(kind: str, is_spaced: bool = False) -> Any:
    """Return a byte-level tokenizer, whose tokens hold the space before a word."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers

    level = pre_tokenizers.ByteLevel(add_prefix_space=is_spaced, use_regex=kind != "qwen")
    inner = Tokenizer(models.BPE())
    if kind == "qwen":  # numbers are divided into digits, without the space before them
        pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
        parts = [pre_tokenizers.Split(pattern, "isolated"), level]
        inner.pre_tokenizer = pre_tokenizers.Sequence(parts)
    else:
        inner.pre_tokenizer = level
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["[PAD]", "[CLS]", "[SEP]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([" ".join(WORDS)] * 9, trainer)
    if kind == "roberta":  # offsets leave the space out
        ends = (("[SEP]", 2), ("[CLS]", 1))
        inner.post_processor = processors.RobertaProcessing(*ends, True, is_spaced)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]")


def tagger(place: Path, words: Any) -> Path:
    config = transformers.BertConfig(vocab_size=320, pad_token_id=0, id2label=NAMES, **SMALL)
    return save(place, transformers.BertForTokenClassification(config), words)


@pytest.mark.parametrize("kind", ["roberta", "gpt2", "qwen"])
def test_words_keep_the_spaces_between_them(kind: str, tmp_path: Path) -> None:
    """A list of words has the tokens of its text, also in the program of the card."""
    place = tagger(tmp_path / "bytes", byte_level(kind))
    row = {"tokens": list(WORDS), "ner_tags": [0, 1, 2, 0, 1, 2]}
    data = write_jsonl(tmp_path / "dev.jsonl", [row])
    task = ac.from_pretrained(place, validation=data, test=data)
    ((inputs, target),) = task.validation
    saved = transformers.AutoTokenizer.from_pretrained(place)
    text = " ".join(WORDS)
    assert inputs["input_ids"].tolist() == [saved(text)["input_ids"]]
    tokens = saved.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    labelled = [(t, n) for t, n in zip(tokens, target[0].tolist(), strict=True) if n != IGNORED]
    number = "1" if kind == "qwen" else "Ġ12"  # a space alone is not its first token
    firsts = ["he", "Ġlives", "Ġin", "ĠParis", number, "Ġ,"]
    assert labelled == list(zip(firsts, row["ner_tags"], strict=True))
    assert SPACED in task.notes
    facts = Facts("token-classification", dict.fromkeys(inputs, ("batch", "n")), SessionSettings())
    (line,) = [line for line in runtime_lines(facts) if line.startswith("inputs = ")]
    names = {"tokenizer": saved}
    exec(line.replace("A text.", text), names)
    assert names["inputs"]["input_ids"].tolist() == inputs["input_ids"].tolist()


def test_words_with_spaces_of_their_own(tmp_path: Path) -> None:
    """Spaces are put where there are none, and not if the tokenizer puts them itself."""
    place = tagger(tmp_path / "bytes", byte_level("gpt2"))
    own = write_jsonl(tmp_path / "own.jsonl", [{"tokens": ["he", " lives", "", "in"]}])
    task = ac.from_pretrained(place, validation=own, test=own)
    saved = transformers.AutoTokenizer.from_pretrained(place)
    ((inputs, _),) = task.validation
    assert inputs["input_ids"].tolist() == [saved("he lives in")["input_ids"]]
    place = tagger(tmp_path / "spaced", byte_level("roberta", is_spaced=True))
    data = write_jsonl(tmp_path / "dev.jsonl", [{"tokens": list(WORDS)}])
    task = ac.from_pretrained(place, validation=data, test=data)
    saved = transformers.AutoTokenizer.from_pretrained(place)
    expected = saved(list(WORDS), is_split_into_words=True)["input_ids"]
    ((inputs, _),) = task.validation
    assert inputs["input_ids"].tolist() == [expected]
    assert expected == saved(" ".join(WORDS))["input_ids"]
    assert SPACED not in task.notes
