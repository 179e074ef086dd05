from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.compress.assemble import library as library_module
from autocompress.compress.assemble.library import VariantLibrary
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.calibrate.statistics import collect_statistics
from autocompress.compress.prune.masks import Masks, Pruner
from autocompress.integer_form import IntegerForm
from autocompress.model.plain.split import split_modules

ALL = Masks({})


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


class Tied(nn.Module):
    """Look tokens up in a table, mix neighbours, and multiply by the table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(64, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.embed(ids)))


def test_a_table_that_a_head_shares_is_rounded_for_the_heads_inputs_too() -> None:
    torch.manual_seed(0)
    model, device = Tied().eval(), torch.device("cpu")
    with torch.no_grad():  # inputs of the head share directions
        model.mix.weight.mul_(torch.logspace(0.5, -2, 32)[:, None])
    batches = [torch.randint(64, (16, 12)) for _ in range(5)]
    modules = find_modules(model, batches[0])
    statistics = collect_statistics(model, modules, batches[1:], device)
    assert set(statistics) == {"mix", "head"}, "the table has none of its own"
    made = {}
    for name, known in (("seen", statistics), ("blind", {})):
        library = VariantLibrary(Evidence(model, known))
        variant = library.get("embed", ModuleConfig(3, group_size=16), ALL)
        made[name] = variant.factors[0].dequantized() - model.embed.weight.detach()
    with torch.no_grad():
        inputs = model.mix(model.embed(batches[0])).flatten(0, 1)
    lost = {name: float((inputs @ error.T).square().mean()) for name, error in made.items()}
    moved = {name: float(error.square().mean()) for name, error in made.items()}
    assert lost["seen"] < 0.9 * lost["blind"]
    assert moved["seen"] < 1.5 * moved["blind"], "what is looked up stays near, too"
    kept = VariantLibrary(Evidence(model, statistics)).get("embed", ModuleConfig(3), ALL)
    again = VariantLibrary(Evidence(model, statistics)).get("embed", ModuleConfig(3), ALL)
    assert torch.equal(kept.factors[0].values, again.factors[0].values)


def state_hash(model: nn.Module) -> int:
    return hash(tuple(float(p.double().sum()) for p in model.state_dict().values()))


def test_a_variant_is_made_once(model: nn.Module, tmp_path: Path) -> None:
    library = VariantLibrary(Evidence(model), tmp_path)
    config = ModuleConfig(4, 8, rank_ratio=0.25)
    first = library.get("0", config, ALL)
    assert (library.made, library.reused) == (1, 0)
    assert library.get("0", ModuleConfig(4, 32, rank_ratio=0.25), ALL) is first, (
        "activations play no part in the weights"
    )
    assert (library.made, library.reused) == (1, 1)
    other = VariantLibrary(Evidence(model), tmp_path)
    second = other.get("0", config, ALL)
    assert (other.made, other.reused) == (0, 1), "another process finds it on disk"
    for a, b in zip(first.factors, second.factors, strict=True):
        torch.testing.assert_close(a.dequantized(), b.dequantized())
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    third = VariantLibrary(Evidence(model), tmp_path)
    third.get("0", config, ALL)
    assert third.made == 1, "other weights are another variant"


def test_each_compression_looks_at_the_time_first(model: nn.Module) -> None:
    library = VariantLibrary(Evidence(model))
    library.get("0", ModuleConfig(4), ALL)

    def look() -> None:
        raise TimeoutError

    library.look = look
    library.get("0", ModuleConfig(4), ALL)  # what is known takes no time
    with pytest.raises(TimeoutError):
        library.get("2", ModuleConfig(4), ALL)
    assert library.made == 1


def test_the_folder_is_bounded(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "DISK_BYTES", 5000)
    library = VariantLibrary(Evidence(model), tmp_path)
    for bits in (3, 4, 8, 16):
        library.get("0", ModuleConfig(bits), ALL)
    files = list(tmp_path.rglob("*.safetensors"))
    assert 0 < len(files) < 4
    assert sum(path.stat().st_size for path in files) <= 5000
    library.get("0", ModuleConfig(4), ALL)
    assert library.made == 4, "what left the disk is still in memory"


def test_a_damaged_file_is_made_again(model: nn.Module, tmp_path: Path) -> None:
    VariantLibrary(Evidence(model), tmp_path).get("0", ModuleConfig(4), ALL)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    library = VariantLibrary(Evidence(model), tmp_path)
    library.get("0", ModuleConfig(4), ALL)
    assert library.made == 1


def test_memory_is_bounded(model: nn.Module) -> None:
    library = VariantLibrary(Evidence(model), None, memory_bytes=3000)
    for name in ("0", "2"):
        for bits in (4, 8, 16, 32):
            library.get(name, ModuleConfig(bits), ALL)
    assert library._held <= 3000 or len(library._memory) == 1


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    model: nn.Module, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    library = VariantLibrary(Evidence(model), blocked / "below")
    assert library.get("0", ModuleConfig(8), ALL).factors[0].weight_bits == 8


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_zeros_of_a_smoothed_weight_are_ranked_by_its_own_gradients(
    criterion: str, model: nn.Module
) -> None:
    x = torch.randn(64, 16)
    losses = lambda m: (m(part).square().mean() for part in x.split(8))  # noqa: E731
    library = VariantLibrary(Evidence(model, losses=losses))
    config = ModuleConfig(sparsity=0.5, sparsity_criterion=criterion)
    factors = torch.logspace(-1.5, 1.5, 16)  # the changes of the loss are the same
    plain, smoothed = (library.get("0", config, ALL, one).factors[0] for one in (None, factors))
    kept = plain.dequantized() != 0
    assert int(kept.sum()) == 256
    assert torch.equal(smoothed.dequantized() != 0, kept)


@pytest.fixture
def stitcher(model: nn.Module) -> Stitcher:
    found = find_modules(model, torch.rand(2, 16))
    return Stitcher(split_modules(model), found, VariantLibrary(Evidence(model)))


def test_identity_is_bit_exact_and_the_original_untouched(
    model: nn.Module, stitcher: Stitcher
) -> None:
    before = state_hash(model)
    x = torch.rand(4, 16)
    stitcher.apply(
        Candidate.of(
            {"0": ModuleConfig(4, 8, rank_ratio=0.25, pruning_ratio=0.5), "2": ModuleConfig(4, 8)}
        )
    )
    assert not torch.equal(stitcher.model(x), model(x))
    assert torch.equal(stitcher.apply(Candidate())(x), model(x))
    assert state_hash(model) == before


def test_pruning_removes_the_weakest_units_and_equals_removal(
    model: nn.Module, stitcher: Stitcher
) -> None:
    found = find_modules(model, torch.rand(2, 16))
    candidate = Candidate.of({"0": ModuleConfig(pruning_ratio=0.5)})
    masks = Pruner(Evidence(model), found).masks(candidate)
    kept = torch.from_numpy(masks.of("0", "out"))
    assert int(kept.sum()) == 16
    rows, columns = (
        model[0].weight.detach().square().sum(1),
        model[2].weight.detach().square().sum(0),
    )
    strength = rows / rows.mean() + columns / columns.mean()
    assert float(strength[kept].min()) >= float(strength[~kept].max())
    small = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    small[0].weight.data, small[0].bias.data = model[0].weight[kept].data, model[0].bias[kept].data
    small[2].weight.data, small[2].bias.data = model[2].weight[:, kept].data, model[2].bias.data
    x = torch.rand(4, 16)
    torch.testing.assert_close(stitcher.apply(candidate)(x), small(x))
    assert stitcher.library.get("0", ModuleConfig(), masks).factors[0].values.shape == (16, 16)


def test_a_ratio_never_empties_a_group(model: nn.Module) -> None:
    found = find_modules(model, torch.rand(2, 16))
    assert found.groups[0].kept_units(0.999) == 1


def test_a_trial_compresses_nothing_that_an_earlier_one_compressed(stitcher: Stitcher) -> None:
    stitcher.apply(Candidate.of({"0": ModuleConfig(4), "2": ModuleConfig(8)}))
    made = stitcher.library.made
    stitcher.apply(Candidate.of({"0": ModuleConfig(4), "2": ModuleConfig(4)}))
    assert stitcher.library.made == made + 1
    stitcher.apply(Candidate.of({"0": ModuleConfig(4, 8), "2": ModuleConfig(7)}))
    made = stitcher.library.made
    stitcher.apply(Candidate.of({"0": ModuleConfig(4, 8), "2": ModuleConfig(8, 8)}))
    assert stitcher.library.made == made, (
        "8 bits of an integer kernel that is exact everywhere are 7"
    )
    stitcher.library.integer_form = lambda name: IntegerForm.SIGNED
    stitcher.apply(Candidate.of({"0": ModuleConfig(4, 8), "2": ModuleConfig(8, 8)}))
    assert stitcher.library.made == made, (
        "where all 8 bits are exact, they are those of the float kernel"
    )
    stitcher.apply(Candidate.of({"0": ModuleConfig(4, 8, 8), "2": ModuleConfig(8, 8)}))
    assert stitcher.library.made == made + 1, "in groups, multiples of a row's scale"
    stitcher.library.integer_form = lambda name: IntegerForm.REDUCED
    stitcher.apply(Candidate.of({"0": ModuleConfig(4, 8, 8), "2": ModuleConfig(8)}))
    assert stitcher.library.made == made + 2, "and smaller ones where all shall be exact everywhere"
