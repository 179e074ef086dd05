"""Estimate the divergence that a change of one module causes, without running the model again.

The search estimates the sensitivity of every choice in this way before it measures the decisive
ones. The second-order model is Kronecker-factored (Martens and Grosse 2015).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.factorise.low_rank import compose
from autocompress.compress.prune.masks import Mask
from autocompress.model.weights import weight_of
from autocompress.task.batches import Inputs, batch_size, to_device
from autocompress.task.calls import call_model
from autocompress.task.outputs import MASKED
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError

STEP = 0.01  # shift of the outputs, as a share of their standard deviation


class Curvature:
    """Estimate divergences by 1/2 tr(G dW A dW^T) per module.

    A is the second moment of the module's inputs, from calibration. G is the second moment of the
    gradients at its outputs (Martens and Grosse 2015). The gradients are those of the divergence
    itself, at outputs shifted at random (Hutchinson 1990): any divergence will do, and no label is
    needed.
    """

    def __init__(
        self,
        task: Task,
        stitcher: Stitcher,
        batches: Iterable[Inputs],
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self._stitcher = stitcher
        self._statistics = stitcher.library.evidence.statistics
        names = []
        for module in stitcher.module_map:
            if module.kind in ("linear", "conv") and module.name in self._statistics:
                names.append(module.name)
        self._gradients = _gradients(task, stitcher.teacher, names, batches, device, seed)

    def estimate(self, module: str, config: ModuleConfig) -> float | None:
        """Return the estimated divergence with one module, or one channel group, compressed.

        Args:
            module: the module, or the root of the group if `config` prunes.
            config: the only change.

        Returns:
            The divergence; None where the inputs of a module are not known, as for embeddings and
            recurrent weights.
        """
        stitcher = self._stitcher
        masks = stitcher.pruner.masks(Candidate.of({module: config}))
        if config.pruning_ratio == 0:
            return self._of(module, config, stitcher.library.get(module, config, masks), None)
        readers = [name for (name, side) in masks.kept if side == "in"]
        estimates = []
        for name in readers:
            if masks.dropped(name):
                return None
            variant = stitcher.library.get(name, ModuleConfig(), masks)
            estimate = self._of(name, ModuleConfig(), variant, masks.of(name, "in"))
            if estimate is None:
                return None
            estimates.append(estimate)
        return float(sum(estimates)) if estimates else None

    def _of(
        self, name: str, config: ModuleConfig, variant: Variant, mask: Mask | None
    ) -> float | None:
        if name not in self._gradients:
            return None
        weight = weight_of(self._stitcher.library.model.get_submodule(name)).detach().float().cpu()
        dense = compose([factor.dequantized() for factor in variant.factors]).float()
        if mask is not None:
            full = torch.zeros(len(dense), *weight.shape[1:])
            full[:, torch.from_numpy(mask)] = dense
            dense = full
        if dense.shape != weight.shape:
            return None
        gradients = self._gradients[name]
        change = (dense - weight).flatten(1)
        gram, mean = self._statistics[name].gram.float(), self._statistics[name].mean.float()
        if variant.bias is not None:  # the bias corrects the change of the mean
            gram = gram - mean[:, :, None] * mean[:, None, :]
        rows = change.view(len(gram), -1, change.shape[1])
        moved = torch.einsum("goi,gij,gpj->gop", rows, gram, rows)
        size = rows.shape[1]
        blocks = [gradients[i : i + size, i : i + size] for i in range(0, len(change), size)]
        estimate = 0.5 * float((moved * torch.stack(blocks)).sum())
        if config.activation_bits < 32:
            slopes = float((gradients * (weight.flatten(1) @ weight.flatten(1).T)).sum())
            estimate += 0.5 * self._rounding(name, config) * slopes
        return max(estimate, 0.0)

    def _rounding(self, name: str, config: ModuleConfig) -> float:
        """Return the variance of the rounding of inputs: a twelfth of the squared step."""
        statistics = self._statistics[name]
        low = min(float(statistics.lowest.min()), 0.0)
        high = max(float(statistics.highest.max()), 0.0)
        return float(((high - low) / (2**config.activation_bits - 1)) ** 2 / 12)


def _gradients(
    task: Task,
    model: nn.Module,
    names: list[str],
    batches: Iterable[Inputs],
    device: torch.device,
    seed: int,
) -> Mapping[str, Tensor]:
    """Return, by module, (out, out) sums over positions of g g^T per sample.

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
    sums: dict[str, Tensor] = {}
    samples, curved, squared = 0, 0.0, 0.0
    try:
        for parameter in needed:
            parameter.requires_grad_(False)
        for inputs in batches:
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
                        sums[name] = sums.get(name, torch.zeros(1)) + rows.T @ rows
    except (RuntimeError, UserCodeError):
        return {}
    finally:
        for handle in handles:
            handle.remove()
        for parameter in needed:
            parameter.requires_grad_(True)
    # Slopes hold the squared curvature; its own trace says how large it is.
    scale = curved / squared if squared > 0 else 0.0
    gradients = {}
    for name, total in sums.items():
        if bool(total.isfinite().all()):
            gradients[name] = total * (scale / samples)
    return gradients


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
        output = call_model(model, inputs)
        output.retain_grad()
        fixed = output.detach()
        # Masked classes are infinite.
        step = STEP * float(fixed[fixed.abs() < MASKED].std()) or STEP
        direction = torch.randn(output.shape, generator=generator).to(output.device)
        divergence = task.output_divergence(output, fixed - step * direction).sum() / step
        divergence.backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None
    return direction, output.grad
