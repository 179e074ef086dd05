"""Turn a user's model into a plain one, whose modules do what their classes do.

The class of a module does not tell what it computes: subclasses have forwards of their own, hooks
change inputs and outputs, and parametrizations make the weight anew in each call. If a model has
any of that, `torch.export` gives the program that really runs. Its products with constant matrices,
convolutions, lookups, normalisations and recurrent operators become plain modules under the names
of their weights. Everything behind (inspection, compression, export) works on plain models.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from autocompress.errors import TaskError
from autocompress.model.plain.attention import SplitAttention, traceable_layers
from autocompress.model.plain.hugging_face import exportable, without_cache
from autocompress.model.plain.program import COVERED, exported_program, with_modules
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.model.plain.same import check_same, same_outputs
from autocompress.model.plain.split import split_modules, with_strangers
from autocompress.model.plain.transposed import SplitTransposed
from autocompress.model.plain.watch import learns, watched
from autocompress.task.batches import Inputs, map_inputs
from autocompress.task.calls import call_model
from autocompress.task.copies import (
    copied,
    is_compiled,
    shortened_rows,
    switches_mode_itself,
)
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError

METHODS = ("forward", "_conv_forward")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def is_plain(module: nn.Module) -> bool:
    """Return True if a module does what its class does.

    Args:
        module: any module.

    Returns:
        False for a module of a covered class with a forward of its own, hooks or a parametrization.
    """
    base = next((kind for kind in COVERED if isinstance(module, kind)), None)
    if base is None:
        return True
    for name in METHODS:
        overridden = getattr(type(module), name, None) is not getattr(base, name, None)
        if name in vars(module) or overridden:
            return False
    hooked = any(getattr(module, name) for name in HOOKS)
    return not hooked and not parametrize.is_parametrized(module)


def plain_model(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """Return a copy of a model on the CPU, in eval mode, whose covered modules are plain.

    That is the module tree with fused modules split, if all covered modules are plain and it gives
    the same outputs, with gradients and whatever the classes of these modules; else the exported
    program. If no program can be exported, the tree is returned all the same (whole, if splitting
    changes its outputs); `is_plain` tells which of its modules are not covered then.

    Args:
        model: any module; it is not changed.
        example_inputs: one batch of inputs that it runs on.

    Returns:
        The plain model.

    Raises:
        UserCodeError: the model fails on the example.
        TaskError: a lookup shortens rows of a table, outside of nn.Embedding and nn.EmbeddingBag.
    """
    original, model = model, without_cache(copied(model, shares_weights=True))
    inputs = map_inputs(example_inputs, lambda tensor: tensor.detach().cpu())
    tree = split_modules(model)
    seen = watched(tree, inputs)
    if seen.shortens:  # before a run writes to weights that are shared with the user's model
        raise TaskError(
            "model: a lookup with max_norm shortens rows of its table, which no file can follow; "
            "nearest: the forward of nn.Embedding, or torch.embedding_renorm_ on all rows once"
        )
    alike = same_outputs(model, tree, inputs)
    plain = alike and all(map(is_plain, model.modules())) and not _shares_modules(model)
    plain = plain and not isinstance(tree, COVERED)  # a module needs a name
    trains = not plain or learns(tree, inputs)
    stands = not plain or same_outputs(model, with_strangers(tree), inputs)
    more = bool(seen.outside) or seen.hides or not trains or not stands
    if plain and (isinstance(model, fx.GraphModule) or not more):
        return tree
    # The original is exported, not a copy: a forward that was set on an instance reads the weights
    # of the module that it was made for. Not so if that would change the original.
    on_cpu = all(value.device.type == "cpu" for value in (*model.parameters(), *model.buffers()))
    changes = any(is_compiled(part) or switches_mode_itself(part) for part in original.modules())
    exported = original if on_cpu and not changes else model
    with _in_eval_mode(exported), exportable(exported), shortened_rows(exported):
        program = _program(exported, inputs)
        program = None if program is None else copied(program, shares_weights=True)
    if program is None:
        return tree if alike else model
    if plain and not trains and learns(program, inputs):
        return program
    covers_more = watched(program, inputs).covered_size > seen.covered_size
    return tree if plain and stands and not (seen.hides or covers_more) else program


def form_of(plain: nn.Module) -> str:
    """Return the form that `plain_model` chose.

    Args:
        plain: a plain model.

    Returns:
        "program", or for a module tree "split" if it has split modules, else "whole".
    """
    if isinstance(plain, fx.GraphModule):
        return "program"
    splits = (SplitAttention, SplitRecurrent, SplitTransposed)
    return "split" if any(isinstance(module, splits) for module in plain.modules()) else "whole"


def in_form(form: str, model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """Return the plain model of a known form.

    Args:
        form: as `form_of` returns it.
        model: the user's model; it is not changed.
        example_inputs: one batch of inputs; only a program is traced with it.

    Returns:
        The plain model.
    """
    if form == "program":
        return plain_model(model, example_inputs)
    tree = without_cache(copied(model, shares_weights=True))
    return split_modules(tree) if form == "split" else tree


def _shares_modules(model: nn.Module) -> bool:
    """Return True if a covered module is in several places; a swap would change one of them."""
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    places = [id(module) for module in modules if isinstance(module, COVERED)]
    return len(places) != len(set(places))


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    """Return True if a model takes inputs of that size; some models take one sample at a time."""
    try:
        with torch.no_grad():
            call_model(model, inputs)
    except UserCodeError:
        return False
    return True


def _program(model: nn.Module, inputs: Inputs) -> nn.Module | None:
    """Return the exported program with plain modules, or None.

    None means that no program can be exported that computes what the model computes.
    """

    def twice(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor]) if tensor.dim() else tensor

    # The tracer takes a batch of size 1 for a constant, so two samples come first.
    doubled = map_inputs(inputs, twice)
    compared = [inputs, doubled] if _runs(model, doubled) else [inputs]
    for traced in reversed(compared):
        for strict in (False, True):  # only the strict tracer follows len(tensor)
            graph, free = _traced(model, traced, strict)
            if graph is None or not all(same_outputs(model, graph, batch) for batch in compared):
                continue
            # A model that fills up a text to whole blocks takes another branch where there is
            # nothing to fill up. The program of a text that is filled up computes both.
            longer = map_inputs(traced, _longer)
            if not free or not _runs(model, longer) or same_outputs(model, graph, longer):
                return graph
            other, _ = _traced(model, longer, strict)
            if other is not None and all(
                same_outputs(model, other, batch) for batch in (*compared, longer)
            ):
                return other
            return graph
    return None


def _traced(model: nn.Module, inputs: Inputs, strict: bool) -> tuple[nn.Module | None, bool]:
    """Return the program of some inputs, or None, and whether a length of tokens is free in it."""
    try:
        with _quiet(), traceable_layers(model):
            program = exported_program(model, inputs, strict)
            free = any(map(_has_free_length, program.graph.nodes))
            return with_modules(program, model), free
    except Exception:
        return None, False


def _has_free_length(node: fx.Node) -> bool:
    """Return True for an input of (samples, tokens) whose number of tokens is free."""
    value = node.meta.get("val") if node.op == "placeholder" else None
    if not isinstance(value, Tensor) or value.dim() != 2 or value.is_floating_point():
        return False
    return not isinstance(value.shape[1], int)


def _longer(tensor: Tensor) -> Tensor:
    """Return whole numbers of (samples, tokens) with the last token twice; others as they are."""
    if tensor.dim() != 2 or tensor.is_floating_point():
        return tensor
    return torch.cat([tensor, tensor[:, -1:]], 1)


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode inside the block, and restore it behind."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer; it warns of each dimension that it fixes.

    The outputs of the program are compared instead.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    # A failed trace prints the graph.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def plain_task(task: Task) -> Task:
    """Return the task on plain models.

    Args:
        task: it is not changed.

    Returns:
        The task itself if the models of the task need no program.

    Raises:
        TaskError: a program gives other outputs than its model on validation batches.
    """
    changed: dict[str, Any] = {}
    for name in ("model", "student"):
        model = getattr(task, name)
        plain = None if model is None else plain_model(model, task.example_inputs)
        if isinstance(plain, fx.GraphModule) and plain is not model:
            own = copied(model, shares_weights=True)
            check_same(own, plain, task.validation, task.example_inputs)
            changed[name] = plain
    return replace(task, **changed)
