"""Embeddings of texts: pooling as modules.json says, and similarity of pairs."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy import stats
from small_folders import bert, save, texts, tokenizer, transformers, write_jsonl
from torch import Tensor

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.huggingface.models.sentence import POOLINGS, _pooled
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.prepare import prepared


def encoder(
    folder: Path, pooling: dict[str, Any] | None = None, *more: str, model: Any = None
) -> Path:
    """Write an encoder; with a pooling as sentence-transformers does."""
    save(folder, model or transformers.BertModel(bert()), tokenizer())
    if pooling is None:
        return folder
    kinds = ["Transformer", "Pooling", *more]
    modules = []
    for i, kind in enumerate(kinds):
        path = "" if i == 0 else f"{i}_{kind}"
        modules.append({"idx": i, "name": str(i), "path": path, "type": f"a.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return folder


@functools.cache
def loaded(folder: Path) -> Any:
    return transformers.BertModel.from_pretrained(folder)


def hidden(folder: Path, text: str) -> Tensor:
    """Return (length, width) of the hidden states of one text, without padding."""
    with torch.no_grad():
        return loaded(folder)(**tokenizer()(text, return_tensors="pt")).last_hidden_state[0]


def embedded(
    folder: Path, tmp_path: Path, rows: list[str], written: list[str] | None = None
) -> tuple[ac.Task, Tensor]:
    """Return the task, and the embeddings of texts in their order; data may have other texts."""
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": text} for text in written or rows])
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=4)
    found = {}
    for inputs, _ in task.validation:
        with torch.no_grad():
            outputs = task.model(**inputs)["sentence_embedding"]
        for ids, mask, output in zip(
            inputs["input_ids"], inputs["attention_mask"], outputs, strict=True
        ):
            found[tokenizer().decode(ids[mask.bool()], skip_special_tokens=True)] = output
    return task, torch.stack([found[text] for text in rows])


def test_mean_and_first_token(tmp_path: Path) -> None:
    rows = texts(9)
    plain = encoder(tmp_path / "plain")
    task, outputs = embedded(plain, tmp_path, rows)
    means = torch.stack([hidden(plain, text).mean(0) for text in rows])
    torch.testing.assert_close(outputs, means, atol=1e-5, rtol=1e-4)
    assert "since there is no modules.json" in " ".join(task.notes)
    first = encoder(tmp_path / "cls", {"pooling_mode_cls_token": True})
    task, outputs = embedded(first, tmp_path, rows)
    tokens = torch.stack([hidden(first, text)[0] for text in rows])
    torch.testing.assert_close(outputs, tokens, atol=1e-5, rtol=1e-4)
    assert "model: embeddings are those of the first token" in task.notes
    assert task.pretrained.task == "sentence-similarity"


def test_layers_behind_the_pooling(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m", {"pooling_mode_mean_tokens": True}, "Dense", "Normalize")
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense/config.json").write_text(
        json.dumps(
            {
                "in_features": 32,
                "out_features": 8,
                "bias": False,
                "activation_function": "torch.nn.modules.activation.Tanh",
            }
        )
    )
    save_file({"linear.weight": weight}, folder / "2_Dense/model.safetensors")
    rows = texts(5)
    _, outputs = embedded(folder, tmp_path, rows)
    means = torch.stack([hidden(folder, text).mean(0) for text in rows])
    expected = F.normalize((means @ weight.T).tanh(), dim=1)
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-4)
    modules = json.loads((folder / "modules.json").read_text())
    swapped = [*modules[:2], modules[3], modules[2]]
    (folder / "modules.json").write_text(json.dumps(swapped))
    _, outputs = embedded(folder, tmp_path, rows)
    expected = (F.normalize(means, dim=1) @ weight.T).tanh()
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["T5", "MT5", "UMT5"])
def test_encoders_of_families_with_a_decoder(family: str, tmp_path: Path) -> None:
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    config = getattr(transformers, f"{family}Config")(vocab_size=45, **sizes)
    model = getattr(transformers, f"{family}EncoderModel")(config).eval()
    pooling = {"pooling_mode_mean_tokens": True}
    folder = encoder(tmp_path / "m", pooling, "Dense", "Normalize", model=model)
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    (folder / "2_Dense").mkdir()
    sizes = {"in_features": 32, "out_features": 8, "bias": False}
    (folder / "2_Dense/config.json").write_text(json.dumps(sizes))
    torch.save({"linear.weight": weight}, folder / "2_Dense/pytorch_model.bin")
    rows, means = texts(5), []
    for text in rows:
        with torch.no_grad():
            ids = torch.tensor([tokenizer()(text)["input_ids"]])
            means.append(model(input_ids=ids).last_hidden_state[0].mean(0))
    task, outputs = embedded(folder, tmp_path, rows)
    expected = F.normalize(torch.stack(means) @ weight.T, dim=1)
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-4)
    assert task.pretrained.task == "sentence-similarity"
    (folder / "modules.json").unlink()
    task, outputs = embedded(folder, tmp_path, rows)
    torch.testing.assert_close(outputs, torch.stack(means), atol=1e-5, rtol=1e-4)
    assert task.pretrained.task == "feature-extraction"


def test_dense_layers_that_cannot_be_read(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m", {"pooling_mode_mean_tokens": True}, "Dense")
    place, trace = folder / "2_Dense", tmp_path / "trace"
    place.mkdir()
    sizes = {"in_features": 32, "out_features": 8, "bias": False}
    (place / "config.json").write_text(json.dumps(sizes))
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": "w1"}])

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (trace,))

    for content in (None, {"linear.weight": Evil()}, {"linear.weight": torch.zeros(3, 3)}, {}):
        if content is not None:
            torch.save(content, place / "pytorch_model.bin")
        with pytest.raises(TaskError, match=r"2_Dense: the dense layer cannot be read: ") as caught:
            ac.from_pretrained(folder, validation=data, test=data)
        assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_layers_in_an_order_that_makes_no_sense_are_named(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m", {"pooling_mode_mean_tokens": True}, "Normalize")
    modules = json.loads((folder / "modules.json").read_text())
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": "w1"}])
    for order, words in (
        ([0, 2, 1], r"module 1 is Normalize; expected Pooling"),
        ([0, 1, 1], r"module 2 is Pooling; expected Dense or Normalize in this place"),
        ([1], r"module 0 is Pooling; expected Transformer"),
    ):
        (folder / "modules.json").write_text(json.dumps([modules[i] for i in order]))
        with pytest.raises(TaskError, match=words):
            ac.from_pretrained(folder, validation=data, test=data)


def test_the_longest_text_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m", {"pooling_mode_mean_tokens": True})
    settings = folder / "sentence_bert_config.json"
    settings.write_text(json.dumps({"max_seq_length": 6, "do_lower_case": False}))
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": text} for text in texts(8, least=9)])
    task = ac.from_pretrained(folder, validation=data, test=data)
    assert {inputs["input_ids"].shape[1] for inputs, _ in task.validation} == {6}
    assert "data: 8 of 8 texts of validation are cut to 6 tokens" in task.notes
    task = ac.from_pretrained(folder, validation=data, test=data, max_length=9)
    assert {inputs["input_ids"].shape[1] for inputs, _ in task.validation} == {9}
    for content, words in (
        ({"max_seq_length": "6"}, "max_seq_length is '6'; expected a whole number"),
        ({"do_lower_case": True}, "do_lower_case is not supported"),
        ([], "expected an object"),
    ):
        settings.write_text(json.dumps(content))
        with pytest.raises(TaskError, match=words):
            ac.from_pretrained(folder, validation=data, test=data)


def test_similarity_of_pairs(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m")
    pairs = list(zip(texts(20), texts(20, seed=1), strict=True))
    numbers = [float(i % 7) for i in range(20)]
    rows = [
        {"sentence1": a, "sentence2": b, "score": s}
        for (a, b), s in zip(pairs, numbers, strict=True)
    ]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, data=data, validation=data, test=data, batch_size=3)
    ready = prepared(task)
    scores, _ = evaluate_model(ready, ready.model, ready.validation, torch.device("cpu"))
    cosines = [
        F.cosine_similarity(hidden(folder, a).mean(0), hidden(folder, b).mean(0), dim=0).item()
        for a, b in pairs
    ]
    expected = stats.spearmanr(cosines, numbers).statistic
    assert scores.accuracy == pytest.approx(expected, abs=1e-6)
    expected = stats.pearsonr(cosines, numbers).statistic
    assert scores.metrics["pearson"] == pytest.approx(expected, abs=1e-5)
    assert not ready.has_labels  # a score belongs to two rows


def test_without_scores_the_float_model_answers(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": text} for text in texts(12)])
    ready = prepared(ac.from_pretrained(encoder(tmp_path / "m"), validation=data, test=data))
    scores, _ = evaluate_model(ready, ready.model, ready.validation, torch.device("cpu"))
    assert scores.accuracy == pytest.approx(1.0)
    assert list(ready.first_batch[0]) == ["input_ids", "attention_mask"]


# By hand, of the states of one text without padding.
POOLED = {
    "pooling_mode_max_tokens": lambda states: states.max(0).values,
    "pooling_mode_mean_sqrt_len_tokens": lambda states: states.sum(0) / len(states) ** 0.5,
    "pooling_mode_weightedmean_tokens": lambda states: (
        sum(i * state for i, state in enumerate(states, 1)) / sum(range(len(states) + 1))
    ),
    "pooling_mode_lasttoken": lambda states: states[-1],
}


@pytest.mark.parametrize("mode", POOLED)
def test_further_poolings(mode: str, tmp_path: Path) -> None:
    rows = texts(9)
    folder = encoder(tmp_path / "m", {mode: True, "pooling_mode_mean_tokens": False})
    _, outputs = embedded(folder, tmp_path, rows)
    expected = torch.stack([POOLED[mode](hidden(folder, text)) for text in rows])
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode": ["cls", "mean", "lasttoken"]},
        {  # sentence-transformers joins by its own order, not by that of the file
            "pooling_mode_lasttoken": True,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_cls_token": True,
        },
    ],
)
def test_joined_poolings(pooling: dict[str, Any], tmp_path: Path) -> None:
    rows = texts(9)
    folder = encoder(tmp_path / "m", pooling)
    task, outputs = embedded(folder, tmp_path, rows)
    states = [hidden(folder, text) for text in rows]
    expected = torch.stack([torch.cat([s[0], s.mean(0), s[-1]]) for s in states])
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-4)
    assert (
        "model: embeddings are those of the first token, then the mean of the tokens, then those "
        "of the last token"
    ) in task.notes


def test_padding_before_the_text() -> None:
    """Tokenizers of decoders, such as Qwen3-Embedding's, fill up at the begin."""
    tokens = torch.randn(1, 3, 5)
    mask = torch.ones(1, 3, dtype=torch.long)
    filled = torch.cat([torch.randn(1, 2, 5), tokens], 1)
    before = torch.cat([torch.zeros(1, 2, dtype=torch.long), mask], 1)
    for pooling in set(POOLINGS) - {"cls", "weightedmean"}:
        found = _pooled(pooling, filled, before)
        torch.testing.assert_close(found, _pooled(pooling, tokens, mask))


def test_poolings_that_are_not_supported(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": text} for text in texts(12)])
    folder = encoder(tmp_path / "own", {"pooling_mode": "attention"})
    with pytest.raises(
        TaskError, match=r"pooling attention is not supported; there are cls, max, mean, mean_sqrt"
    ):
        ac.from_pretrained(folder, validation=data)
    folder = encoder(tmp_path / "lstm", {"pooling_mode": "mean"}, "LSTM")
    with pytest.raises(TaskError, match=r"modules\.json: LSTM is not supported; there are Trans"):
        ac.from_pretrained(folder, validation=data)


def prompted(folder: Path, name: str | None, **prompts: str) -> Path:
    settings = {"prompts": prompts, "default_prompt_name": name}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


def test_the_default_prompt_begins_each_text(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "m", {"pooling_mode_mean_tokens": True})
    rows = texts(6)
    prompted(folder, "query", query="w1 w2 ", document="w3 ")
    _, outputs = embedded(folder, tmp_path, [f"w1 w2 {text}" for text in rows], rows)
    expected = torch.stack([hidden(folder, f"w1 w2 {text}").mean(0) for text in rows])
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-4)
    pairs = [{"sentence1": a, "sentence2": b} for a, b in zip(rows, rows[::-1], strict=True)]
    data = write_jsonl(tmp_path / "dev.jsonl", pairs)
    task = ac.from_pretrained(folder, validation=data, test=data)
    (inputs, _), *_ = task.validation
    begin = tokenizer()("w1 w2")["input_ids"][:-1]
    assert {tuple(row) for row in inputs["input_ids"][:, :3].tolist()} == {tuple(begin)}
    assert "data: each text begins with the default prompt of the folder, 'w1 w2 '" in task.notes
    prompted(folder, None, query="w1 w2 ")
    task = ac.from_pretrained(folder, validation=data, test=data)
    assert not any("prompt" in note for note in task.notes)


def test_prompts_that_cannot_be_followed(tmp_path: Path) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    folder = encoder(tmp_path / "m", pooling)
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": text} for text in texts(4)])
    prompted(folder, "quer", query="w1 ")
    with pytest.raises(TaskError) as caught:
        ac.from_pretrained(folder, validation=data, test=data)
    assert str(caught.value) == (
        f"{folder}/config_sentence_transformers.json: default_prompt_name 'quer' is none of its "
        "prompts (query); nearest: query"
    )
    prompted(folder, "query", query="w1 ")
    with pytest.raises(TaskError) as caught:
        ac.from_pretrained(folder, validation=data, test=data)
    assert str(caught.value) == (
        f"{folder}/1_Pooling/config.json: include_prompt false is not supported with the default "
        "prompt 'w1 '; nearest: true"
    )
    prompted(folder, "query", query="")
    assert ac.from_pretrained(folder, validation=data, test=data).pretrained.metric == "cosine"
