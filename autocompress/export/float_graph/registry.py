"""Keep the exporter's table of operators between exports, which builds it anew for each.

PyTorch 2.13 reads the source of its 500 translations in each call of `torch.onnx.export`. That
takes 0.7 s of the processor, as long as the rest of the export of a small model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest import mock


@cache
def _built(opset_version: int) -> Any:
    """Return the table for an operator set, which nobody changes."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return ONNXRegistry.from_torchlib(opset_version=opset_version)


@contextlib.contextmanager
def kept_registry(opset_version: int) -> Iterator[None]:
    """Let exports within the context take the table that the first of them built.

    PyTorch offers no public way to pass a table. Where its private one has moved, each export
    builds its own again.

    Args:
        opset_version: of the exports.
    """
    try:
        kept = _built(opset_version)
        kind, functions = type(kept), kept.functions
    except (ImportError, AttributeError, TypeError):
        yield
        return

    def copy(**_: Any) -> Any:
        """Return a table that an export may add operators to."""
        table = kind()
        vars(table).update(vars(kept))
        table.functions = {target: list(found) for target, found in functions.items()}
        return table

    with mock.patch.object(kind, "from_torchlib", staticmethod(copy)):
        yield
