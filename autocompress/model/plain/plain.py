"""A user's model as a plain one: the program that really runs, its products with weights as plain modules under the weights' names.

A covered class says little about what a module does: subclasses have forwards of their own, hooks change what goes in and out, and
parametrizations make the weight anew in each call. Where a model has any of that, `torch.export` gives its program, in which all of it
is resolved; its products with constant matrices, convolutions, lookups, normalisations and recurrent operators become modules again.
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
from torch.utils._python_dispatch import TorchDispatchMode

from autocompress.errors import TaskError
from autocompress.model.plain.attention import SplitAttention
from autocompress.model.plain.hugging_face import exportable, without_cache
from autocompress.model.plain.program import COVERED, exported_program, with_modules
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.model.plain.split import split_modules
from autocompress.task.batches import Inputs, input_tensors, map_inputs
from autocompress.task.calls import call_model, run_model
from autocompress.task.copies import copied
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError

METHODS = ("forward", "_conv_forward")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
PRODUCTS = (
    "mm",
    "matmul",
    "linear",
    "convolution",
    "embedding",
)  # in the names of operators that multiply, or look up
TOLERANCE = 1e-4  # of the largest output: another order of sums, and nothing else


def is_plain(module: nn.Module) -> bool:
    """Return whether a module of a covered class does what its class does: no forward of its own, no hooks, no parametrization."""
    base = next((kind for kind in COVERED if isinstance(module, kind)), None)
    if base is None:
        return True
    own = any(
        name in vars(module) or getattr(type(module), name, None) is not getattr(base, name, None)
        for name in METHODS
    )
    return not (
        own or any(getattr(module, name) for name in HOOKS) or parametrize.is_parametrized(module)
    )


def plain_model(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """Return a copy of `model` on the CPU, in eval mode, whose covered modules do what their classes do.

    That is the module tree, its fused modules split, where all of them do and it runs; else the exported program. Where a program
    cannot be exported, the tree is returned all the same (whole, where splitting it changes what it computes); `is_plain` tells
    which of its modules are not covered then.

    Args:
        model: any module; it is not changed.
        example_inputs: a batch that it runs on.
    """
    original, model = model, without_cache(copied(model))
    inputs = map_inputs(example_inputs, lambda tensor: tensor.detach().cpu())
    tree = split_modules(model)
    alike = _same(model, tree, inputs)
    plain = alike and all(map(is_plain, model.modules())) and not _shares_modules(model)
    seen = _looked_at(tree, inputs)
    if plain and (isinstance(model, fx.GraphModule) or not (seen.multiplies_more or seen.hides)):
        return tree
    # Not of a copy: a forward that was set on an instance still reads the weights of the module that it was made for.
    on_cpu = all(value.device.type == "cpu" for value in original.state_dict().values())
    exported = original if on_cpu else model
    with _in_eval_mode(exported), exportable(exported):
        program = _program(exported, inputs)
    if program is None or (plain and not seen.hides and _covered(program) <= _covered(tree)):
        return tree if alike else model
    return copied(program)


def form_of(plain: nn.Module) -> str:
    """Return what `plain_model` made: "program", or the module tree, "split" where fused modules are, else "whole"."""
    if isinstance(plain, fx.GraphModule):
        return "program"
    return (
        "split"
        if any(isinstance(module, (SplitAttention, SplitRecurrent)) for module in plain.modules())
        else "whole"
    )


def in_form(form: str, model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """Return the plain model of a known form; only a program is traced, with inputs that the model must run on."""
    if form == "program":
        return plain_model(model, example_inputs)
    tree = without_cache(copied(model))
    return split_modules(tree) if form == "split" else tree


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a run shows that the module tree does not.

    Attributes:
        multiplies_more: an operator multiplies by a parameter that no module of a covered class holds (a transposed matrix, a stack of
            experts), by a view of it or by a copy.
        hides: it runs operators that nothing may look into, nor at the modules inside (torch.cond, torch.while_loop, scan).
    """

    def __init__(self, storages: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages, self.multiplies_more, self.hides = storages, False, False
        self.copies: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = str(func), func(*args, **(kwargs or {}))
        read = any(
            isinstance(value, Tensor) and value.untyped_storage().data_ptr() in self.storages
            for value in args
        )
        if read and not self.multiplies_more:
            self.multiplies_more = any(word in name for word in PRODUCTS)
            if "clone" in name or "_to_copy" in name:
                self.copies.append(
                    result
                )  # held, so that its place in memory is not taken by another
                self.storages.add(result.untyped_storage().data_ptr())
        return result


def _looked_at(model: nn.Module, inputs: Inputs) -> _Watch:
    held = {
        id(value)
        for module in model.modules()
        if isinstance(module, COVERED)
        for value in module.parameters(recurse=False)
    }
    watch = _Watch(
        {
            value.untyped_storage().data_ptr()
            for value in model.parameters()
            if value.dim() >= 2 and id(value) not in held
        }
    )
    try:
        with torch.no_grad(), watch:
            call_model(model, map_inputs(inputs, Tensor.clone))
    except Exception:
        torch._dynamo.reset()  # what was compiled while it was looked at does not run otherwise
        watch.hides = True
    return watch


def _covered(model: nn.Module) -> int:
    """How many weights modules of covered classes hold."""
    found = {
        id(p): p.numel()
        for m in model.modules()
        if isinstance(m, COVERED)
        for p in m.parameters(recurse=False)
    }
    return sum(found.values())


def _shares_modules(model: nn.Module) -> bool:
    """Whether a module of a covered class stands in several places, of which a swap would reach one."""
    places = [
        id(module)
        for _, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, COVERED)
    ]
    return len(places) != len(set(places))


def _same(model: nn.Module, other: nn.Module, inputs: Inputs) -> bool:
    """Whether another form of a model gives its outputs; an error of the model itself is the user's and raised."""
    with torch.no_grad():
        expected = call_model(model, map_inputs(inputs, Tensor.clone))
        try:
            found = call_model(other, map_inputs(inputs, Tensor.clone))
        except Exception:  # a split module that does not cover how the model calls it
            return False
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return bool(torch.equal(found, expected))
    scale = max(1e-6, float(expected.abs().nan_to_num().max())) if expected.numel() else 1.0
    return bool(torch.allclose(found, expected, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True))


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    """Return whether the model takes inputs of that size: some take one sample at a time."""
    try:
        with torch.no_grad():
            call_model(model, inputs)
    except UserCodeError:
        return False
    return True


def _program(model: nn.Module, inputs: Inputs) -> nn.Module | None:
    """The exported program with plain modules, or None where none can be exported that computes what the model computes."""
    # An example of size 1 would be taken for a constant, so that the program is traced with two samples.
    doubled = map_inputs(
        inputs, lambda tensor: torch.cat([tensor, tensor]) if tensor.dim() else tensor
    )
    compared = [inputs, doubled] if _runs(model, doubled) else [inputs]
    for traced in reversed(compared):
        for strict in (False, True):  # only the strict tracer follows len(tensor)
            try:
                with _quiet():
                    program = exported_program(model, traced, strict)
                    graph = with_modules(program, model)
            except Exception:
                continue
            if all(_same(model, graph, found) for found in compared):
                return graph
    return None


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module of the user's model in eval mode inside the block, and as it was behind it."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns about what it specialises; what counts is whether the program computes the same."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # it prints the graph of what it cannot trace
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def plain_task(task: Task) -> Task:
    """Return the task on a plain model where its own is none.

    Raises:
        TaskError: the plain model computes something else than the model on validation batches.
    """
    changed: dict[str, Any] = {}
    for name in ("model", "student"):
        model = getattr(task, name)
        plain = None if model is None else plain_model(model, task.example_inputs)
        if isinstance(plain, fx.GraphModule) and plain is not model:
            check_same(model, plain, task.validation, task.example_inputs)
            changed[name] = plain
    return replace(task, **changed)


def check_same(
    model: nn.Module, plain: nn.Module, batches: Any, example: Inputs, count: int = 2
) -> None:
    """Raise TaskError unless a plain model, which does on the example, gives the outputs of the user's model on the first batches."""
    for i, (inputs, _) in enumerate(batches):
        if i == count:
            return
        if not _same(model, plain, inputs):
            shapes = [
                [tuple(tensor.shape) for tensor in input_tensors(found)]
                for found in (inputs, example)
            ]
            if shapes[0] != shapes[1]:
                raise TaskError(
                    f"model: it does something else with inputs of {shapes[0]} (validation) than with those of {shapes[1]} "
                    "(example_inputs), which no file can follow; nearest: example_inputs of the size of the batches"
                )
            where = first_difference(model, plain, inputs)
            raise TaskError(
                f"model: what would be compressed differs from the model{where}; please report it with the model"
            )


def first_difference(model: nn.Module, other: nn.Module, inputs: Inputs) -> str:
    """Return " at module NAME" for the first module, in calling order, whose output differs between two models; "" when none does."""
    seen: list[dict[str, Tensor]] = []
    for one in (model, other):
        outputs: dict[str, Tensor] = {}
        handles = [
            m.register_forward_hook(_recorder(outputs, name))
            for name, m in one.named_modules()
            if name
        ]
        try:
            with torch.no_grad(), contextlib.suppress(Exception):
                run_model(one, map_inputs(inputs, Tensor.clone))
        finally:
            for handle in handles:
                handle.remove()
        seen.append(outputs)
    for name, value in seen[0].items():
        found = seen[1].get(name)
        if found is not None and (
            found.shape != value.shape or not torch.allclose(found, value, rtol=1e-3, atol=1e-4)
        ):
            return f" at module {name}"
    return ""


def _recorder(outputs: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            outputs.setdefault(name, output.detach().clone())

    return hook
