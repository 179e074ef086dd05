"""Statistics of normalisations follow compressed weights, and stay where nothing has changed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from autocompress.compress.calibrate.batch_norm import (
    SAMPLES,
    Moments,
    NormStatistics,
    moved,
    norm_samples,
)


class Net(nn.Module):
    """Two convolutions with normalisations; the second normalisation is called under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.again = self.last
        self.head = nn.Linear(8, 4)
        self.calls = 0
        for norm in (self.norm, self.last):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.second(self.norm(self.first(x)).relu())
        return self.head(self.last(x).relu().mean((2, 3)))


def batches(size: int = 16, count: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, 3, 10, 10, generator=generator).split(size))


def outputs(model: nn.Module) -> Tensor:
    return model(torch.cat(batches()))


def test_a_scaled_and_shifted_input_is_undone() -> None:
    net, x = Net(), batches()
    changed = copy.deepcopy(net)
    changed.first.weight.mul_(3)
    changed.first.bias.add_(2)
    found = NormStatistics(net, x).estimate(changed, ["first"])
    assert {"norm.running_mean", "norm.running_var"} <= set(found)
    torch.testing.assert_close(found["norm.running_var"], 9 * net.norm.running_var)
    torch.testing.assert_close(outputs(changed), outputs(net), atol=1e-4, rtol=1e-3)
    # They are set in the copy, and the float model is as it was.
    assert torch.equal(changed.norm.running_var, found["norm.running_var"])
    torch.testing.assert_close(outputs(net), outputs(Net()))


def test_moments_of_outputs_are_those_of_the_float_model() -> None:
    """Also behind a normalisation whose own statistics changed."""
    net, x = Net(), batches()
    changed = copy.deepcopy(net)
    changed.first.weight[:, 1:] = 0  # pruned inputs
    changed.second.weight.copy_((changed.second.weight * 20).round() / 20)
    found = NormStatistics(net, x).estimate(changed, ["first", "second"])
    assert {name.rpartition(".")[0] for name in found} == {"norm", "last", "again"}
    read = {}
    for model in (net, changed):
        inputs: list[Tensor] = []
        handle = model.last.register_forward_hook(lambda m, i, o, to=inputs: to.append(o))
        outputs(model)
        handle.remove()
        read[model] = inputs[0]
    for moment in (torch.mean, torch.var):
        values = [moment(read[model], dim=(0, 2, 3)) for model in (net, changed)]
        torch.testing.assert_close(values[1], values[0], atol=0.05, rtol=0.05)


def test_what_nothing_has_changed_stays_bit_by_bit() -> None:
    net = Net()
    statistics = NormStatistics(net, batches())
    assert statistics.estimate(copy.deepcopy(net), ["first"]) == {}
    changed = copy.deepcopy(net)
    changed.second.weight.mul_(2)
    found = statistics.estimate(changed, ["second"])
    assert set(found) == {f"{n}.running_{s}" for n in ("last", "again") for s in ("mean", "var")}
    assert torch.equal(changed.norm.running_mean, net.norm.running_mean)


def test_no_pass_where_nothing_can_change() -> None:
    net = Net()
    changed, statistics = copy.deepcopy(net), NormStatistics(net, batches())
    assert statistics.estimate(changed, ["head"]) == {}
    assert statistics.estimate(changed, []) == {}
    assert NormStatistics(net).estimate(changed, ["first"]) == {}
    plain = nn.Sequential(nn.Linear(3, 3)).eval()
    assert NormStatistics(plain, [torch.ones(1, 3)]).estimate(plain, ["0"]) == {}
    assert changed.calls == 0


def test_samples_are_held_only_for_models_with_statistics() -> None:
    found = norm_samples(Net(), batches(size=30, count=300))
    assert len(found) == -(-SAMPLES // 30)
    assert norm_samples(nn.Sequential(nn.LayerNorm(3)), batches()) == ()
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    assert norm_samples(norm, batches()) == ()


def test_batches_of_one_sample_give_the_same() -> None:
    net, results = Net(), []
    for size in (1, 64):
        changed = copy.deepcopy(net)
        changed.first.weight[:, 1:] = 0
        results.append(NormStatistics(net, batches(size)).estimate(changed, ["first"]))
    for name, value in results[1].items():
        torch.testing.assert_close(results[0][name], value, atol=0.02, rtol=0.1)


def test_dead_channels_keep_their_variance_and_their_mean_output() -> None:
    mean, variance = torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0])
    seen = Moments.of(torch.randn(512, 2, generator=torch.Generator().manual_seed(0)))
    dead = Moments.of(torch.full((512, 2), 7.0))
    new_mean, new_variance = moved(mean, variance, seen, dead, 1e-5)
    assert torch.equal(new_variance, variance)
    torch.testing.assert_close(7.0 - new_mean, seen.mean.float() - mean)


def test_joined_moments_are_those_of_all_values() -> None:
    x = torch.randn(30, 4, 5, generator=torch.Generator().manual_seed(0))
    joined, whole = Moments.of(x[:7]).joined(Moments.of(x[7:])), Moments.of(x)
    assert joined.count == whole.count == 150
    torch.testing.assert_close(joined.mean, whole.mean)
    torch.testing.assert_close(joined.variance, whole.variance)
