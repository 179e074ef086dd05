"""Name the processor of measurements."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType

import pytest

from autocompress.targets.device import result
from autocompress.targets.device.result import processor_name, versions
from autocompress.targets.device.sessions import LITERT

X86 = (
    "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Xeon\nmicrocode\t: 0x1\n"
    "flags\t\t: fpu sse4_1 avx avx2 fma avx512f\n"
)
X86_INSTRUCTIONS = ("avx512dq", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")


@pytest.mark.parametrize(("own", "expected"), [("7.1", "7.1"), (None, "unknown")])
def test_litert_without_metadata_has_a_version(
    own: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    package = ModuleType("ai_edge_litert")
    if own is not None:
        package.__version__ = own  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ai_edge_litert", package)
    monkeypatch.setattr(result, "version", missing)
    assert versions(LITERT)["litert"] == expected


def test_an_update_of_the_system_leaves_the_processor_as_it_is() -> None:
    name = processor_name(X86)
    assert processor_name(X86.replace("0x1", "0x2")) == name
    assert processor_name(X86.replace("fpu", "fpu md_clear ibrs fsrm")) == name
    assert processor_name(X86.replace("avx avx2", "avx2 avx")) == name


def test_other_instructions_or_another_model_are_another_processor() -> None:
    arm = "processor: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n"
    others = [
        X86,
        *(X86.replace("avx512f", f"avx512f {name}") for name in X86_INSTRUCTIONS),
        X86.replace("85", "106"),
        X86.replace("Xeon", "Xeon Gold"),
        arm,
        *(arm.replace("asimd", f"asimd {name}") for name in ("asimddp", "sve2", "i8mm", "bf16")),
    ]
    assert len({processor_name(cpuinfo) for cpuinfo in others}) == len(others)


def test_a_processor_whose_products_come_out_otherwise_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a hypervisor hides VNNI from programs, and the system names it."""
    names = set()
    for products in ("exact", "saturating"):
        monkeypatch.setattr(result, "products_here", lambda products=products: products)
        monkeypatch.setattr("sys.platform", "linux")
        names.add(versions()["processor"])
    assert len(names) == 2
