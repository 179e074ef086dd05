"""Choose the fastest kernel for the weights of one shape: measured once per machine, then cached.

The exporter asks for the form of integer weights, the accuracy level of packed products and the
width multiple of pruned channels. Answers follow from `kernel_timing` and `kernel_arithmetic`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autocompress.cache import Cache, cache_folder, key_of
from autocompress.integer_form import IntegerForm
from autocompress.targets.device.result import versions
from autocompress.targets.device.sessions import DEFAULT, SessionSettings
from autocompress.targets.kernel_arithmetic import products_saturate, rounds_inputs
from autocompress.targets.kernel_timing import (
    FOLDED,
    fastest_gather,
    fastest_matmul,
    fastest_packed_matmul,
    measured_multiple,
    unsigned_is_free,
)
from autocompress.targets.target import Target, missing_here


@dataclass
class KernelChoice:
    """Answer from memory, from file `path`, or by timing kernels against each other, in that order.

    Attributes:
        settings: of the timed sessions.
        weight_only: False if the target has no kernels on packed weights.
        present: False if the runtime is not on this machine, so that nothing can be timed.
        portable: True to use only integer weights with exact products on every processor.
        packed: True if packed weights stay packed, also those that a head shares with an embedding.
            A decoder reads all weights for one token, so they come from memory. A kernel that is
            timed alone has them in the caches of the processor.
        path: JSON file of the answers, shared by processes; None keeps them in memory.
    """

    settings: SessionSettings = DEFAULT
    weight_only: bool = True
    present: bool = True
    portable: bool = True
    path: Path | None = None
    packed: bool = False
    _known: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.path
        self._cache, self._file = (
            (Cache(None), "") if path is None else (Cache(path.parent), path.name)
        )
        self._known.update(self._cache.read(self._file, _read_answers) or {})

    @property
    def rows(self) -> bool:
        """Return True if dynamic 8-bit inputs have a range per row, in products exact everywhere.

        So it is in LiteRT. In ONNX Runtime the whole tensor has one range.
        """
        return self.settings.runtime == "litert"

    @property
    def saturates(self) -> bool:
        """Return True if integer kernels here add two products in 16 bits (x86 without VNNI)."""
        return (
            self._answer("integer products saturate", lambda: int(products_saturate(self.settings)))
            == 1
        )

    def integer_form(self, shape: tuple[int, int, int] | None) -> IntegerForm:
        """Return the fastest exact form of the weights of an integer kernel.

        Where two forms take the same time it is the one with more values.

        Args:
            shape: (rows, columns, outputs) of a linear product; None for convolutions, whose
                unsigned kernels took 1.1 to 3.6 times as long as the signed ones on all of AVX2,
                AVX-512 and VNNI (`python -m benchmarks.quantization`).
        """
        if self.rows or not (self.portable or self.saturates):
            return IntegerForm.SIGNED
        if shape is None or not self.present or self.settings.runtime != "onnxruntime":
            return IntegerForm.REDUCED
        rows, columns, outputs = shape
        key = f"unsigned MatMulInteger {rows}x{columns}x{outputs}"
        free = self._answer(
            key, lambda: int(unsigned_is_free(self.settings, rows, columns, outputs))
        )
        return IntegerForm.UNSIGNED if free else IntegerForm.REDUCED

    def matmul_level(self, rows: int, columns: int, outputs: int, bits: int, block: int) -> int:
        """Return the accuracy level of the fastest MatMulNBits kernel.

        Args:
            rows: vectors per product.
            columns: inputs of each vector.
            outputs: width of the product.
            bits: width of the packed weights.
            block: inputs per scale.

        Returns:
            The accuracy level, or FOLDED if the float product on unpacked weights is faster and
            they may be unpacked.
        """
        if not self.weight_only:
            return FOLDED
        key = f"MatMulNBits {rows}x{columns}x{outputs} {bits}b{block}{' packed' * self.packed}"
        measure = fastest_packed_matmul if self.packed else fastest_matmul
        return self._answer(
            key, lambda: measure(self.settings, rows, columns, outputs, bits, block)
        )

    def matmul_rounds_inputs(
        self, rows: int, columns: int, outputs: int, bits: int, block: int, level: int
    ) -> bool:
        """Return True if a MatMulNBits kernel rounds its inputs to 8 bits per block.

        An accuracy level only permits it; each machine decides.

        Args:
            rows: vectors per product.
            columns: inputs of each vector.
            outputs: width of the product.
            bits: width of the packed weights.
            block: inputs per scale.
            level: accuracy level of the kernel.
        """
        key = f"MatMulNBits {rows}x{columns}x{outputs} {bits}b{block} rounds at {level}"
        return (
            self._answer(
                key, lambda: int(rounds_inputs(rows, columns, outputs, bits, block, level))
            )
            == 1
        )

    def gather_stays_packed(
        self, lookups: int, entries: int, width: int, bits: int, block: int
    ) -> bool:
        """Return True if GatherBlockQuantized is at least as fast as an unpacked lookup.

        Args:
            lookups: indices in one call.
            entries: rows of the table.
            width: columns of the table.
            bits: width of the packed weights.
            block: columns per scale.
        """
        if not self.weight_only:
            return False
        if self.packed:
            return True
        key = f"GatherBlockQuantized {lookups}x{entries}x{width} {bits}b{block}"
        return (
            self._answer(
                key, lambda: fastest_gather(self.settings, lookups, entries, width, bits, block)
            )
            != FOLDED
        )

    def width_multiple(self, kind: str) -> int:
        """Return the largest multiple to which rounding a width up costs hardly any time.

        Args:
            kind: "linear" or "conv".

        Returns:
            1, 2, 4, 8 or 16.
        """
        if not self.present or self.rows:  # widths are timed in ONNX Runtime and OpenVINO
            return 1
        return self._answer(
            f"{kind} width multiple", lambda: measured_multiple(self.settings, kind)
        )

    def _answer(self, key: str, measure: Any) -> int:
        if key not in self._known:
            self._known[key] = measure()
            self._cache.update(self._file, _read_answers, self._merged)
        return self._known[key]

    def _merged(self, on_disk: dict[str, int] | None) -> str:
        """Return the new content of the file, with the answers of other processes."""
        self._known = {**(on_disk or {}), **self._known}
        return json.dumps(self._known, indent=1, sort_keys=True)


def _read_answers(path: Path) -> dict[str, int]:
    return {str(key): int(value) for key, value in json.loads(path.read_text()).items()}


def kernel_choice(target: Target) -> KernelChoice:
    """Return the kernel choice of this machine, cached between runs.

    Args:
        target: its runtime and session settings select the file of answers.
    """
    present = target.figures is None and not missing_here(target)
    runtime = versions(target.settings if present else DEFAULT)  # a missing one has no version
    content = (sorted(runtime.items()), sorted(asdict(target.settings).items()))
    machine = key_of(repr(content))[:16]
    path = cache_folder() / "kernels" / f"{machine}.json"
    parts = (target.settings, target.weight_only, present, target.portable, path)
    return KernelChoice(*parts, packed=target.decoder)
