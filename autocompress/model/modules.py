"""What in a model can be compressed, and what cannot: names, shapes, MACs, towers, roles and channel groups."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autocompress.errors import TaskError, nearest_name
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.dependency_graph import find_channel_groups
from autocompress.model.plain.plain import is_plain, plain_model
from autocompress.model.plain.recurrent import GateWeights, SplitRecurrent
from autocompress.model.towers import find_towers, role_of
from autocompress.model.weights import weight_of
from autocompress.task.batches import Inputs, map_inputs
from autocompress.task.calls import call_model

KINDS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "recurrent": (GateWeights,),
    "linear": (nn.Linear,),
    "conv": (nn.Conv1d, nn.Conv2d),
    "embedding": (nn.Embedding,),
}


@dataclass(frozen=True)
class CompressibleModule:
    """A module that can be compressed; with `aliases`, one weight that several modules share.

    Attributes:
        name: qualified name in the model (after MultiheadAttention was split into its projections).
        kind: "linear", "conv", "embedding" or "recurrent" (one weight matrix of an LSTM or GRU).
        weight_shape: (out, in) or (out, in / groups, *kernel) or (rows, width) or (gates * hidden, in).
        macs: multiply-accumulates for one call of the model on example_inputs.
        positions: vectors that its weight multiplies in that call (looked-up rows for an embedding).
        tower, role: where it is and what it does ("attention", "mlp", "embedding", "conv" or "head").
        group: the channel group that its output channels belong to, or None.
        groups: of a convolution (weight_shape[1] is the input channels of one of them).
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    has_bias: bool
    macs: int
    positions: int
    tower: str
    role: str
    group: str | None
    aliases: tuple[str, ...] = ()
    groups: int = 1

    @property
    def factorisable(self) -> bool:
        """Whether a rank applies: matrices and convolutions of one group, but no gates, which their operator wants whole."""
        return self.kind != "recurrent" and self.groups == 1

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        weights = 1
        for size in self.weight_shape:
            weights *= size
        return weights + (self.weight_shape[0] if self.has_bias else 0)


@dataclass(frozen=True)
class Uncovered:
    """Something in the model that is not compressed: its share of the parameters, or of the MACs."""

    name: str
    what: str
    parameters_share: float
    macs_share: float


@dataclass(frozen=True)
class NormGroup:
    """A normalisation whose output only linear modules read, so that its scale can move into their weights."""

    norm: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class ModuleMap:
    """The compressible modules of a model in the order of their first call, their channel groups, and the rest.

    `norms` are known once the model's graph is.
    """

    modules: tuple[CompressibleModule, ...]
    groups: tuple[ChannelGroup, ...]
    uncovered: tuple[Uncovered, ...]
    total_parameters: int
    total_macs: int
    norms: tuple[NormGroup, ...] = ()

    def __iter__(self) -> Iterator[CompressibleModule]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def __getitem__(self, name: str) -> CompressibleModule:
        for module in self.modules:
            if module.name == name:
                return module
        raise KeyError(
            f"no compressible module {name!r}; nearest: {nearest_name(name, [m.name for m in self.modules])}"
        )

    def restricted_to(self, names: Container[str]) -> ModuleMap:
        """The same map without the modules that are not in `names`; they are listed as uncovered, their groups not pruned."""
        lost = [module for module in self.modules if module.name not in names]
        if not lost:
            return self
        groups = tuple(
            group.but(f"{member.name} is not visible in the exported graph") if member else group
            for group in self.groups
            for member in [
                next((m for m in group.members if m.name in {x.name for x in lost}), None)
            ]
        )
        uncovered = tuple(
            Uncovered(
                m.name,
                m.kind,
                m.parameters / self.total_parameters,
                m.macs / max(1, self.total_macs),
            )
            for m in lost
        )
        kept = tuple(module for module in self.modules if module.name in names)
        return replace(self, modules=kept, groups=groups, uncovered=self.uncovered + uncovered)


def kind_of(module: nn.Module) -> str | None:
    """The kind of a compressible module, else None."""
    return next((kind for kind, types in KINDS.items() if isinstance(module, types)), None)


def find_modules(
    model: nn.Module, example_inputs: Inputs, towers: Mapping[str, list[str]] | None = None
) -> ModuleMap:
    """Every Linear, Conv1d/2d, Embedding, MultiheadAttention projection and LSTM/GRU weight that runs on `example_inputs`.

    Raises TaskError when there is none, or when a pattern of `towers` matches nothing.
    """
    # Operators are counted on a copy without gradients: the counter does not follow views of parameters that have them.
    model = plain_model(model, example_inputs).requires_grad_(False)
    example_inputs = map_inputs(example_inputs, lambda tensor: tensor.cpu())
    names = [name for name, module in model.named_modules() if kind_of(module) and is_plain(module)]
    positions, total_macs = _count_positions(model, example_inputs, names)
    order = list(positions)
    if not order:
        raise TaskError(
            "model: no Linear, Conv1d, Conv2d, Embedding, MultiheadAttention, LSTM or GRU runs on example_inputs"
        )
    owner: dict[int, str] = {}
    aliases: dict[str, list[str]] = {}
    for name in order:
        first = owner.setdefault(id(model.get_submodule(name).weight), name)
        if first != name:
            aliases.setdefault(first, []).append(name)
    unique = [name for name in order if owner[id(model.get_submodule(name).weight)] == name]
    tied = {name for first, others in aliases.items() for name in (first, *others)}
    groups = tuple(
        group.but("a tied weight is in the group")
        if any(m.name in tied for m in group.members)
        else group
        for group in find_channel_groups(model, example_inputs, unique)
    )
    group_of = {m.name: g.name for g in groups for m in g.members if m.side == "out"}
    tower_of = find_towers(order, towers)
    modules = []
    for name in unique:
        module: Any = model.get_submodule(name)
        kind = kind_of(module)
        assert kind is not None
        tower = tower_of[name]
        sharing = (name, *aliases.get(name, []))
        multiplying = sum(
            positions[n] for n in sharing if kind_of(model.get_submodule(n)) != "embedding"
        )
        modules.append(
            CompressibleModule(
                name,
                kind,
                tuple(module.weight.shape),
                getattr(module, "bias", None) is not None,
                multiplying * module.weight.numel(),
                sum(positions[n] for n in sharing),
                tower,
                role_of(
                    model,
                    name,
                    kind,
                    tower,
                    last=name == owner[id(model.get_submodule(order[-1]).weight)],
                ),
                group_of.get(name),
                tuple(aliases.get(name, [])),
                getattr(module, "groups", 1),
            )
        )
    total = sum(p.numel() for p in model.parameters())
    return ModuleMap(
        tuple(modules),
        groups,
        _uncovered(model, modules, total, total_macs),
        total,
        sum(total_macs.values()),
    )


def _count_positions(
    model: nn.Module, example_inputs: Inputs, names: list[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """(positions per called module in calling order, MACs per operator of the whole model)."""
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
    recurrent = [
        name for name, module in model.named_modules() if isinstance(module, SplitRecurrent)
    ]
    handles += [
        model.get_submodule(name).register_forward_hook(record_gates(name)) for name in recurrent
    ]
    try:
        by_operator = _count_macs(model, example_inputs)
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
    gates = [(model.get_submodule(name), count) for name, count in positions.items()]
    steps = sum(
        module.weight.numel() * count for module, count in gates if isinstance(module, GateWeights)
    )
    if steps:
        by_operator["recurrent"] = steps  # the counter does not know these
    return positions, by_operator


def _count_macs(model: nn.Module, example_inputs: Inputs) -> dict[str, int] | None:
    """MACs per operator; None where the counter cannot look at the model (torch.cond and torch.while_loop are such operators)."""
    try:
        # The math backend shows attention's two products to the counter; the fused ones hide them.
        with (
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
        ):
            call_model(model, example_inputs)
    except Exception:
        torch._dynamo.reset()  # what was compiled under the counter does not run without it
        return None
    counts = counter.get_flop_counts().get("Global", {})
    return {str(op).replace("aten.", ""): flops // 2 for op, flops in counts.items()}


def _uncovered(
    model: nn.Module, modules: list[CompressibleModule], total: int, macs: dict[str, int]
) -> tuple[Uncovered, ...]:
    covered = {
        id(p) for m in modules for p in model.get_submodule(m.name).parameters(recurse=False)
    }
    rest: list[Uncovered] = []
    for name, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False) if id(p) not in covered)
        if own:
            what = (
                "read by a branch, a loop or another operator"
                if type(module) is nn.Module
                else type(module).__name__
            )
            rest.append(Uncovered(name or "(model)", what, own / total, 0.0))
    macs_total = max(1, sum(macs.values()))
    rest_macs = sum(macs.values()) - sum(m.macs for m in modules)
    if rest_macs > 0:
        operators = [op for op in macs if op in {"bmm", "baddbmm"}] or list(macs)
        rest.append(Uncovered("(functional)", " + ".join(operators), 0.0, rest_macs / macs_total))
    return tuple(rest)
