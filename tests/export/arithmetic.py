"""Run a file as a processor would whose integer kernels sum 8-bit products in 16 bits, or in 32,
whichever processor this is.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from autocompress.integer_form import IntegerForm
from autocompress.targets.device.sessions import open_session
from autocompress.targets.kernels import KernelChoice

CONTRIB = "com.microsoft"
Ints = NDArray[np.int64]


class Formed(KernelChoice):
    """Kernels that all hold their weights in one form, on whichever machine."""

    def __init__(self, form: IntegerForm) -> None:
        super().__init__()
        self.form = form

    def integer_form(self, shape: tuple[int, int, int] | None) -> IntegerForm:
        return (
            IntegerForm.REDUCED
            if shape is None and self.form is IntegerForm.UNSIGNED
            else self.form
        )


def products(a: NDArray, weight: NDArray, saturates: bool) -> Ints:
    """a (m, k) uint8 @ weight (k, n).

    Pairs of products with signed weights are summed in 16 bits, as PMADDUBSW does.
    """
    a, wide = a.astype(np.int64), weight.astype(np.int64)
    if not saturates or weight.dtype == np.uint8:
        return a @ wide
    odd = a.shape[1] % 2
    a, wide = np.pad(a, ((0, 0), (0, odd))), np.pad(wide, ((0, odd), (0, 0)))
    total = np.zeros((len(a), wide.shape[1]), np.int64)
    for k in range(0, a.shape[1], 2):
        total += np.clip(a[:, k : k + 2] @ wide[k : k + 2], -(2**15), 2**15 - 1)
    return total


def matmul(
    a: NDArray,
    weight: NDArray,
    a_zero: NDArray | None,
    weight_zero: NDArray | None,
    saturates: bool,
) -> Ints:
    """(a - a_zero) @ (weight - weight_zero), the zero-points taken off the sums as kernels do."""
    flat = a.reshape(-1, a.shape[-1])
    za = 0 if a_zero is None else int(np.ravel(a_zero)[0])
    zw = np.zeros(1, np.int64) if weight_zero is None else np.ravel(weight_zero).astype(np.int64)
    wide = weight.astype(np.int64)
    sums = flat.astype(np.int64).sum(1, keepdims=True)
    found = products(flat, weight, saturates) - za * wide.sum(0) - sums * zw + len(weight) * za * zw
    return found.reshape(*a.shape[:-1], -1)


def convolve(
    x: NDArray, weight: NDArray, x_zero: NDArray | None, saturates: bool, **attributes: object
) -> Ints:
    """Sums of (x - x_zero) * weight, in two dimensions or one."""
    zero, axes = 0 if x_zero is None else int(np.ravel(x_zero)[0]), x.ndim - 2
    strides, dilations = (
        list(attributes.get(name) or [1] * axes) for name in ("strides", "dilations")
    )
    pads, groups = list(attributes.get("pads") or [0] * 2 * axes), int(attributes.get("group") or 1)
    padded = np.pad(
        x, ((0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)), constant_values=zero
    )
    if axes == 1:
        padded, weight, strides, dilations = (
            padded[:, :, None],
            weight[:, :, None],
            [1, *strides],
            [1, *dilations],
        )
    kernel = weight.shape[2:]
    sizes = [
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(padded.shape[2:], dilations, kernel, strides, strict=True)
    ]
    found = []
    for part, filters in zip(np.split(padded, groups, 1), np.split(weight, groups, 0), strict=True):
        columns = torch.nn.functional.unfold(
            torch.from_numpy(part.astype(np.float32)), kernel, dilations, 0, strides
        )
        rows = columns.transpose(1, 2).numpy().astype(np.uint8)
        found.append(
            matmul(rows, filters.reshape(len(filters), -1).T, x_zero, None, saturates).transpose(
                0, 2, 1
            )
        )
    result = np.concatenate(found, 1).reshape(len(x), len(weight), *sizes)
    return result[:, :, 0] if axes == 1 else result


def operators(saturates: bool) -> list[type[OpRun]]:
    """ONNX Runtime's operators on 8-bit weights."""

    class MatMulInteger(OpRun):
        def _run(self, a, weight, a_zero=None, weight_zero=None):
            return (matmul(a, weight, a_zero, weight_zero, saturates).astype(np.int32),)

    class MatMulIntegerToFloat(OpRun):
        op_domain = CONTRIB

        def _run(self, a, weight, a_scale, weight_scale, a_zero=None, weight_zero=None, bias=None):
            found = (
                matmul(a, weight, a_zero, weight_zero, saturates) * (a_scale * weight_scale)
            ).astype(np.float32)
            return (found if bias is None else found + bias,)

    class DynamicQuantizeMatMul(OpRun):
        op_domain = CONTRIB

        def _run(self, x, weight, weight_scale, weight_zero=None, bias=None):
            low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
            scale = (
                np.float32(np.float32(high - low) / np.float32(255))
                if high > low
                else np.float32(1)
            )
            zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
            a = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8)
            found = (
                matmul(a, weight, zero, weight_zero, saturates) * (scale * weight_scale)
            ).astype(np.float32)
            return (found if bias is None else found + bias,)

    class ConvInteger(OpRun):
        def _run(self, x, weight, x_zero=None, weight_zero=None, **attributes):
            assert weight_zero is None
            return (convolve(x, weight, x_zero, saturates, **attributes).astype(np.int32),)

    class QLinearConv(OpRun):
        def _run(
            self, x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias=None, **attributes
        ):
            assert not np.any(w_zero)
            sums = convolve(x, w, x_zero, saturates, **attributes)
            shape = (-1, *[1] * (x.ndim - 2))
            sums = sums if bias is None else sums + bias.reshape(shape)
            scale = np.broadcast_to(x_scale * w_scale / y_scale, len(w)).reshape(shape)
            return (
                np.clip(np.rint(sums * scale) + int(np.ravel(y_zero)[0]), 0, 255).astype(np.uint8),
            )

    return [MatMulInteger, MatMulIntegerToFloat, DynamicQuantizeMatMul, ConvInteger, QLinearConv]


def optimized_model(model: bytes, level: str = "ALL") -> onnx.ModelProto:
    """The model that the runtime executes, up to a level of its optimiser."""
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "optimized.onnx")
        open_session(model, optimized=path, level=level)
        return onnx.load(path)


class EmulatedSession:
    """A session on a processor whose products saturate, or are exact."""

    def __init__(self, model: bytes, saturates: bool) -> None:
        self.evaluator = ReferenceEvaluator(
            optimized_model(model, "EXTENDED"), new_ops=operators(saturates)
        )

    def run(self, output_names: None, feed: dict[str, NDArray]) -> list[NDArray]:
        return [np.asarray(value) for value in self.evaluator.run(None, feed)]
