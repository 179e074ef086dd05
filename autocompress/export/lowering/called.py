"""What the exported graph shows, but for what the model's own calls do not agree with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from autocompress.export.lowering.lower import LoweredModel, Site
from autocompress.model.modules import ModuleMap
from autocompress.task.batches import Inputs
from autocompress.task.calls import call_model

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def as_called(
    lowered: LoweredModel, model: nn.Module, module_map: ModuleMap, inputs: Inputs
) -> LoweredModel:
    """`lowered` with the sites that a simulation of `model` can follow.

    A linear or convolutional module that the graph computes several times, but not as often as the model calls it, has no site:
    which call has which range cannot be told. A convolution keeps a normalisation behind it apart where that is not a plain module,
    called as often as the graph shows it.
    """
    names = {name: module.name for module in module_map for name in (module.name, *module.aliases)}
    norms = {lowered.norm(site) for sites in lowered.sites.values() for site in sites} - {""}
    owners = names | {norm: norm for norm in norms if norm in dict(model.named_modules())}
    calls = _count_calls(model, owners, inputs)
    shown = Counter(
        n.input[3].rpartition(".")[0]
        for n in lowered.proto.graph.node
        if n.op_type == "BatchNormalization"
    )
    folded = {
        norm
        for norm in norms
        if norm in owners and _is_plain(model.get_submodule(norm)) and calls[norm] == shown[norm]
    }
    sites: dict[str, tuple[Site, ...]] = {}
    for owner, uses in lowered.sites.items():
        if len(uses) == 1 or calls[owner] == len(uses) or uses[0].kind not in ("linear", "conv"):
            sites[owner] = tuple(
                _apart(site) if lowered.norm(site) and lowered.norm(site) not in folded else site
                for site in uses
            )
    return replace(lowered, sites=sites)


def _apart(site: Site) -> Site:
    """The convolution without what follows it."""
    return replace(site, output=site.node.output[0], tail=())


def _is_plain(module: nn.Module) -> bool:
    """Whether a module's output is its normalisation alone."""
    return type(module) in NORMS and not module._forward_hooks and "forward" not in vars(module)


def _count_calls(model: nn.Module, owners: Mapping[str, str], inputs: Inputs) -> Counter[str]:
    """Number of calls in one pass, by owner of the modules that are called."""
    calls: Counter[str] = Counter()

    def count(owner: str) -> None:
        calls[owner] += 1

    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, owner=owner: count(owner))
        for name, owner in owners.items()
    ]
    try:
        with torch.no_grad():
            call_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls
