"""Count how often each weight is used in one call of a model, and its multiply-accumulates.

`modules.find_modules` stores the counts in the module map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autocompress.model.plain.recurrent import GateWeights, SplitRecurrent
from autocompress.model.weights import weight_of
from autocompress.task.batches import Inputs
from autocompress.task.calls import call_model


def count_positions(
    model: nn.Module, example_inputs: Inputs, names: list[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Return how many vectors each weight multiplies, and the multiply-accumulates of the model.

    Args:
        model: a plain model whose parameters have no gradients.
        example_inputs: one batch of inputs on the CPU.
        names: the modules to count.

    Returns:
        (positions by module in the order of the first call, MACs by operator).
    """
    positions: dict[str, int] = {}

    def record(name: str) -> Any:
        def hook(module: Any, _: Any, output: Tensor) -> None:
            width = module.weight.shape[1 if isinstance(module, nn.Embedding) else 0]
            positions[name] = positions.get(name, 0) + output.numel() // width

        return hook

    def record_gates(name: str) -> Any:
        def hook(module: SplitRecurrent, _: Any, output: tuple[Tensor, Any]) -> None:
            for gates in module.gate_names():
                full = f"{name}.{gates}" if name else gates
                positions[full] = positions.get(full, 0) + output[0].numel() // output[0].shape[-1]

        return hook

    handles = [model.get_submodule(name).register_forward_hook(record(name)) for name in names]
    for name, module in model.named_modules():
        if isinstance(module, SplitRecurrent):
            handles.append(module.register_forward_hook(record_gates(name)))
    try:
        recurrent = [n for n, m in model.named_modules() if isinstance(m, SplitRecurrent)]
        by_operator = _count_macs(model, example_inputs, recurrent)
        if by_operator is None:
            positions.clear()
            with torch.no_grad():
                call_model(model, example_inputs)
            products = 0
            for name, count in positions.items():
                products += weight_of(model.get_submodule(name)).numel() * count
            by_operator = {"products": products}
    finally:
        for handle in handles:
            handle.remove()
    steps = 0
    for name, count in positions.items():
        gates = model.get_submodule(name)
        if isinstance(gates, GateWeights):
            steps += gates.weight.numel() * count
    if steps:
        by_operator["recurrent"] = steps
    return positions, by_operator


def _count_macs(
    model: nn.Module, example_inputs: Inputs, recurrent: Sequence[str]
) -> dict[str, int] | None:
    """Return MACs by operator, without those inside of recurrent layers.

    The counter sees the products of some kinds of them. None if it cannot follow the model
    (torch.cond, loops).
    """
    try:
        # The math backend shows attention's two products to the counter; the fused ones hide them.
        backend, counter = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
        with backend, counter, torch.no_grad():
            call_model(model, example_inputs)
    except Exception:
        torch._dynamo.reset()  # code that was compiled under the counter does not run without it
        return None
    counts = counter.get_flop_counts()
    flops = dict(counts.get("Global", {}))
    for name in recurrent:
        path = ".".join(part for part in (type(model).__name__, name) if part)
        for op, inside in counts.get(path, {}).items():
            flops[op] -= inside
    return {str(op).replace("aten.", ""): count // 2 for op, count in flops.items() if count}
