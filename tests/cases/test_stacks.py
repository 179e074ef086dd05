"""Weights that are no plain matrices.

Stacks of experts, projections per head, patches in three dimensions; and what stands around them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from fixture import relative_difference
from torch import Tensor, nn

import autocompress as ac
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.prune.masks import Masks
from autocompress.export.prepare import prepare
from autocompress.measure.prepare import prepared
from autocompress.model.plain.hugging_face import DENSE, exportable
from autocompress.model.plain.plain import plain_model
from autocompress.model.towers import find_towers
from autocompress.targets.device.sessions import open_session
from autocompress.targets.kernels import KernelChoice
from autocompress.task.batches import Inputs, feed_of
from autocompress.task.calls import call_model
from autocompress.task.task import Task
from benchmarks.hugging_face import DECODER, FAMILIES, ids

pytestmark = pytest.mark.slow

RULE = {
    "match": "*",
    "weight_bits": [4, 8],
    "activation_bits": [32],
    "rank_ratio": [0.5, 1.0],
    "pruning_ratio": [0.0, 0.5],
}
SPACE = {"modules": [RULE], "distillation": {"steps": 0}}


class Mixture(nn.Module):
    """(tokens, 8) to (tokens, 3) through four experts in stacks of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.head = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 3)
        self.up, self.down = (
            nn.Parameter(torch.randn(4, 16, 24) * 0.2),
            nn.Parameter(torch.randn(4, 24, 16) * 0.2),
        )

    def experts(self, x: Tensor) -> Tensor:
        """(4, tokens, 16)."""
        return torch.bmm(torch.bmm(x.expand(4, *x.shape), self.up).relu(), self.down)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights = self.gate(x).softmax(-1).t()[:, :, None]
        return self.head(x + (self.experts(x) * weights).sum(0))


class Einsum(Mixture):
    def experts(self, x: Tensor) -> Tensor:
        return torch.einsum(
            "tef,efd->etd", torch.einsum("td,edf->tef", x, self.up).relu(), self.down
        )


class Broadcast(Mixture):
    def experts(self, x: Tensor) -> Tensor:
        return torch.matmul(torch.matmul(x[:, None, None, :], self.up).relu(), self.down)[
            :, :, 0
        ].transpose(0, 1)


class Indexed(Mixture):
    def experts(self, x: Tensor) -> Tensor:
        return torch.stack([(x @ self.up[i]).relu() @ self.down[i] for i in range(4)])


class WithBias(Mixture):
    """A bias per expert, added in the product."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4, 1, 24))

    def experts(self, x: Tensor) -> Tensor:
        return torch.bmm(torch.baddbmm(self.bias, x.expand(4, *x.shape), self.up).relu(), self.down)


class WeightsFirst(Mixture):
    """The stack on the left of the product: (4, 24, 16) @ (4, 16, tokens)."""

    def experts(self, x: Tensor) -> Tensor:
        hidden = torch.matmul(self.up.transpose(1, 2), x.t()).relu()
        return torch.bmm(self.down.transpose(1, 2), hidden).transpose(1, 2)


class PerHead(nn.Module):
    """Attention whose projections are (width, heads, size), as einsum programs write it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(16, 4, 6) * 0.3) for _ in range(3))
        self.o, self.head = nn.Parameter(torch.randn(4, 6, 16) * 0.3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btd,dhk->bhtk", x, weight) for weight in (self.q, self.k, self.v))
        mixed = torch.einsum(
            "bhts,bhsk->bthk", torch.einsum("bhtk,bhsk->bhts", q, k).softmax(-1), v
        )
        return self.head((x + torch.einsum("bthk,hkd->btd", mixed, self.o)).mean(1))


class Video(nn.Module):
    """(n, 3, frames, height, width) in patches of (2, 4, 4); what fills no patch is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv3d(3, 16, (2, 4, 4), stride=(2, 4, 4)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.patch(x).flatten(2).amax(2).relu())


def rows(count: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(count))


def steps(count: int) -> Tensor:
    return torch.randn(count, 7, 16, generator=torch.Generator().manual_seed(count))


def clips(count: int) -> Tensor:
    return torch.randn(count, 3, 5, 9, 8, generator=torch.Generator().manual_seed(count))


KINDS: dict[str, tuple[type[nn.Module], Any, int]] = {
    "bmm": (Mixture, rows, 4 * 2 + 3),
    "einsum": (Einsum, rows, 4 + 1 + 3),
    "broadcast": (Broadcast, rows, 4 * 2 + 3),
    "indexed": (Indexed, rows, 4 * 2 + 3),
    "bias": (WithBias, rows, 4 * 2 + 3),
    "weights first": (WeightsFirst, rows, 4 * 2 + 3),
    "per head": (PerHead, steps, 4 + 1),
    "video": (Video, clips, 1 + 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_is_covered_and_the_plain_model_is_the_model(name: str) -> None:
    make, inputs_of, count = KINDS[name]
    torch.manual_seed(0)
    model = make().eval()
    found = ac.find_modules(model, inputs_of(6))
    assert len(found) == count
    assert sum(module.parameters for module in found) == sum(
        p.numel() for n, p in model.named_parameters() if n != "bias"
    )
    plain = plain_model(model, inputs_of(6))
    for size in (6, 3, 1):
        with torch.no_grad():
            torch.testing.assert_close(
                plain(inputs_of(size)), model(inputs_of(size)), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(
    "name",
    ["bmm", pytest.param("weights first", marks=pytest.mark.extensive), "per head", "video"],
)
def test_files_agree_with_the_simulation_at_other_sizes(name: str, tmp_path: Path) -> None:
    make, inputs_of, _ = KINDS[name]
    torch.manual_seed(0)
    model, x = make().eval(), inputs_of(8)
    with torch.no_grad():
        labels = model(x).argmax(1)
    task = Task(
        "stack", model, x, [(x, labels)], lambda o, t: float((o.argmax(1) == t).float().mean())
    )
    result = ac.search(
        task, SPACE, "analytic:phone-npu", 2, out=tmp_path / "run", finalize_steps=0, quiet=True
    )
    picked = {p.trial: p for p in (result.front.smallest(), result.front.most_accurate())}
    for i, point in picked.items():
        folder = ac.export(result, point, tmp_path / str(i))
        loaded, session = ac.load(folder, make()), ac.open_session(folder)
        for size in (8, 3):
            with torch.no_grad():
                expected = loaded(inputs_of(size)).numpy()
            (found,) = session.run(None, feed_of(inputs_of(size), [session.get_inputs()[0].name]))
            assert relative_difference(found, expected) < 1e-4
        ac.reproduce(folder, tmp_path / f"{i} again", task)


@pytest.mark.parametrize("bias", [True, False])
def test_patches_that_overlap_are_listed_as_not_covered(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(3, 8, 3, stride=2, bias=bias), nn.Flatten(), nn.Linear(8 * 2 * 4 * 3, 3)
    ).eval()
    found = ac.find_modules(model, clips(2))
    assert [module.name for module in found] == ["2"]
    assert ("0", "Conv3d") in {(item.name, item.what) for item in found.uncovered}
    _, output = file_of(model, clips(2))
    with torch.no_grad():
        assert relative_difference(output, model(clips(2)).numpy()) < 1e-5


def test_both_halves_of_a_gated_unit_go_together() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 48), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            gate, value = self.up(x).chunk(2, -1)
            return self.down(nn.functional.silu(gate) * value)

    torch.manual_seed(0)
    model = Gated().eval()
    task = prepared(
        Task(
            "gated",
            model,
            rows(6),
            [(rows(6), None)],
            lambda o, t: 0.0,
            divergence=lambda s, t: (s - t).abs().mean(1),
        )
    )
    group = prepare(task, ac.find_modules(model, rows(6)), KernelChoice()).module_map.groups[0]
    assert (group.name, group.kind, group.units, group.reason) == ("up", "neurons", 24, None)
    assert group.members[0].root.tolist() == [*range(24), *range(24)]


@pytest.mark.parametrize(
    "heads", [(8, 4), (6, 2), pytest.param((4, 2), marks=pytest.mark.extensive)]
)
def test_heads_of_grouped_queries_are_pruned_with_what_they_share(heads: tuple[int, int]) -> None:
    model = llama(
        hidden_size=8 * heads[0], num_attention_heads=heads[0], num_key_value_heads=heads[1]
    )
    inputs = {"input_ids": ids(3, 8)}
    with torch.no_grad():
        task = prepared(
            Task("llama", model, inputs, [(inputs, model(**inputs).logits)], lambda o, t: 0.0)
        )
    builder = prepare(task, ac.find_modules(task.model, inputs), KernelChoice())
    found = {
        group.name: (group.kind, group.units)
        for group in builder.module_map.groups
        if group.reason is None
    }
    assert found["model.layers.0.self_attn.q_proj"] == ("heads", heads[1])
    assert builder.lowered.fixed == ()


def llama(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**DECODER, **more})).eval()


def file_of(model: nn.Module, inputs: Inputs) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Output names and the first output of the float file of a model."""
    with torch.no_grad():
        task = prepared(
            Task("file", model, inputs, [(inputs, call_model(model, inputs))], lambda o, t: 0.0)
        )
    builder = prepare(task, ac.find_modules(task.model, inputs), KernelChoice())
    session = open_session(builder.baseline)
    names = [value.name for value in session.get_inputs()]
    return [value.name for value in session.get_outputs()], session.run(
        None, feed_of(inputs, names)
    )[0]


def test_a_cache_that_nobody_asked_for_is_not_in_the_file() -> None:
    model = llama(use_cache=True)
    inputs = {"input_ids": ids(3, 8)}
    names, found = file_of(model, inputs)
    assert names == ["logits"]
    assert model.config.use_cache is True, "the user's model stays as it is"
    with torch.no_grad():
        assert relative_difference(found, model(**inputs).logits.numpy()) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padding_on_the_left_leaves_rows_that_attend_to_nothing(name: str) -> None:
    torch.manual_seed(0)
    model, words = FAMILIES[name].make().eval(), ids(4, 8)
    mask = torch.ones_like(words)
    mask[0, :3], mask[1, :1] = 0, 0
    inputs = {"input_ids": words, "attention_mask": mask}
    _, found = file_of(model, inputs)
    with torch.no_grad():
        assert relative_difference(found, model(**inputs).logits.numpy()) < 1e-5


def test_settings_of_a_model_come_back_even_when_tracing_fails() -> None:
    torch.manual_seed(0)
    model = hf.MixtralForCausalLM(
        hf.MixtralConfig(
            **{**DECODER, "use_cache": True}, num_local_experts=4, num_experts_per_tok=2
        )
    ).eval()
    before = model.config._experts_implementation
    with torch.no_grad():
        expected = model(ids(2, 5)).logits

    def fails() -> None:
        with exportable(model), torch.no_grad():
            assert model.config._experts_implementation == DENSE
            assert model.config.use_cache is False
            torch.testing.assert_close(model(ids(2, 5)).logits, expected)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fails()
    assert (model.config._experts_implementation, model.config.use_cache) == (before, True)


class Pairs(nn.Module):
    """Scores of all pictures (n, 12) and all texts (n, 10): (n, n)."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures, self.texts = nn.Linear(12, 6), nn.Linear(10, 6)

    def forward(self, pictures: Tensor, texts: Tensor) -> Tensor:
        return self.pictures(pictures) @ self.texts(texts).t()


def test_outputs_that_compare_samples_are_never_cut_and_take_any_batch() -> None:
    torch.manual_seed(0)
    model, inputs = Pairs().eval(), (torch.randn(6, 12), torch.randn(6, 10))
    said: list[str] = []
    task = prepared(
        Task(
            "pairs",
            model,
            inputs,
            [(inputs, None)],
            lambda o, t: 0.0,
            divergence=lambda s, t: (s - t).abs().mean(1),
        ),
        said.append,
    )
    assert task.batch_first is False
    assert said == [
        "outputs compare the samples of a batch: batches are never cut nor joined; files take any "
        "batch size"
    ]
    session = open_session(prepare(task, ac.find_modules(model, inputs), KernelChoice()).baseline)
    other = {"pictures": np.ones((3, 12), np.float32), "texts": np.ones((4, 10), np.float32)}
    assert session.run(None, other)[0].shape == (3, 4)


def test_tensors_that_share_memory_are_stored_once() -> None:
    weight = torch.randn(4, 6)
    others = {"a": weight, "b": weight, "row": weight[1], "transposed": weight.t()}
    trained = Trained({}, others, {}, Masks({}))
    stored = trained.to_tensors()
    places = [tensor.untyped_storage().data_ptr() for tensor in stored.values()]
    assert len(set(places)) == len(places)
    found = Trained.from_tensors(stored).others
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in others.items()
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["model.vision_tower.a", "model.projector.b", "model.language_model.c", "lm_head"],
            ["vision_tower", "projector", "language_model", "lm_head"],
        ),
        (["bert.embeddings.a", "bert.encoder.b", "classifier"], ["bert", "bert", "classifier"]),
        (["model.encoder.a", "model.decoder.b", "proj_out"], ["encoder", "decoder", "proj_out"]),
        (
            ["text_model.a", "vision_model.b", "text_projection"],
            ["text_model", "vision_model", "model"],
        ),
    ],
)
def test_towers_are_found_inside_a_model_with_a_head(names: list[str], expected: list[str]) -> None:
    found = find_towers(names, None)
    assert [found[name] for name in names] == expected


class NeedsWord(nn.Module):
    """Refuses inputs without the word 3, as models refuse text without a picture's place."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and not bool((ids == 3).any()):
            raise ValueError("no place for the picture")
        return self.head(self.words(ids).mean(1))


def test_a_model_that_refuses_zeros_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, words = NeedsWord().eval(), ids(4, 6) % 20
    words[:, 0] = 3
    task = Task(
        "word",
        model,
        words,
        [(words, torch.tensor([0, 1, 2, 0]))],
        lambda o, t: float((o.argmax(1) == t).float().mean()),
    )
    result = ac.search(
        task, SPACE, "analytic:phone-npu", 1, out=tmp_path / "run", finalize_steps=0, quiet=True
    )
    folder = ac.export(result, result.front.smallest(), tmp_path / "point")
    loaded, session = ac.load(folder, NeedsWord()), ac.open_session(folder)
    with torch.no_grad():
        assert (
            relative_difference(session.run(None, {"ids": words.numpy()})[0], loaded(words).numpy())
            < 1e-4
        )
