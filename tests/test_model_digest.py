"""Check that a digest tells apart what computes something else, and nothing more."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from functools import partial
from operator import methodcaller
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from autocompress.model_digest import model_digest, value_bytes


class Mode(Enum):
    FIRST = 1
    SECOND = 2


class Config:
    """Hold settings as the configs of libraries do."""

    def __init__(self, scale: float, **inside: Any) -> None:
        self.scale, self.inside = scale, inside

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.scale


class Net(nn.Module):
    def __init__(self, setting: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.setting = setting

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x))


@dataclass
class Settings:
    names: list[str] = field(default_factory=list)


def linear(value: float) -> nn.Linear:
    return nn.Linear(2, 2).requires_grad_(False).apply(lambda m: m.weight.fill_(value))


def held(value: Any) -> Callable[[], Any]:
    return lambda: value


PAIRS = [
    (1, 2),
    (1, 1.0),
    (True, 1),
    ("a", "b"),
    (None, 0),
    ((1, 2), [1, 2]),
    ([1, {"a": (2,)}], [1, {"a": (3,)}]),
    ({1, 2}, {1, 3}),
    (slice(1, 2), slice(1, 3)),
    (torch.float16, torch.float32),
    (torch.tensor([1.0]), torch.tensor([2.0])),
    (torch.tensor([1]), torch.tensor([True])),
    ([torch.ones(2, dtype=torch.complex64)], [torch.zeros(2, dtype=torch.complex64)]),
    (np.arange(3), np.arange(1, 4)),
    (np.float32(1), np.float32(2)),
    (np.array([1, None]), np.array([2, None])),
    (deque([1]), deque([2])),
    (Fraction(1, 2), Fraction(1, 3)),
    (methodcaller("relu"), methodcaller("tanh")),
    (np.tanh, np.sinh),
    (Config(1.0).scaled, Config(2.0).scaled),
    (Config(1.0, nested=Config(1.0)), Config(1.0, nested=Config(2.0))),
    (Mode.FIRST, Mode.SECOND),
    (Config(1.0), Config(2.0)),
    (Config(1.0, sizes=[1]), Config(1.0, sizes=[2])),
    (Settings(["a"]), Settings(["b"])),
    (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    (torch.relu, torch.tanh),
    (nn.functional.relu, nn.functional.elu),
    (lambda x: x + 1, lambda x: x + 2),
    (held(1), held(2)),
    (partial(torch.sum, dim=1), partial(torch.sum, dim=0)),
    (nn.ReLU, nn.ELU),
    ([linear(1.0)], [linear(2.0)]),
]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda value: type(value).__name__)
def test_attributes_count(first: Any, second: Any) -> None:
    one, other = Net(first).eval(), Net(second).eval()
    assert model_digest(one) != model_digest(other)
    assert model_digest(one) == model_digest(copy.deepcopy(one)) == model_digest(Net(first).eval())


def test_all_tensors_count_but_those_that_are_left_out() -> None:
    def made(**changed: float) -> Net:
        net = Net()
        net.register_buffer("steps", torch.tensor([1, 2]))
        net.register_buffer("on", torch.tensor(True))
        net.register_buffer("hidden", torch.ones(2), persistent=False)
        for name, value in {**dict(net.named_buffers()), **dict(net.named_parameters())}.items():
            if name.replace(".", "_") in changed:
                value.data.flatten()[0] = changed[name.replace(".", "_")]
        return net.eval()

    same = model_digest(made())
    names = ("steps", "on", "hidden", "fc_weight", "norm_running_mean")
    for name in names:
        assert model_digest(made(**{name: 0.0 if name != "norm_running_mean" else 3.0})) != same
    weights = ("fc.weight", "norm.running_mean")
    changed = made(fc_weight=0.0, norm_running_mean=3.0, norm_num_batches_tracked=7)
    assert model_digest(changed, weights) == model_digest(made(), weights)


def test_where_a_tensor_is_read_from_counts_and_not_its_value_twice() -> None:
    """Recurrent layers hold their weights in a list too."""
    first, second = nn.GRU(3, 2), nn.GRU(3, 2)
    names = [name for name, _ in first.named_parameters()]
    assert model_digest(first, names) == model_digest(second, names)
    assert model_digest(first) != model_digest(second)


def test_hashes_that_objects_hold_of_themselves_do_not_count() -> None:
    """As a GenerationConfig of transformers does; they differ in each process."""
    digests = {model_digest(Net(SimpleNamespace(_object_hash=value))) for value in (1, 2)}
    assert len(digests) == 1
    values: list[dict[str, Any]] = [{"hash": 1}, {"hash": 2}, {"_a_hash": "a"}, {"_a_hash": True}]
    assert len({model_digest(Net(SimpleNamespace(**value))) for value in values}) == 4


def test_forwards_and_hooks_of_an_instance_count() -> None:
    plain, own, hooked = Net(), Net(), Net()
    own.forward = lambda x: x  # type: ignore[method-assign]
    hooked.fc.register_forward_hook(lambda module, inputs, output: output + 1)
    again = Net()
    nn.Linear(1, 1).register_forward_hook(held(1))  # hooks are numbered through
    again.fc.register_forward_hook(lambda module, inputs, output: output + 1)
    assert len({model_digest(model) for model in (plain, own, hooked)}) == 3
    assert model_digest(hooked) == model_digest(again)


def test_sources_count_with_those_of_bases_and_without_a_file() -> None:
    def made(source: str) -> nn.Module:
        names: dict[str, Any] = {"Net": Net, "__name__": "notebook"}
        exec(source, names)
        return names["Own"]()

    texts = [
        "class Own(Net):\n  def forward(self, x): return x",
        "class Own(Net):\n  def forward(self, x): return x + 1",
        "class Own(Net):\n  def forward(self, x): return x + 2",
        "class Base(Net):\n  def forward(self, x): return x + 3\nclass Own(Base): pass",
        "class Base(Net):\n  def forward(self, x): return x + 4\nclass Own(Base): pass",
    ]
    assert len({model_digest(made(text)) for text in texts}) == len(texts)
    assert model_digest(made(texts[0])) == model_digest(made("\n\n" + texts[0]))


def test_functions_and_values_that_a_forward_names_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = """
    import sys
    import torch
    import helper_{i} as helper
    SCALE, SIZES = {scale}, [{size}]
    def inner(x): return x * {factor}
    def outer(x): return inner(x).relu()
    class Own(torch.nn.Module):
        def forward(self, x):
            again = lambda: outer(x) + len(sys.path)
            return again() * SCALE + SIZES[0] + helper.shift(x)
    """

    def digest(i: int, scale: int = 1, size: int = 1, factor: int = 1, shift: int = 1) -> str:
        (tmp_path / f"helper_{i}.py").write_text(f"def shift(x): return x + {shift}")
        names: dict[str, Any] = {"__name__": "user_code"}
        text = textwrap.dedent(code.format(i=i, scale=scale, size=size, factor=factor))
        exec(compile(text, "user.py", "exec"), names)
        return model_digest(names["Own"]())

    changes = [{}, {"scale": 2}, {"size": 2}, {"factor": 2}, {"shift": 2}]
    digests = [digest(i, **change) for i, change in enumerate(changes)]
    assert len(set(digests)) == len(changes)
    assert digest(9) == digests[0]


def test_a_program_is_told_by_its_code() -> None:
    programs = [fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), act)) for act in map(Act, "ab")]
    for program in programs:
        program.load_state_dict(programs[0].state_dict())
    assert model_digest(programs[0]) != model_digest(programs[1])
    assert model_digest(programs[0]) == model_digest(copy.deepcopy(programs[0]))


class Act(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if self.name == "a" else x.tanh()


def test_modules_that_hold_each_other_and_tensors_without_values_have_a_digest() -> None:
    net = Net()
    net.setting = [net, [Net([net])]]
    net.setting[1].append(net.setting)
    net.extra = torch.empty(2, device="meta")
    assert model_digest(net) == model_digest(copy.deepcopy(net))
    assert value_bytes(torch.tensor(True)) == b"\x01"


@pytest.mark.slow
def test_another_process_gives_the_same_digest() -> None:
    program = (
        "from torch import nn\nimport torch\nfrom autocompress.model_digest import model_digest\n"
        "torch.manual_seed(0)\nnet = nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 2))\n"
        "net.words = {'a', 'b', 'c', 'd'}\nnet.act = lambda x: x in {'a', 'b', 'c'}\n"
        "class Held:\n  words = {'a', 'b'}\n  def get(self): return self.words | MORE\n"
        "MORE, held = frozenset('abcd'), Held()\n"
        "def named(x, *, by={'a', 'b'}): return held.get()\nnet.other = lambda x: named(x)\n"
        "print(model_digest(net))"
    )
    digests = set()
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
        digests.add(ran.stdout)
    assert len(digests) == 1
