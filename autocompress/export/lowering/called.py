"""Drop the sites of the exported graph that do not agree with the model's own calls.

The simulation replaces modules of the model, and files must compute the same as the simulation.
"""

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
    """Return the float graph with the sites that a simulation of the model can follow.

    A linear or convolutional module loses its sites if the graph computes it several times, and
    not as often as the model calls it: the ranges of the calls cannot be told apart. One whose
    weight is looked up too has no ranges, and keeps its sites. A convolution
    keeps the normalisation behind it apart unless that is a plain module, called as often as the
    graph shows it.

    Args:
        lowered: the float graph.
        model: the model that it was exported from, in eval mode.
        module_map: modules that can be compressed.
        inputs: the model is run on them once.

    Returns:
        a copy with other sites; the graph itself is shared.
    """
    owners = {}
    for module in module_map:
        owners.update(dict.fromkeys((module.name, *module.aliases), module.name))
    norms = {lowered.norm(site) for sites in lowered.sites.values() for site in sites} - {""}
    model_norms = norms & dict(model.named_modules()).keys()
    owners.update({name: name for name in model_norms})
    calls = count_calls(model, owners, inputs)
    shown = Counter[str]()
    for node in lowered.proto.graph.node:
        if node.op_type == "BatchNormalization":
            shown[node.input[3].rpartition(".")[0]] += 1
    foldable = {""}  # no normalisation
    for name in norms & owners.keys():
        if _is_plain(model.get_submodule(name)) and calls[name] == shown[name]:
            foldable.add(name)
    sites: dict[str, tuple[Site, ...]] = {}
    for owner, uses in lowered.sites.items():
        looked_up = any(site.kind not in ("linear", "conv") for site in uses)
        if len(uses) == 1 or calls[owner] == len(uses) or looked_up:
            sites[owner] = tuple(s if lowered.norm(s) in foldable else _apart(s) for s in uses)
    return replace(lowered, sites=sites)


def _apart(site: Site) -> Site:
    """Return the convolution without what follows it."""
    return replace(site, output=site.node.output[0], tail=())


def _is_plain(module: nn.Module) -> bool:
    """Return True if a module's output is its normalisation alone."""
    return type(module) in NORMS and not module._forward_hooks and "forward" not in vars(module)


def count_calls(model: nn.Module, owners: Mapping[str, str], inputs: Inputs) -> Counter[str]:
    """Return the number of calls in one pass of a model.

    Args:
        model: in eval mode.
        owners: name under which the calls of a module are counted, by name of the module.
        inputs: on the device of the model.

    Returns:
        Number of calls by owner; 0 for one that is not called.
    """
    calls: Counter[str] = Counter()

    def count(owner: str) -> None:
        calls[owner] += 1

    handles = []
    for name, owner in owners.items():
        module = model.get_submodule(name)
        hook = module.register_forward_pre_hook(lambda *_, owner=owner: count(owner))
        handles.append(hook)
    try:
        with torch.no_grad():
            call_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def with_lookups(module_map: ModuleMap, lowered: LoweredModel) -> ModuleMap:
    """Return the map with embeddings in place of linear modules whose weight is also looked up.

    Their activations stay float: a lookup reads the float weight, which an integer product lacks.

    Args:
        module_map: modules that can be compressed.
        lowered: the float graph, which shows the lookups.
    """
    modules = []
    for module in module_map:
        sites = lowered.sites.get(module.name, ())
        looked_up = any(site.kind == "embedding" for site in sites)
        modules.append(replace(module, kind="embedding") if looked_up else module)
    return replace(module_map, modules=tuple(modules))
