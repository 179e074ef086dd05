"""What a runtime can store and execute."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.errors import TargetError, nearest_name, nearest_number


@dataclass(frozen=True)
class Target:
    """A runtime on this machine.

    Attributes:
        name: how the command line calls it.
        threads: threads inside one operator; latency is measured with them.
        weight_bits: widths that a file for it can store.
        integer_kinds: module kinds that have kernels for 8-bit activations (with weights of at most 8 bits).
    """

    name: str
    threads: int
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    integer_kinds: tuple[str, ...]

    def check(self, where: str, axis: str, value: float) -> None:
        """Raise TargetError when no file for this target can hold `value` of `axis`."""
        valid = {"weight_bits": self.weight_bits, "activation_bits": self.activation_bits}[axis]
        if value not in valid:
            raise TargetError(
                f"{where}: {axis} {value} cannot be stored by target {self.name}; nearest valid value: {nearest_number(value, valid)}"
            )


ONNXRUNTIME_CPU = Target("onnxruntime-cpu", 1, (2, 3, 4, 5, 6, 7, 8, 16, 32), (8, 16, 32), ("linear", "conv"))
TARGETS = {target.name: target for target in (ONNXRUNTIME_CPU,)}


def find_target(name: str) -> Target:
    """The target of that name; TargetError names the nearest."""
    if name not in TARGETS:
        raise TargetError(f"target {name!r} is unknown; nearest: {nearest_name(name, TARGETS)}")
    return TARGETS[name]
