"""List the parts of a model that are not compressed, with their shares of parameters and MACs.

`find_modules` adds them to its map, and `autocompress inspect` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from autocompress.model.plain.transposed import SplitTransposed

PRODUCTS = ("bmm", "baddbmm")  # of two activations, as in attention


@dataclass(frozen=True)
class Uncovered:
    """Describe a part of the model that is not compressed.

    Attributes:
        name: of the module, or "(functional)".
        what: its class, or its operators.
        parameters_share: of the model's parameters.
        macs_share: of the model's MACs.
    """

    name: str
    what: str
    parameters_share: float
    macs_share: float


def find_uncovered(
    model: nn.Module, covered: Sequence[str], macs: Mapping[str, int], rest_macs: int
) -> tuple[Uncovered, ...]:
    """Return the parts of a plain model that no compressible module covers.

    Args:
        model: the plain model.
        covered: names of its compressible modules.
        macs: MACs of one call by operator.
        rest_macs: MACs outside the compressible modules.

    Returns:
        Modules with parameters of their own, then the operators that multiply activations.
    """
    known: set[int] = set()
    for name in covered:
        known |= {
            id(parameter) for parameter in model.get_submodule(name).parameters(recurse=False)
        }
    total = sum(parameter.numel() for parameter in model.parameters())
    rest: list[Uncovered] = []
    for name, module in model.named_modules():
        parameters = module.parameters(recurse=False)
        count = sum(p.numel() for p in parameters if id(p) not in known)
        if count:
            what = type(module).__name__
            if type(module) is nn.Module:
                what = "read by a branch, a loop or another operator"
            elif isinstance(module, SplitTransposed):
                what = "bias of a transposed convolution"
            rest.append(Uncovered(name or "(model)", what, count / total, 0.0))
    if rest_macs > 0:
        operators = [operator for operator in macs if operator in PRODUCTS] or list(macs)
        share = rest_macs / max(1, sum(macs.values()))
        rest.append(Uncovered("(functional)", " + ".join(operators), 0.0, share))
    return tuple(rest)
