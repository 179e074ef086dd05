"""Estimate the divergence that a change of one module causes, without running the model again.

The search estimates the sensitivity of every choice in this way before it measures the decisive
ones. The second-order model is Kronecker-factored (Martens and Grosse 2015).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.candidate import ModuleConfig
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.calibrate.statistics import LayerStatistics
from autocompress.compress.factorise.low_rank import factor_shapes
from autocompress.compress.prune.sparsify import NEEDS_GRADIENTS
from autocompress.differences import filler_size
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.weights import weight_of
from autocompress.search.propose.estimate.layer_loss import LayerLoss
from autocompress.search.propose.estimate.slopes import Slopes
from autocompress.spill import Spilled
from autocompress.task.batches import Inputs, batch_size, to_device
from autocompress.task.calls import call_model
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError

# Up to so many units are ordered as the search removes them. More take their first costs for the
# order, since the exact one takes as long as all other estimates together.
GREEDY = 64
Losses = NDArray[np.float64]
# Layers whose factors are kept; each takes several times the memory of its inputs' H. A channel
# group needs those of all its readers at once.
LAYERS = 8
STEP = 0.01  # shift of the outputs, as a share of their standard deviation


class Curvature:
    """Estimate divergences by 1/2 tr(G dW A dW^T) per module.

    A is the second moment of the module's inputs, from calibration. G is the second moment of the
    gradients at its outputs (Martens and Grosse 2015). The gradients are those of the divergence
    itself, at outputs shifted at random (Hutchinson 1990): any divergence will do, and no label is
    needed. The change dW is not made: `estimate/layer_loss.py` knows its loss in closed form.
    """

    def __init__(
        self,
        task: Task,
        stitcher: Stitcher,
        batches: Iterable[Inputs],
        device: torch.device,
        seed: int = 0,
        deadline: float | None = None,
    ) -> None:
        """Collect the gradients of all modules.

        Args:
            task: gives the model call and the divergence.
            stitcher: gives the float model, its statistics and its modules.
            batches: inputs of the model.
            device: runs the model.
            seed: determines the shifts of the outputs.
            deadline: on the monotonic clock, in seconds; later batches are left out.
        """
        self._library, self._pruner = stitcher.library, stitcher.pruner
        self._modules, self._groups = stitcher.module_map, {}
        for group in stitcher.module_map.groups:
            if group.reason is None:
                self._groups[group.name] = group
        names = []
        for module in stitcher.module_map:
            known = module.name in self._library.evidence.statistics
            if module.kind in ("linear", "conv") and known:
                names.append(module.name)
        self._gradients = _gradients(task, stitcher.teacher, names, batches, device, seed, deadline)
        self._layers: OrderedDict[str, LayerLoss] = OrderedDict()
        self._rounded: dict[tuple[str, ModuleConfig, int], float] = {}
        self._ranks: dict[tuple[str, str], Losses] = {}
        self._removals: dict[tuple[str, str], Losses | None] = {}

    def estimate(self, module: str, config: ModuleConfig) -> float | None:
        """Return the estimated divergence with one module, or one channel group, compressed.

        Bits, rank, zeros and pruning are estimated apart and added up.

        Args:
            module: the module, or the root of the group if `config` prunes.
            config: the only change.

        Returns:
            The divergence; None where the inputs of a module are not known, as for embeddings and
            recurrent weights.
        """
        loss = 0.0
        if config.pruning_ratio > 0:
            losses = self._removed(module, config.importance)
            if losses is None:
                return None
            group = self._groups[module]
            loss += float(losses[group.units - group.kept_units(config.pruning_ratio)])
        if replace(config, pruning_ratio=0.0).effective() == ModuleConfig():
            return loss
        layer = self._layer(module)
        if layer is None:
            return None
        loss += self._bits(module, layer, config)
        if config.rank_ratio < 1 and self._modules[module].factorisable:
            loss += self._factorised(module, layer, config)
        if config.sparsity > 0:
            evidence = self._library.evidence
            gradients = None
            if config.sparsity_criterion in NEEDS_GRADIENTS:
                gradients = evidence.gradients.get(module)
            loss += layer.sparsified(config, gradients)
        return loss

    def _layer(self, name: str) -> LayerLoss | None:
        """Return the loss of changes of a module; None if its inputs or gradients are unknown."""
        if name not in self._gradients:
            return None
        if name in self._layers:
            self._layers.move_to_end(name)
        else:
            weight = weight_of(self._library.model.get_submodule(name)).detach().float().cpu()
            statistics = self._library.evidence.statistics[name]
            has_bias = self._modules[name].has_bias
            slopes = self._gradients[name]
            self._layers[name] = LayerLoss(weight, statistics, slopes, has_bias)
            while len(self._layers) > LAYERS:
                self._layers.popitem(last=False)
        return self._layers[name]

    def _bits(self, name: str, layer: LayerLoss, config: ModuleConfig) -> float:
        """Return the loss of rounding weights and inputs."""
        kind, form = self._modules[name].kind, self._library.integer_form(name)
        integer = config.integer(kind)
        weights = config.for_kernel(kind, form).quantized()
        weights = replace(weights, activation_bits=32, activation_mode="auto", smoothing=0.0)
        key = name, weights, form.largest if integer and weights.group_size > 0 else 0
        if key not in self._rounded:
            self._rounded[key] = layer.rounded(weights, key[2]) if weights.weight_bits < 32 else 0.0
        loss = self._rounded[key]
        if config.activation_bits < 32:
            loss += _rounding(layer.statistics, config) * layer.input_loss
        return loss

    def _factorised(self, name: str, layer: LayerLoss, config: ModuleConfig) -> float:
        shapes = factor_shapes(layer.weight.shape, config.rank_ratio, config.decomposition)
        if len(shapes) == 3 or max(shapes[1][2:], default=1) > 1:
            return layer.folded(config.rank_ratio, config.decomposition)
        key = name, "svd" if config.decomposition == "svd" else "whitened"
        if key not in self._ranks:
            self._ranks[key] = layer.factorised(key[1])
        return float(self._ranks[key][shapes[0][0]])

    def _removed(self, root: str, importance: str) -> Losses | None:
        """Return (units,) losses of a group by the number of removed units; None if not known."""
        key = root, importance
        if key not in self._removals:
            self._removals[key] = self._of_group(self._groups[root], importance)
        return self._removals[key]

    def _of_group(self, group: ChannelGroup, importance: str) -> Losses | None:
        """Return the losses of a group; None if not all of its readers are known."""
        sides = {(member.name, member.side) for member in group.members}
        layers: dict[str, LayerLoss] = {}
        for name in dict.fromkeys(m.name for m in group.members if m.side == "in"):
            layer = self._layer(name)
            if layer is None or not {(name, "out"), (name, "whole")}.isdisjoint(sides):
                return None
            layers[name] = layer
        if not layers:
            return None
        units = {name: _unit_of_column(group, name, layer) for name, layer in layers.items()}
        if importance == "obs" and group.units > GREEDY:
            scores = np.zeros(group.units)
            for name, layer in layers.items():
                owned = units[name] < group.units
                costs = layer.column_costs.double().numpy()[owned]
                sums = np.bincount(units[name][owned], costs, group.units)
                scores += sums / max(sums.mean(), 1e-30)
        else:
            scores = self._pruner.scores(group, importance)
        steps = np.full(group.units + 1, -1)
        steps[np.argsort(scores, kind="stable")[:-1]] = np.arange(group.units - 1)
        total = np.zeros(group.units)
        for name, layer in layers.items():
            total += layer.pruned(steps[units[name]], group.units - 1)
        return total


def _rounding(statistics: LayerStatistics, config: ModuleConfig) -> float:
    """Return the variance of the rounding of inputs: a twelfth of the squared step."""
    low = min(float(statistics.lowest.min()), 0.0)
    high = max(float(statistics.highest.max()), 0.0)
    return float(((high - low) / (2**config.activation_bits - 1)) ** 2 / 12)


def _unit_of_column(group: ChannelGroup, name: str, layer: LayerLoss) -> NDArray[np.int64]:
    """Return the unit that owns each column of a reader; `group.units` for none."""
    owners = np.full(layer.weight.shape[1], group.units)
    for member in group.members:
        if (member.name, member.side) == (name, "in"):
            owners[member.index] = member.root // group.unit_size
    return owners.repeat(layer.rows.shape[1] // len(owners))


def _gradients(
    task: Task,
    model: nn.Module,
    names: list[str],
    batches: Iterable[Inputs],
    device: torch.device,
    seed: int,
    deadline: float | None,
) -> Mapping[str, Slopes]:
    """Return the second moments of the gradients by module.

    The mapping is empty if the model cannot be differentiated.
    """
    outputs_of: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Any:
        def see(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            output.retain_grad()
            outputs_of.setdefault(name, []).append(output)
            return output.clone()  # later operations may write to it

        return see

    needed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    generator = torch.Generator().manual_seed(seed)
    sums: Spilled[Slopes] = Spilled()  # together they may be larger than the model
    samples, curved, squared = 0, 0.0, 0.0
    try:
        for parameter in needed:
            parameter.requires_grad_(False)
        for inputs in batches:
            if sums and deadline is not None and time.monotonic() > deadline:
                break
            outputs_of.clear()
            direction, slope = _slope(task, model, to_device(inputs, device), generator)
            curved += float((direction * slope).sum())
            squared += float(slope.square().sum())
            samples += batch_size(inputs)
            for name, outputs in outputs_of.items():
                module = model.get_submodule(name)
                for output in outputs:
                    if output.grad is not None:
                        rows = _channels_last(module, output.grad)
                        part = Slopes.of(rows, generator)
                        sums.put(name, sums[name] + part if name in sums else part)
    except (RuntimeError, UserCodeError):
        return {}
    finally:
        for handle in handles:
            handle.remove()
        for parameter in needed:
            parameter.requires_grad_(True)
    # Slopes hold the squared curvature; its own trace says how large it is.
    scale = curved / squared if squared > 0 else 0.0
    for name in list(sums):
        total = sums[name]
        if total.is_finite():
            sums.put(name, total.scaled(scale / samples))
        else:
            sums.drop(name)
    return sums


def _channels_last(module: nn.Module, gradient: Tensor) -> Tensor:
    """Return (positions, channels) of a gradient, with or without a batch dimension."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        gradient = gradient.movedim(-1 - len(module.kernel_size), -1)
    return gradient.reshape(-1, gradient.shape[-1]).float().cpu()


def _slope(
    task: Task, model: nn.Module, inputs: Inputs, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return (direction, the divergence's curvature along it), both of the outputs' shape.

    The gradients at the modules' outputs are left in the tensors that the hooks retained.
    """
    with torch.enable_grad():
        output = task.rows(call_model(model, inputs))
        output.retain_grad()
        fixed = output.detach()
        # Masked classes are infinite, or large fillers.
        step = STEP * float(fixed[fixed.abs() < filler_size(fixed)].std()) or STEP
        direction = torch.randn(output.shape, generator=generator).to(output.device)
        divergence = task.output_divergence(output, fixed - step * direction).sum() / step
        divergence.backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None
    return direction, output.grad
