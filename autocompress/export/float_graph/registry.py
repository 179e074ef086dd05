"""Keep the exporter's table of operators between exports, which builds it anew for each.

PyTorch 2.13 reads the source of its 500 translations in each call of `torch.onnx.export`. That
takes 0.7 s of the processor, as long as the rest of the export of a small model.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest import mock


@cache
def _built(opset_version: int, has_torchvision: bool) -> Any:
    """Return the table for an operator set, which nobody changes.

    It holds the operators of torchvision only if that was imported before.
    """
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
    with contextlib.ExitStack() as changes:
        with contextlib.suppress(ImportError, AttributeError, TypeError):
            kept = _built(opset_version, "torchvision" in sys.modules)
            copied(kept)
            copies = staticmethod(lambda **_: copied(kept))
            changes.enter_context(mock.patch.object(type(kept), "from_torchlib", copies))
        yield


def copied(table: Any) -> Any:
    """Return a copy of a table that an export may add operators to.

    Args:
        table: not changed.
    """
    copy = type(table)()
    vars(copy).update(vars(table))
    copy.functions = {target: list(found) for target, found in table.functions.items()}
    return copy
