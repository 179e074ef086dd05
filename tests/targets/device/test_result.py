"""Name the processor of measurements."""

from __future__ import annotations

from autocompress.targets.device.result import processor_name

X86 = (
    "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Xeon\nmicrocode\t: 0x1\n"
    "flags\t\t: fpu sse4_1 avx avx2 fma avx512f\n"
)


def test_an_update_of_the_system_leaves_the_processor_as_it_is() -> None:
    name = processor_name(X86)
    assert processor_name(X86.replace("0x1", "0x2")) == name
    assert processor_name(X86.replace("fpu", "fpu md_clear ibrs fsrm")) == name
    assert processor_name(X86.replace("avx avx2", "avx2 avx")) == name


def test_other_instructions_or_another_model_are_another_processor() -> None:
    arm = "processor: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n"
    others = [
        X86,
        X86.replace("avx512f", "avx512f avx512_vnni"),
        X86.replace("85", "106"),
        X86.replace("Xeon", "Xeon Gold"),
        arm,
        arm.replace("asimd", "asimd asimddp"),
    ]
    assert len({processor_name(cpuinfo) for cpuinfo in others}) == len(others)
