"""Hash all that decides what a model computes, for the keys of cached results.

Weights alone do not tell: a forward also reads numbers and texts of its module, tensors that are
not registered, and its own source. Float graphs and answers of teachers are cached under this hash.
"""

from __future__ import annotations

import hashlib
import logging
import operator
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from autocompress.user_code import (
    code_of,
    is_own,
    members_of,
    named,
    names_of,
    source_of,
    state_of,
)

PLAIN = (bool, int, float, complex, str, bytes, type(None), range, slice, torch.dtype, torch.device)
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
STANDARD = frozenset(vars(nn.Module())) - set(HOOKS)  # every module has these
COUNTER = "num_batches_tracked"  # of normalisations; nothing reads it in eval mode
DEEPEST = 32  # values inside values
REDUCED = (operator.attrgetter, operator.itemgetter, operator.methodcaller, Fraction, Decimal)
METHODS = (MethodType, staticmethod, classmethod)
INNER = ("__wrapped__", "_torchdynamo_inline")  # the second one of scripted functions


def value_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of the values of a tensor, for a hash.

    Args:
        tensor: of any shape and type, on any device.
    """
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def model_digest(model: nn.Module, without: Collection[str] = ()) -> str:
    """Return a hash of all that decides what a model computes in eval mode.

    These are the values of parameters and buffers, the sources of the modules' classes outside
    PyTorch, attributes of modules that are numbers, texts, tensors, functions or containers of
    them, and the version of PyTorch. What the user's functions and classes name in the user's files
    counts too: functions with all that they hold, classes, instances and values. Of installed
    libraries only names count. Their objects, such as a config, are read one level deep. Values
    that cannot be read count by the names of their types.

    Args:
        model: any module.
        without: names of parameters and buffers whose values do not count.

    Returns:
        SHA-256 as hexadecimal digits, equal in every process.
    """
    reader = _Reader()
    parts = reader.module(model, without), reader.named()
    text = repr((torch.__version__, *parts))
    return hashlib.sha256(text.encode()).hexdigest()


class _Reader:
    """Read modules and their attributes as texts and lists that are equal in every process."""

    def __init__(self) -> None:
        self.places: dict[int, str] = {}  # of modules and tensors that were read, by identity
        # Values with their descriptions, which keeps the values and so their identities.
        self.described: dict[tuple[int, bool], tuple[Any, str]] = {}
        self.reached: dict[int, FunctionType | type] = {}
        self.waiting: list[FunctionType | type] = []  # of those, whose names were not read

    def module(self, model: nn.Module, without: Collection[str] = ()) -> list[Any]:
        """Return the description of a module and of all below it.

        Args:
            model: a module that was not read before.
            without: as for `model_digest`.
        """
        parts: list[Any] = []
        modules = dict(model.named_modules())
        for module in modules.values():
            self.places[id(module)] = f"module {len(self.places)}"
            for kind in type(module).__mro__[:-1]:
                if not kind.__module__.startswith("torch."):
                    self._reach(kind)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.places[id(tensor)] = f"tensor {name}"
            if name not in without and name.rpartition(".")[2] != COUNTER:
                parts.append((name, _tensor(tensor)))
        for name, module in modules.items():
            if isinstance(module, fx.GraphModule):  # its code tells all that it reads
                targets = [node.target for node in module.graph.nodes]  # but operators of PyTorch
                called = [t for t in targets if not type(t).__module__.startswith("torch.")]
                parts.append((name, module.code, [self._value(target) for target in called]))
            else:
                parts.append((name, named(type(module)), self._attributes(module)))
        return parts

    def named(self) -> list[Any]:
        """Return the classes that were reached, and what functions name in the user's files."""
        parts: list[Any] = []
        while self.waiting:  # grows while values are read
            reached = self.waiting.pop()
            if isinstance(reached, FunctionType):
                read = [(name, self._value(value)) for name, value in names_of(reached)]
                parts.append((reached.__qualname__, read))
            else:
                members = members_of(reached) if is_own(reached) else ()
                read = [(name, self._value(value)) for name, value in members]
                parts.append((named(reached), source_of(reached), read))
        return sorted(parts, key=repr)

    def _reach(self, value: FunctionType | type) -> None:
        if id(value) not in self.reached:
            self.reached[id(value)] = value
            self.waiting.append(value)

    def _attributes(self, module: nn.Module) -> list[Any]:
        parts = []
        for name, value in vars(module).items():
            if name in HOOKS:  # a dict whose keys count all hooks of the process
                parts.append((name, self._value(list(value.values()))))
            elif name not in STANDARD:
                parts.append((name, self._value(value)))
        return sorted(parts, key=lambda part: part[0])

    def _value(self, value: Any, depth: int = 0, opens: bool = True) -> Any:
        """Return the description of an attribute, or of what a name stands for.

        Args:
            value: the attribute, or a part of it.
            depth: number of values that it is in.
            opens: read the attributes of objects of libraries; else their type alone.
        """
        with suppress(Exception):  # attributes of objects may be computed, and fail
            return self._described(value, depth, opens)
        return named(type(value))

    def _described(self, value: Any, depth: int, opens: bool) -> Any:
        if isinstance(value, PLAIN) and not isinstance(value, Enum):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, Tensor):
            return self.places.get(id(value)) or _tensor(value)
        if isinstance(value, (np.ndarray, np.generic)):
            if value.dtype.hasobject:
                return f"{value.dtype} {value.shape}", self._value(value.tolist(), depth, opens)
            return f"{value.dtype} {value.shape} {_hash(value.tobytes())}"
        if isinstance(value, nn.Module):
            return self.places.get(id(value)) or self.module(value)
        if isinstance(value, ModuleType):
            return "module" if is_own(value) else value.__name__
        kind, key = named(type(value)), (id(value), opens)
        if depth == DEEPEST or isinstance(value, logging.Logger):  # loggers count their calls
            return kind
        if key not in self.described:
            self.described[key] = value, kind  # for values that hold themselves
            parts = self._parts(value, partial(self._value, depth=depth + 1, opens=opens), opens)
            self.described[key] = value, f"{kind} {_hash(repr(parts).encode())}"
        return self.described[key][1]

    def _parts(self, value: Any, below: Callable[..., Any], opens: bool) -> Any:
        """Return what tells a value apart from others of its type.

        Args:
            value: container, function, class or other object.
            below: describes a part of it.
            opens: as for `_value`.
        """
        for kind in value.__mro__ if isinstance(value, type) else type(value).__mro__:
            if is_own(kind):
                self._reach(kind)
        if isinstance(value, (Enum, type)):
            return named(value) if isinstance(value, type) else value.name
        if isinstance(value, (dict, MappingProxyType)):
            return [(below(key), below(part)) for key, part in value.items()]
        if isinstance(value, (tuple, list, deque)):
            return [below(part) for part in value]
        if isinstance(value, (set, frozenset)):
            return sorted(repr(below(part)) for part in value)
        if isinstance(value, METHODS):
            return below(value.__func__), below(getattr(value, "__self__", None))
        if isinstance(value, property):
            return below(value.fget), below(value.fset)
        if isinstance(value, partial):
            return below(value.func), below(value.args), below(value.keywords)
        if isinstance(value, REDUCED):
            return [below(part) for part in value.__reduce__()]
        if isinstance(value, (BuiltinFunctionType, np.ufunc)):
            name = getattr(value, "__qualname__", value.__name__)
            return name, below(getattr(value, "__self__", None))
        if isinstance(value, FunctionType):
            return self._function(value, below)
        own = is_own(type(value))
        if not hasattr(value, "__dict__") and not own:  # a method of a C type, say
            return getattr(value, "__qualname__", "")
        return _read(state_of(value), partial(below, opens=own), opens or own)

    def _function(self, function: FunctionType, below: Callable[..., Any]) -> list[Any]:
        own = is_own(function)
        if own:
            self._reach(function)
        below = partial(below, opens=own)
        held = [cell.cell_contents for cell in function.__closure__ or () if _is_full(cell)]
        values = [function.__defaults__, function.__kwdefaults__, *held]
        return [
            function.__qualname__ if own else named(function),
            code_of(function.__code__),
            [below(part) for part in values],
            _read(vars(function), below, own),
        ]


def _read(state: Mapping[str, Any], below: Callable[..., Any], whole: bool) -> list[Any]:
    """Return the attributes of an object, or only the function that it wraps."""
    read = []
    for name, part in state.items():
        # Hashes of texts differ in each process; a GenerationConfig of transformers holds one.
        is_hash = type(part) is int and name.startswith("_") and name.endswith("_hash")
        if name in INNER or (whole and not is_hash):
            read.append((name, below(part)))
    return sorted(read, key=lambda entry: str(entry[0]))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _tensor(tensor: Tensor) -> str:
    content = ""
    with suppress(RuntimeError, TypeError):  # without values, as those of a tracer
        content = _hash(value_bytes(tensor))
    return f"{tensor.dtype} {tuple(tensor.shape)} {content}"


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
