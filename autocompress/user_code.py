"""Tell the user's code from that of libraries, and read what a function or class does and names."""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any


def named(kind: Any) -> str:
    """Return the name of a class or function with that of its module.

    Args:
        kind: class or function.
    """
    return f"{kind.__module__}.{kind.__qualname__}"


def is_own(value: FunctionType | type | ModuleType) -> bool:
    """Return True for what the user's files define, False for parts of installed libraries.

    Args:
        value: function, class or module. Decorators copy names of modules, so that a function
            counts by the file that it was compiled in.
    """
    if isinstance(value, FunctionType):
        return _is_user_file(value.__code__.co_filename, value.__globals__.get("__name__"))
    if isinstance(value, ModuleType):
        return _is_user_file(_file_of(value), value.__name__)
    return _is_user_file(_file_of(sys.modules.get(str(value.__module__))), value.__module__)


def _is_user_file(file: str, module: Any) -> bool:
    package = str(module).partition(".")[0]
    if package == "__main__":
        return True
    if package in sys.stdlib_module_names:
        return False
    places = (file, _file_of(sys.modules.get(package)))  # some parts of libraries name no file
    return not any(f"{kind}-packages" in place for place in places for kind in ("site", "dist"))


def _file_of(module: ModuleType | None) -> str:
    """Return the file of a module, the folder of a package without one, or ""."""
    folders = getattr(module, "__path__", None) or ()
    return str(getattr(module, "__file__", None) or "".join([*folders][:1]))


@cache
def source_of(kind: type) -> str:
    """Return the source of a class, or the code of its methods where there is none.

    Args:
        kind: a class of the user's, or of a module of an installed library.
    """
    with suppress(Exception):  # no file, or one that cannot be parsed
        return inspect.getsource(kind)
    # As in a notebook.
    members = (getattr(m, "__func__", getattr(m, "fget", m)) for m in vars(kind).values())
    functions = [member for member in members if isinstance(member, FunctionType)]
    return repr([(function.__name__, code_of(function.__code__)) for function in functions])


def members_of(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield methods and class attributes, without those of bases and those that Python makes.

    Args:
        kind: any class.
    """
    for name, member in vars(kind).items():
        is_method = isinstance(member, (FunctionType, staticmethod, classmethod))
        if is_method or not name.startswith("__"):
            yield name, member


def state_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an instance, with those that classes of the user's hold in slots.

    Args:
        value: any object.
    """
    state = dict(getattr(value, "__dict__", {}))
    for kind in filter(is_own, type(value).__mro__):
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                state[name] = getattr(value, name)
    return state


def names_of(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function may read by name from its file, and from modules that it names.

    Modules of the user's are searched for all names that the function reads, and so are the modules
    inside of these.

    Args:
        function: a function of the user's.
    """
    names: dict[str, None] = {}
    imports: dict[str, Any] = {}
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names |= dict.fromkeys(code.co_names)
        imports |= _imports(code, function.__globals__)
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    waiting: list[tuple[str, dict[str, Any]]] = [("", {**imports, **function.__globals__})]
    seen: list[Any] = []
    while waiting:
        place, values = waiting.pop()
        for name in names:
            if name not in values or name.startswith("__"):
                continue
            value = values[name]
            yield place + name, value
            if isinstance(value, ModuleType) and is_own(value) and value not in seen:
                seen.append(value)
                waiting.append((f"{place}{name}.", vars(value)))


def _imports(code: CodeType, file: dict[str, Any]) -> dict[str, Any]:
    """Return the user's modules that the code of a function imports, as far as they are loaded."""
    modules: dict[str, Any] = {}
    parents = str(file.get("__package__")).split(".")
    packages = [".".join(parents[:depth]) for depth in range(len(parents), 0, -1)]
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("IMPORT_NAME", "IMPORT_FROM"):
            name = str(instruction.argval)
            for path in (name, *(f"{package}.{name}" for package in packages)):
                module = sys.modules.get(path)
                if isinstance(module, ModuleType) and is_own(module):
                    modules.setdefault(name, module)
    return modules


def code_of(code: CodeType) -> Any:
    """Return what a function does, without the lines that it stands on.

    Args:
        code: of a function.
    """
    constants: list[Any] = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(code_of(constant))
        else:  # sets come in another order in each process
            ordered = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
            constants.append(repr(ordered))
    return code.co_code.hex(), code.co_names, constants
