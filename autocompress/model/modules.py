"""Describe the modules of a model that can be compressed.

`find_modules` is where inspection and search begin: names, shapes, MACs, towers, roles and channel
groups of all modules.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from autocompress.argument_types import shown
from autocompress.errors import TaskError, nearest_name
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.dependency_graph import find_channel_groups
from autocompress.model.macs import count_positions
from autocompress.model.plain.plain import is_plain, plain_model
from autocompress.model.plain.recurrent import GateWeights
from autocompress.model.towers import check_towers, find_towers, role_of
from autocompress.model.uncovered import Uncovered, find_uncovered
from autocompress.task.batch_checks import check_inputs
from autocompress.task.batches import Inputs, map_inputs

KINDS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "recurrent": (GateWeights,),
    "linear": (nn.Linear,),
    "conv": (nn.Conv1d, nn.Conv2d),
    "embedding": (nn.Embedding,),
}


@dataclass(frozen=True)
class CompressibleModule:
    """Describe a module that can be compressed.

    Attributes:
        name: qualified name in the plain model (fused modules are split).
        kind: "linear", "conv", "embedding" or "recurrent" (one weight matrix of an LSTM, GRU
            or RNN).
        weight_shape: (out, in), (out, in / groups, *kernel), (rows, width) or (gates * hidden, in).
        has_bias: True if it has a bias.
        macs: multiply-accumulates in one call of the model on the example.
        positions: vectors that its weight multiplies in that call (for an embedding: rows read).
        tower: as `find_towers` returns it.
        role: "attention", "mlp", "embedding", "conv" or "head".
        group: the channel group that its output channels belong to, or None.
        aliases: further modules that share its weight.
        groups: of a convolution; weight_shape[1] counts the input channels of one of them.
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
        """Return True if it can have a rank: matrices, and convolutions of one group.

        Gates of recurrent layers cannot, since their operator needs the whole matrix.
        """
        return self.kind != "recurrent" and self.groups == 1

    @property
    def parameters(self) -> int:
        """Return the number of weights and biases."""
        weights = 1
        for size in self.weight_shape:
            weights *= size
        return weights + (self.weight_shape[0] if self.has_bias else 0)


@dataclass(frozen=True)
class NormGroup:
    """Describe a normalisation whose scale can move into the weights behind it.

    Attributes:
        norm: name of the normalisation.
        readers: the linear modules that read its output; nothing else does.
        parameters: names of its parameters that scale the output.
    """

    norm: str
    readers: tuple[str, ...]
    parameters: tuple[str, ...] = ("weight",)


@dataclass(frozen=True)
class ModuleMap:
    """Hold the compressible modules of a model, their channel groups and the rest.

    Attributes:
        modules: in the order of their first call.
        groups: channel groups.
        uncovered: parts of the model that stay as they are.
        total_parameters: of the model.
        total_macs: of one call on the whole example, in every phase of a decoder.
        norms: known once the model's graph is.
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
        near = nearest_name(name, [module.name for module in self.modules])
        raise KeyError(f"no compressible module {name!r}; nearest: {near}")

    def restricted_to(self, names: Container[str]) -> ModuleMap:
        """Return the same map with some of the modules.

        Args:
            names: modules that stay.

        Returns:
            The other modules are listed as uncovered, and their groups are not prunable.
        """
        lost = [module for module in self.modules if module.name not in names]
        if not lost:
            return self
        lost_names = {module.name for module in lost}
        groups = []
        for group in self.groups:
            for member in group.members:
                if member.name in lost_names:
                    group = group.but(f"{member.name} is not visible in the exported graph")
                    break
            groups.append(group)
        uncovered = list(self.uncovered)
        for m in lost:
            parameters = m.parameters / self.total_parameters
            macs = m.macs / max(1, self.total_macs)
            uncovered.append(Uncovered(m.name, m.kind, parameters, macs))
        visible = tuple(module for module in self.modules if module.name in names)
        return replace(self, modules=visible, groups=tuple(groups), uncovered=tuple(uncovered))


def kind_of(module: nn.Module) -> str | None:
    """Return the kind of a compressible module.

    Args:
        module: any module.

    Returns:
        "recurrent", "linear", "conv" or "embedding"; None for every other module.
    """
    return next((kind for kind, types in KINDS.items() if isinstance(module, types)), None)


def find_modules(
    model: nn.Module, example_inputs: Inputs, towers: Mapping[str, list[str]] | None = None
) -> ModuleMap:
    """Return the compressible modules of a model.

    They are every Linear, Conv1d, Conv2d, Embedding, MultiheadAttention projection, product of a
    ConvTranspose1d or ConvTranspose2d, and LSTM, GRU or RNN weight that runs on the example.

    Args:
        model: any module; it is not changed.
        example_inputs: one batch of inputs.
        towers: name -> patterns of module names; guessed if None.

    Returns:
        The module map.

    Raises:
        TaskError: the model is no module, an input is no tensor, nothing can be compressed, or a
            pattern of `towers` matches nothing.
    """
    if not isinstance(model, nn.Module):
        near = "an instance of it" if isinstance(model, type) else "torch.nn.Linear(8, 2)"
        raise TaskError(f"model must be a torch.nn.Module, got {shown(model)}; nearest: {near}")
    check_inputs(example_inputs, "example_inputs")
    check_towers(towers)
    # The counter of operators does not follow views of parameters that have gradients.
    model = plain_model(model, example_inputs).requires_grad_(False)
    example_inputs = map_inputs(example_inputs, lambda tensor: tensor.cpu())
    covered = [pair for pair in model.named_modules() if kind_of(pair[1]) and is_plain(pair[1])]
    names = [name for name, module in covered if module.weight.numel()]
    positions, macs = count_positions(model, example_inputs, names)
    if not positions:
        raise TaskError(
            "model: no Linear, Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, Embedding, "
            "MultiheadAttention, LSTM, GRU or RNN runs on example_inputs"
        )
    order = list(positions)
    owners = _weight_owners(model, order)
    aliases: dict[str, list[str]] = {name: [] for name in order if owners[name] == name}
    for name in order:
        if owners[name] != name:
            aliases[owners[name]].append(name)
    groups = _groups(model, example_inputs, aliases)
    group_of: dict[str, str] = {}
    for group in groups:
        group_of |= {member.name: group.name for member in group.members if member.side == "out"}
    tower_of = find_towers(order, towers)
    modules = []
    for name in aliases:
        last = name == owners[order[-1]]
        place = (tower_of[name], group_of.get(name))
        modules.append(_described(model, name, aliases[name], positions, place, last))
    total, total_macs = sum(p.numel() for p in model.parameters()), sum(macs.values())
    rest = sum(macs.values()) - sum(module.macs for module in modules)
    uncovered = find_uncovered(model, [module.name for module in modules], macs, rest)
    return ModuleMap(tuple(modules), groups, uncovered, total, total_macs)


def _weight_owners(model: nn.Module, names: list[str]) -> dict[str, str]:
    """Return for each module the owner of its weight: the first embedding, else the first module.

    Lookups read weights alone, so an embedding owns a weight that it shares, whoever is called
    first.
    """
    first: dict[int, str] = {}
    lookups = [name for name in names if kind_of(model.get_submodule(name)) == "embedding"]
    for name in (*lookups, *names):
        first.setdefault(id(model.get_submodule(name).weight), name)
    return {name: first[id(model.get_submodule(name).weight)] for name in names}


def _groups(
    model: nn.Module, example_inputs: Inputs, aliases: Mapping[str, list[str]]
) -> tuple[ChannelGroup, ...]:
    """Return the channel groups; those with a tied weight are not prunable."""
    tied: set[str] = set()
    for name, others in aliases.items():
        if others:
            tied |= {name, *others}
    groups = []
    for group in find_channel_groups(model, example_inputs, list(aliases)):
        is_tied = any(member.name in tied for member in group.members)
        groups.append(group.but("a tied weight is in the group") if is_tied else group)
    return tuple(groups)


def _described(
    model: nn.Module,
    name: str,
    aliases: list[str],
    positions: Mapping[str, int],
    place: tuple[str, str | None],
    last: bool,
) -> CompressibleModule:
    """Return the description of a module; `place` is its (tower, channel group)."""
    module: Any = model.get_submodule(name)
    kind = kind_of(module)
    assert kind is not None
    sharing = (name, *aliases)
    products = 0
    for other in sharing:
        if kind_of(model.get_submodule(other)) != "embedding":
            products += positions[other]
    tower, group = place
    return CompressibleModule(
        name=name,
        kind=kind,
        weight_shape=tuple(module.weight.shape),
        has_bias=getattr(module, "bias", None) is not None,
        macs=products * module.weight.numel(),
        positions=sum(positions[other] for other in sharing),
        tower=tower,
        role=role_of(model, name, kind, tower, last=last),
        group=group,
        aliases=tuple(aliases),
        groups=getattr(module, "groups", 1),
    )
