"""Hash all that decides what a model computes, for the keys of cached results.

Weights alone do not tell: a forward also reads numbers and texts of its module, tensors that are
not registered, and its own source. Float graphs and answers of teachers are cached under this hash.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from enum import Enum
from functools import cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

PLAIN = (bool, int, float, complex, str, bytes, type(None), range, slice, torch.dtype, torch.device)
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
STANDARD = frozenset(vars(nn.Module())) - set(HOOKS)  # every module has these
COUNTER = "num_batches_tracked"  # of normalisations; nothing reads it in eval mode
DEEPEST = 8  # containers inside containers; a list may hold itself


def value_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of the values of a tensor, for a hash.

    Args:
        tensor: of any shape and type, on any device.
    """
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def model_digest(model: nn.Module, without: Collection[str] = ()) -> str:
    """Return a hash of all that decides what a model computes in eval mode.

    These are the values of parameters and buffers, the sources of the modules' classes outside
    PyTorch, the functions and plain values that these name in the user's files, attributes of
    modules that are numbers, texts, tensors, functions or containers of them, and the version of
    PyTorch. Attributes that are objects, such as a config, are read one level deep.

    Args:
        model: any module.
        without: names of parameters and buffers whose values do not count.

    Returns:
        SHA-256 as hexadecimal digits, equal in every process.
    """
    reader = _Reader()
    parts = reader.module(model, without), reader.sources(), reader.named()
    text = repr((torch.__version__, *parts))
    return hashlib.sha256(text.encode()).hexdigest()


class _Reader:
    """Read modules and their attributes as texts and lists that are equal in every process."""

    def __init__(self) -> None:
        self.places: dict[int, str] = {}  # of modules and tensors that were read, by identity
        self.kinds: dict[type, None] = {}
        self.functions: list[FunctionType] = []  # that instances hold

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
            self.kinds |= dict.fromkeys(type(module).__mro__)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.places[id(tensor)] = f"tensor {name}"
            if name not in without and name.rpartition(".")[2] != COUNTER:
                parts.append((name, _tensor(tensor)))
        for name, module in modules.items():
            if isinstance(module, fx.GraphModule):  # its code tells all that it reads
                parts.append((name, module.code))
            else:
                parts.append((name, _named(type(module)), self._attributes(module)))
        return parts

    def sources(self) -> list[str]:
        """Return the sources of the classes of all modules that were read."""
        own = [kind for kind in self.kinds if not kind.__module__.startswith("torch.")]
        return [_source(kind) for kind in own if kind is not object]

    def named(self) -> list[Any]:
        """Return the functions and plain values that the user's functions name in their files.

        Functions of installed libraries do not count, nor what they name.
        """
        waiting = self.functions  # grows while values are read
        for kind in self.kinds:
            waiting += _functions(kind)
        seen: set[CodeType] = set()
        parts: list[Any] = []
        while waiting:
            function = inspect.unwrap(waiting.pop())
            if not isinstance(function, FunctionType) or not _is_own(function):
                continue
            if function.__code__ in seen:
                continue
            seen.add(function.__code__)
            for name, value in _names_of(function):
                if isinstance(value, FunctionType):
                    waiting.append(value)
                    own = inspect.unwrap(value)
                    if _is_own(own):
                        parts.append((name, _code(own.__code__), self._value(own.__defaults__)))
                elif isinstance(value, (*PLAIN, Tensor, np.ndarray, tuple, list, dict, set)):
                    parts.append((name, self._value(value)))
        return sorted(parts, key=repr)

    def _attributes(self, module: nn.Module) -> list[Any]:
        parts = []
        for name, value in vars(module).items():
            if name in HOOKS:  # a dict whose keys count all hooks of the process
                parts.append((name, self._value(list(value.values()))))
            elif name not in STANDARD:
                parts.append((name, self._value(value)))
        return sorted(parts, key=lambda part: part[0])

    def _value(self, value: Any, depth: int = 0, opens: bool = True) -> Any:
        """Return the description of an attribute.

        Args:
            value: the attribute, or a part of it.
            depth: number of containers that it is in.
            opens: read the attributes of objects; else their type alone.
        """
        if isinstance(value, PLAIN) and not isinstance(value, Enum):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, Tensor):
            return self.places.get(id(value)) or _tensor(value)
        if isinstance(value, (np.ndarray, np.generic)):
            content = "" if value.dtype.hasobject else _hash(value.tobytes())
            return f"{value.dtype} {value.shape} {content}"
        if isinstance(value, nn.Module):
            return self.places.get(id(value)) or self.module(value)
        kind, below = _named(type(value)), partial(self._value, depth=depth + 1, opens=opens)
        if isinstance(value, (Enum, type)):
            return kind, _named(value) if isinstance(value, type) else value.name
        if depth == DEEPEST:
            return kind
        if isinstance(value, dict):
            return kind, [(below(key), below(part)) for key, part in value.items()]
        if isinstance(value, (tuple, list)):
            return kind, [below(part) for part in value]
        if isinstance(value, (set, frozenset)):
            return kind, sorted(repr(below(part)) for part in value)
        if isinstance(value, MethodType):
            return kind, below(value.__func__)
        if isinstance(value, partial):
            return kind, below(value.func), below(value.args), below(value.keywords)
        if isinstance(value, FunctionType):
            held = [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
            defaults = value.__defaults__, value.__kwdefaults__, held
            values = [below(part, opens=False) for part in defaults]
            self.functions.append(value)
            return _named(value), _code(value.__code__), values
        if not hasattr(value, "__dict__"):  # a built-in function, say
            return kind, getattr(value, "__qualname__", "")
        if not opens:
            return kind
        entries = [(name, below(part, opens=False)) for name, part in vars(value).items()]
        return kind, sorted(entries, key=lambda entry: str(entry[0]))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _tensor(tensor: Tensor) -> str:
    content = ""
    with suppress(RuntimeError, TypeError):  # without values, as those of a tracer
        content = _hash(value_bytes(tensor))
    return f"{tensor.dtype} {tuple(tensor.shape)} {content}"


def _named(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


@cache
def _source(kind: type) -> str:
    """Return the source of a class, or the code of its methods where there is none."""
    with suppress(OSError, TypeError, SyntaxError):
        return inspect.getsource(kind)
    # As in a notebook.
    return repr([(function.__name__, _code(function.__code__)) for function in _functions(kind)])


def _functions(kind: type) -> list[FunctionType]:
    """Return the methods of a class, without those of its bases."""
    members = vars(kind).values()
    functions = (getattr(m, "__func__", getattr(m, "fget", m)) for m in members)
    return [function for function in functions if isinstance(function, FunctionType)]


def _is_own(function: Any) -> bool:
    """Return True for a function of the user's, False for one of an installed library."""
    return _is_user_file(function.__code__.co_filename, function.__module__)


def _is_user_file(file: str, module: str | None) -> bool:
    installed = any(f"{folder}-packages" in file for folder in ("site", "dist"))
    return not installed and str(module).partition(".")[0] not in sys.stdlib_module_names


def _names_of(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function may read by name from its file, and from modules that it names."""
    names: dict[str, None] = {}
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names |= dict.fromkeys(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    for name in names:
        value = function.__globals__.get(name)
        if name.startswith("__") or name not in function.__globals__:
            continue
        yield name, value
        file = getattr(value, "__file__", None)
        if isinstance(value, ModuleType) and file and _is_user_file(file, value.__name__):
            inside = vars(value)
            yield from ((f"{name}.{n}", inside[n]) for n in names if n in inside and n[:2] != "__")


def _code(code: CodeType) -> Any:
    """Return what a function does, without the lines that it stands on."""
    constants: list[Any] = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(_code(constant))
        else:  # sets come in another order in each process
            ordered = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
            constants.append(repr(ordered))
    return code.co_code.hex(), code.co_names, constants
