"""What a change of one module's weights does to the outputs, to second order, without running the model again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.library import Variant
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.factorise.low_rank import compose
from autocompress.compress.prune.masks import Mask
from autocompress.model.weights import weight_of
from autocompress.task.batches import Inputs, batch_size, to_device
from autocompress.task.calls import call_model
from autocompress.task.outputs import MASKED
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError

STEP = 0.01  # of the outputs' standard deviation, by which they are shifted


class Curvature:
    """The Kronecker-factored second-order model of the divergence: 1/2 tr(G dW A dW^T) per module, with A the second moment of its inputs
    (from calibration) and G that of the gradients at its outputs (Martens and Grosse 2015). The gradients are those of the divergence
    itself, from outputs that are shifted at random (Hutchinson 1990), so that any divergence will do and no label is needed.
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
        names = [
            m.name
            for m in stitcher.module_map
            if m.kind in ("linear", "conv") and m.name in self._statistics
        ]
        self._gradients = _gradients(task, stitcher.teacher, names, batches, device, seed)

    def estimate(self, module: str, config: ModuleConfig) -> float | None:
        """The divergence with one module (or one group, where `config` prunes) compressed; None where a module's inputs are not known, as
        those of embeddings and recurrent weights."""
        stitcher = self._stitcher
        masks = stitcher.pruner.masks(Candidate.of({module: config}))
        if config.pruning_ratio == 0:
            return self._of(module, config, stitcher.library.get(module, config, masks), None)
        readers = [name for (name, side) in masks.kept if side == "in"]
        found = []
        for name in readers:
            if masks.dropped(name):
                return None
            found.append(
                self._of(
                    name,
                    ModuleConfig(),
                    stitcher.library.get(name, ModuleConfig(), masks),
                    masks.of(name, "in"),
                )
            )
        if not found or any(value is None for value in found):
            return None
        return float(sum(value for value in found if value is not None))

    def _of(
        self, name: str, config: ModuleConfig, variant: Variant, kept: Mask | None
    ) -> float | None:
        if name not in self._gradients:
            return None
        weight = weight_of(self._stitcher.library.model.get_submodule(name)).detach().float().cpu()
        dense = compose([factor.dequantized() for factor in variant.factors]).float()
        if kept is not None:
            full = torch.zeros(len(dense), *weight.shape[1:])
            full[:, torch.from_numpy(kept)] = dense
            dense = full
        if dense.shape != weight.shape:
            return None
        change, gradients = (dense - weight).flatten(1), self._gradients[name]
        gram, mean = self._statistics[name].gram.float(), self._statistics[name].mean.float()
        if variant.bias is not None:  # it takes up what the change does to the mean
            gram = gram - mean[:, :, None] * mean[:, None, :]
        rows = change.view(len(gram), -1, change.shape[1])
        moved = torch.einsum("goi,gij,gpj->gop", rows, gram, rows)
        size = rows.shape[1]
        own = torch.stack(
            [gradients[i : i + size, i : i + size] for i in range(0, len(change), size)]
        )
        found = 0.5 * float((moved * own).sum())
        if config.activation_bits < 32:
            found += (
                0.5
                * self._rounding(name, config)
                * float((gradients * (weight.flatten(1) @ weight.flatten(1).T)).sum())
            )
        return max(found, 0.0)

    def _rounding(self, name: str, config: ModuleConfig) -> float:
        """Variance of the rounding of inputs: a twelfth of the squared step."""
        statistics = self._statistics[name]
        low, high = (
            min(float(statistics.lowest.min()), 0.0),
            max(float(statistics.highest.max()), 0.0),
        )
        return float(((high - low) / (2**config.activation_bits - 1)) ** 2 / 12)


def _gradients(
    task: Task,
    model: nn.Module,
    names: list[str],
    batches: Iterable[Inputs],
    device: torch.device,
    seed: int,
) -> Mapping[str, Tensor]:
    """(out, out) sums over positions of g g^T per sample, by module; none for a model that cannot be differentiated."""
    seen: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Any:
        def see(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            output.retain_grad()
            seen.setdefault(name, []).append(output)
            return output.clone()  # what follows may write to it

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
            seen.clear()
            direction, slope = _slope(task, model, to_device(inputs, device), generator)
            curved, squared = (
                curved + float((direction * slope).sum()),
                squared + float(slope.square().sum()),
            )
            samples += batch_size(inputs)
            for name, outputs in seen.items():
                module = model.get_submodule(name)
                for found in outputs:
                    if found.grad is not None:
                        rows = found.grad
                        if isinstance(
                            module, (nn.Conv1d, nn.Conv2d)
                        ):  # channels last, with a batch or without
                            rows = rows.movedim(-1 - len(module.kernel_size), -1)
                        rows = rows.reshape(-1, rows.shape[-1]).float().cpu()
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
    return {
        name: total * (scale / samples)
        for name, total in sums.items()
        if bool(total.isfinite().all())
    }


def _slope(
    task: Task, model: nn.Module, inputs: Inputs, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(direction, the divergence's curvature along it), both of the outputs' shape; gradients of it are left in what was retained."""
    with torch.enable_grad():
        output = call_model(model, inputs)
        output.retain_grad()
        fixed = output.detach()
        step = (
            STEP * float(fixed[fixed.abs() < MASKED].std()) or STEP
        )  # masked classes are infinite
        direction = torch.randn(output.shape, generator=generator).to(output.device)
        divergence = task.output_divergence(output, fixed - step * direction).sum() / step
        divergence.backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None
    return direction, output.grad
