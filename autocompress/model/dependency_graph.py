"""Find the channels of a model that must be pruned together.

The groups come from torch-pruning's dependency graph (`traced_groups`) and from structures that it
does not show (`known_structures`). `modules.find_modules` stores them in the module map.

Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning".
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from autocompress.model.channel_group import ChannelGroup
from autocompress.model.known_structures import attention_groups, expert_groups, inner_groups
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.model.plain.split import with_others
from autocompress.model.plain.transposed import SplitTransposed
from autocompress.model.stand_ins import StandIn, with_layers, with_products
from autocompress.model.traced_groups import Unfollowed, group_alone, traced_group
from autocompress.task.batches import Inputs, map_inputs
from autocompress.task.copies import copied

GROUP_SECONDS = 20.0
TRACER_SECONDS = 60.0  # for all groups of a model


def find_channel_groups(
    model: nn.Module, example_inputs: Inputs, names: Sequence[str]
) -> tuple[ChannelGroup, ...]:
    """Return the channel groups of a model.

    Args:
        model: a plain model; it is not changed.
        example_inputs: one batch of inputs that it runs on.
        names: the compressible modules.

    Returns:
        One group per module that makes channels, in the order of `names`; a module that several
        groups could begin with is in the first one only.
    """
    model = copied(model, None, shares_weights=True)
    layers: dict[str, SplitRecurrent] = {}
    transposed: dict[str, SplitTransposed] = {}
    for name, module in model.named_modules():
        if isinstance(module, SplitRecurrent):
            layers[name] = module
        elif isinstance(module, SplitTransposed) and name:
            transposed[name] = module
    plain = []
    for name in names:
        embeds = isinstance(model.get_submodule(name), nn.Embedding)
        holder = name.rpartition(".")[0]
        if holder not in layers and not embeds:
            plain.append(holder if holder in transposed else name)
    groups = attention_groups(model, plain)
    for name, layer in layers.items():
        groups += inner_groups(name, layer)
    mixtures = expert_groups(model, plain)
    stand_ins = {name: StandIn(layer) for name, layer in layers.items() if name}
    plain += [f"{name}.linear" for name in stand_ins]
    whole = {name: layer.whole() for name, layer in transposed.items()}
    model = with_others(model, {**stand_ins, **whole})
    done = {member.name for group in groups for member in group.members if member.side == "out"}
    done |= {group.name for group in mixtures}
    groups += _traced_groups(model, example_inputs, plain, done, layers)
    order = {name: i for i, name in enumerate(names)}
    found = [with_products(group, transposed) for group in (*groups, *mixtures)]
    ordered = sorted(found, key=lambda group: order.get(group.name, len(order)))
    return tuple(ordered)


def _traced_groups(
    model: nn.Module,
    example_inputs: Inputs,
    names: Sequence[str],
    done: set[str],
    layers: Mapping[str, SplitRecurrent],
) -> list[ChannelGroup]:
    """Return the groups of the modules `names` that are not in a group yet."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    inputs: Any = map_inputs(example_inputs, torch.clone)  # the model may write to them
    deadline = time.monotonic() + TRACER_SECONDS
    graph, problem = _traced(model, inputs)
    name_of = {module: name for name, module in model.named_modules()}
    done = set(done)
    groups = []
    for name in names:
        if name in done:
            continue
        left = deadline - time.monotonic()
        try:
            if graph is None:
                raise Unfollowed(problem)
            if left <= 0:
                limit = f"{TRACER_SECONDS:.0f} s"
                raise Unfollowed(f"not looked at in the {limit} that the tracer has for all groups")
            with _time_limit(min(GROUP_SECONDS, left)):
                group = traced_group(graph, name, name_of, model)
            group = with_layers(group, layers)
        except Unfollowed as error:
            group = with_layers(group_alone(model, name, str(error)), layers)
        except Exception as error:  # torch-pruning does not know every module and operator
            reason = f"torch-pruning cannot follow its channels ({type(error).__name__})"
            group = with_layers(group_alone(model, name, reason), layers)
        done.update(member.name for member in group.members if member.side == "out")
        groups.append(group)
    return groups


def _traced(model: nn.Module, inputs: Any) -> tuple[torch_pruning.DependencyGraph | None, str]:
    """Return (dependency graph, ""), or (None, why there is none).

    Without a graph nothing that it would show is pruned, and inspection says why.
    """
    try:
        with warnings.catch_warnings(), _time_limit(TRACER_SECONDS):
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(
                model, example_inputs=inputs, output_transform=_followed, verbose=False
            )
            return graph, ""
    except Exception as error:
        # Code that was compiled under the tracer, as torch.cond is, does not run without it.
        torch._dynamo.reset()
        return None, f"torch-pruning cannot trace the model ({type(error).__name__})"


def _followed(result: Any) -> list[Tensor]:
    """Return the output tensors that depend on parameters; the tracer takes nothing else."""
    if isinstance(result, Tensor):
        return [result] if result.grad_fn is not None else []
    if isinstance(result, Mapping):
        parts = list(result.values())
    elif isinstance(result, (tuple, list)):
        parts = list(result)
    elif dataclasses.is_dataclass(result):  # it may have slots in place of a __dict__
        parts = [getattr(result, field.name, None) for field in dataclasses.fields(result)]
    else:
        parts = list(vars(result).values()) if hasattr(result, "__dict__") else []
    return [tensor for part in parts for tensor in _followed(part)]


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError inside the block after some time.

    The tracer does not end in some graphs. The limit works in the main thread of a Unix process.
    """

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError

    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
