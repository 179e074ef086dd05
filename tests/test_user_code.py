"""What functions name in the user's files decides what a model computes, in whatever form."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import fx, nn

from autocompress import model_digest as digest_module
from autocompress.model_digest import model_digest
from autocompress.user_code import is_own, names_of

MODEL = """
import functools, math, operator, enum, dataclasses, types
import numpy as np, torch, torch.nn.functional as F
from torch import nn
import own_pkg, own_pkg.inner.ops

class Scale:
    BY = 1.0
    def __init__(self, k): self.k = k
    def __call__(self, x): return x * self.k
    def apply(self, x): return x * self.k * self.BY

def times(k):
    def wrap(f):
        @functools.wraps(f)
        def wrapped(*inputs): return k * f(*inputs)
        return wrapped
    return wrap

{code}

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(2, 2)
    def forward(self, x): return act(self.fc(x))
"""
OPS = "SHIFT = 1.0\ndef shifted(x): return x + SHIFT\n"

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """Return a function that makes the model of a user's file, imported anew."""
    count = 0

    def made(code: str, ops: str = OPS) -> nn.Module:
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        inner = folder / "own_pkg" / "inner"
        inner.mkdir(parents=True)
        (inner.parent / "__init__.py").touch()
        (inner / "__init__.py").touch()
        (inner / "ops.py").write_text(ops)
        (folder / "own_model.py").write_text(MODEL.format(code=textwrap.dedent(code)))
        for name in ("own_model", "own_pkg", "own_pkg.inner", "own_pkg.inner.ops"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(folder)
        model: nn.Module = importlib.import_module("own_model").Own()
        return model.eval()

    return made


CHANGES = {
    "default of a keyword": ("def act(x, *, by=2.0): return x * by", "2.0", "-3.0"),
    "default": ("def act(x, by=2.0): return x * by", "2.0", "-3.0"),
    "closure": (
        """
        def make(k):
            def f(x): return x * k
            return f
        act = make(0.1)
        """,
        "0.1",
        "0.2",
    ),
    "closure of a closure": (
        """
        def make(k):
            def f(x): return x * k
            def g(x): return f(x) + 1
            return g
        act = make(0.1)
        """,
        "0.1",
        "0.2",
    ),
    "attribute of a function": ("def act(x): return x * act.k\nact.k = 2.0", "2.0", "3.0"),
    "value in a decorator": ("K = 2.0\n@times(K)\ndef act(x): return x", "2.0", "3.0"),
    "wrapped function": ("@times(2.0)\ndef act(x): return x + 1", "+ 1", "- 1"),
    "wrapped by a library": (
        "K = 2.0\n@torch.no_grad()\ndef act(x, *, by=K): return x * by",
        "2.0",
        "3.0",
    ),
    "wrapped by functools": ("K = 2.0\n@functools.cache\ndef act(x): return x * K", "2.0", "3.0"),
    "name of a library's function": ("act = F.relu", "F.relu", "F.elu"),
    "name of a built-in function": ("act = torch.relu", "torch.relu", "torch.tanh"),
    "name of a ufunc": ("def act(x): return f(x)\nf = np.tanh", "np.tanh", "np.sinh"),
    "name of a library": ("lib = torch\ndef act(x): return lib.abs(x)", "= torch", "= np"),
    "operator": ("act = operator.methodcaller('relu')", "relu", "tanh"),
    "partial": ("act = functools.partial(torch.mul, other=2.0)", "2.0", "3.0"),
    "scripted": ("@torch.jit.script\ndef act(x): return x + 1", "+ 1", "- 1"),
    "module": ("act = nn.LeakyReLU(0.1)", "0.1", "0.2"),
    "instance": ("act = Scale(2.0)", "2.0", "3.0"),
    "instance in an instance": ("act = Scale(Scale(2.0))", "2.0", "3.0"),
    "instance of a library": (
        "C = types.SimpleNamespace(k=2.0)\ndef act(x): return x * C.k",
        "2.0",
        "3.0",
    ),
    "instance of a library in an instance": (
        "act = Scale(types.SimpleNamespace(k=2.0))",
        "2.0",
        "3.0",
    ),
    "view of a dict": (
        "C = types.MappingProxyType({'k': 2.0})\ndef act(x): return x * C['k']",
        "2.0",
        "3.0",
    ),
    "instance of a library in a closure": (
        """
        def make(c):
            def f(x): return x * c.k
            return f
        act = make(types.SimpleNamespace(k=2.0))
        """,
        "2.0",
        "3.0",
    ),
    "bound method": ("act = Scale(2.0).apply", "2.0", "3.0"),
    "class attribute": ("Scale.BY = 2.0\nact = Scale(1.0).apply", "2.0", "3.0"),
    "method of an instance": (
        "class Sub(Scale):\n    def __call__(self, x): return x + 1\nact = Sub(1.0)",
        "+ 1",
        "- 1",
    ),
    "value that a method names": (
        "K = 2.0\nclass Sub(Scale):\n    def __call__(self, x): return x * K\nact = Sub(1.0)",
        "2.0",
        "3.0",
    ),
    "slots": (
        """
        @dataclasses.dataclass(slots=True)
        class C: k: float
        c = C(2.0)
        def act(x): return x * c.k
        """,
        "2.0",
        "3.0",
    ),
    "value of an enumeration": (
        """
        class E(enum.Enum): A = 2.0
        e = E.A
        def act(x): return x * e.value
        """,
        "2.0",
        "3.0",
    ),
    "static method": (
        """
        class C:
            @staticmethod
            def go(x): return x + 1
        def act(x): return C.go(x)
        """,
        "+ 1",
        "- 1",
    ),
    "property": (
        """
        class C:
            @property
            def k(self): return 2.0
        c = C()
        def act(x): return x * c.k
        """,
        "2.0",
        "3.0",
    ),
    "forward of a gradient's class": (
        """
        class Quant(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x): return x + 1
        def act(x): return Quant.apply(x)
        """,
        "+ 1",
        "- 1",
    ),
    "what a gradient's class names": (
        """
        K = 2.0
        class Quant(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x): return x * K
        act = Quant.apply
        """,
        "2.0",
        "3.0",
    ),
    "import inside of a function": (
        "def act(x):\n    from own_pkg.inner.ops import shifted\n    return shifted(x)",
        None,
        None,
    ),
    "module of a package of a package": (
        "def act(x): return own_pkg.inner.ops.shifted(x)",
        None,
        None,
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_a_function_names_counts(own: Callable[..., nn.Module], kind: str) -> None:
    code, old, new = CHANGES[kind]
    digest = model_digest(own(code))
    assert model_digest(own(code)) == digest, "nothing changed"
    changed = (code, OPS.replace("1.0", "2.0")) if old is None else (code.replace(old, new),)
    assert model_digest(own(*changed)) != digest


WRAPPED = ("torch.relu", "F.linear", "F.relu", "math.sqrt", "Scale", "Scale(1.0)", "nn.ReLU()")
WRAPPED += ("torch.jit.script(twice)", "functools.partial(torch.mul, other=2.0)", "np.tanh")


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_function_that_wraps_anything_is_read(
    own: Callable[..., nn.Module], wrapped: str
) -> None:
    code = f"""
    def twice(x): return x + x
    @functools.wraps({wrapped})
    def act(x): return x * 2.0
    """
    digest = model_digest(own(code))
    assert model_digest(own(code)) == digest
    assert model_digest(own(code.replace("2.0", "3.0"))) != digest


@pytest.mark.parametrize("act", ["def act(x): return x * K", "act = Scale(K).apply"])
def test_functions_that_a_program_calls_count(own: Callable[..., nn.Module], act: str) -> None:
    code = f"K = 2.0\n{act}\n"
    digests = []
    for text in (code, code, code.replace("2.0", "3.0")):
        model = own(text)
        graph = fx.Graph()
        x = graph.call_module("fc", (graph.placeholder("x"),))
        graph.output(graph.call_function(sys.modules["own_model"].act, (x,)))
        digests.append(model_digest(fx.GraphModule(model, graph)))
    assert digests[0] == digests[1] != digests[2]


def test_equal_code_of_two_files_is_read_in_both(own: Callable[..., nn.Module]) -> None:
    code = "from own_pkg.inner.ops import shifted as other\n{}\n{}"
    code = code.format("def act(x): return shifted(other(x))", OPS)
    ops = "\n" * (MODEL.format(code=code).splitlines().index("SHIFT = 1.0")) + OPS
    digest = model_digest(own(code, ops))
    assert model_digest(own(code, ops.replace("1.0", "2.0"))) != digest
    assert model_digest(own(code.replace("1.0", "2.0"), ops)) != digest


def test_values_that_cannot_be_read_count_by_their_types(own: Callable[..., nn.Module]) -> None:
    code = """
    class Proxy:
        @property
        def __class__(self): raise RuntimeError("no object is bound")
    class Closed:
        __slots__ = ("k",)
        def __getattribute__(self, name): raise RuntimeError(name)
    values = [Proxy(), Closed(), (n for n in range(3)), iter([]), open, object()]
    values.append(values)
    def act(x): return x if values else x + 1
    """
    assert model_digest(own(code)) == model_digest(own(code))
    assert model_digest(own(code)) != model_digest(own(code.replace("object()", "object")))


def test_functions_that_hold_each_other_are_read_once(own: Callable[..., nn.Module]) -> None:
    names = [f"f{i}" for i in range(12)]
    calls = f"k + sum(f(x) for f in ({', '.join(names)}))"
    lines = [f"    def {name}(x): return x if x is None else {calls}" for name in names]
    code = "\n".join(["def make(k):", *lines, "    return f0", "act = make(2.0)"])
    digest = model_digest(own(code))
    assert model_digest(own(code)) == digest != model_digest(own(code.replace("2.0", "3.0")))


def test_libraries_are_not_walked_into(
    own: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = set()

    def recorded(function: FunctionType) -> Any:
        files.add(Path(function.__code__.co_filename).name)
        return names_of(function)

    monkeypatch.setattr(digest_module, "names_of", recorded)
    code = """
    import logging
    log, normal = logging.getLogger("own"), torch.distributions.Normal(0.0, 1.0)
    @torch.no_grad()
    def act(x):
        log.info("%s %s %s", torch.ops, normal, torch.distributions.Uniform)
        return F.multi_head_attention_forward(x) + np.mean(x)
    """
    model = own(code)
    digest = model_digest(model)
    sys.modules["own_model"].log.isEnabledFor(10)  # which a logger keeps
    assert model_digest(model) == digest
    assert files == {"own_model.py"}


def test_what_is_the_users_and_what_is_a_librarys() -> None:
    @torch.no_grad()
    def wrapped() -> None: ...

    function = test_what_is_the_users_and_what_is_a_librarys
    module = importlib.import_module("arithmetic")
    for mine in (function, Own, module):
        assert is_own(mine), mine
    for other in (wrapped, nn.Linear, nn, torch.ops, torch._C, textwrap, textwrap.dedent, int):
        assert not is_own(other), other


class Own: ...
