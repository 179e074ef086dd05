"""Score the units of a channel group: one function per criterion, (group, evidence) -> scores.

A unit is a filter, neuron, head, hidden unit or expert. `masks.py` removes the units with the
lowest scores. Scores are relative to their group: only their order within the group has a meaning.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.calibrate.linear_algebra import damped_factor
from autocompress.compress.prune.surgeon import Reader, removal_steps
from autocompress.model.channel_group import ChannelGroup, Member
from autocompress.model.weights import side_dimension, weight_of

Scores = NDArray[np.float64]


def _sums(
    group: ChannelGroup, part_of: Callable[[Member, nn.Module], Tensor | None], evidence: Evidence
) -> Scores:
    """Return (units,) sums over the members of `part_of`, each member's part divided by its mean.

    The division keeps one module from outweighing the others (Fang et al. 2023, sec. 3.3).
    """
    total, wholes = np.zeros(group.channels), np.zeros(group.channels)
    for member in group.members:
        module = evidence.model.get_submodule(member.name)
        if member.side not in ("out", "in", "whole") or not hasattr(module, "weight"):
            continue
        part = part_of(member, module)
        if part is None:
            continue
        values = part.detach().float().cpu().numpy().astype(np.float64)
        if member.side == "whole":
            wholes[member.root] += values.sum()
            continue
        sums = np.bincount(member.root, weights=values[member.index], minlength=group.channels)
        total += sums / max(sums.mean(), 1e-30)
    if wholes.any():
        total += wholes / wholes.mean()
    return np.asarray(total.reshape(group.units, group.unit_size).sum(1))


def _along(values: Tensor, member: Member, module: nn.Module) -> Tensor:
    """Sum a tensor of the weight's shape over all but the channels of the member's side."""
    if member.side == "whole":
        return values.sum().unsqueeze(0)
    if values.dim() == 1:
        return values
    return values.transpose(0, side_dimension(module, member.side)).flatten(1).sum(1)


def l2(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Return sum w^2 over the rows of the unit's producers and the columns of its consumers.

    Source: Li et al. 2017, sec. 3.1, with squares for absolute values.

    Args:
        group: the channel group whose units are scored.
        evidence: gives the model's weights.

    Returns:
        (units,) scores; a higher score is a more important unit.
    """

    def part(member: Member, module: nn.Module) -> Tensor:
        return _along(weight_of(module).detach().float().square(), member, module)

    return _sums(group, part, evidence)


def l1(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Return sum |w| over the rows of the unit's producers and the columns of its consumers.

    Source: Li et al. 2017, sec. 3.1.

    Args:
        group: the channel group whose units are scored.
        evidence: gives the model's weights.

    Returns:
        (units,) scores; a higher score is a more important unit.
    """

    def part(member: Member, module: nn.Module) -> Tensor:
        return _along(weight_of(module).detach().float().abs(), member, module)

    return _sums(group, part, evidence)


def random(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Return uniform random scores, the lower bound for any other criterion.

    Args:
        group: its name is the seed.
        evidence: not read.

    Returns:
        (units,) scores in [0, 1).
    """
    return np.random.default_rng(zlib.crc32(group.name.encode())).random(group.units)


def gradient(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Return sum E[g^2] over the unit's weights, g the gradient of the loss.

    Args:
        group: the channel group whose units are scored.
        evidence: gives the gradients; members without gradients are left out.

    Returns:
        (units,) scores; a higher score is a more important unit.
    """

    def part(member: Member, module: nn.Module) -> Tensor | None:
        gradients = evidence.gradients.get(member.name)
        return None if gradients is None else _along(gradients.square, member, module)

    return _sums(group, part, evidence)


def taylor(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Return E[(sum w g)^2], the squared first-order change of the loss if the unit is removed.

    Source: Molchanov et al. 2019, eq. 8, with the sum over the weights of a unit.

    Args:
        group: the channel group whose units are scored.
        evidence: gives the gradients; members without gradients are left out.

    Returns:
        (units,) scores; a higher score is a more important unit.
    """

    def part(member: Member, module: nn.Module) -> Tensor | None:
        gradients = evidence.gradients.get(member.name)
        if gradients is None:
            return None
        if member.side == "whole":
            return gradients.whole.unsqueeze(0)
        return gradients.columns if side_dimension(module, member.side) == 1 else gradients.rows

    return _sums(group, part, evidence)


def hessian(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Return sum F w^2 / 2, the second-order change of the loss if the unit is removed.

    F is the diagonal of the empirical Fisher matrix, taken for the Hessian. Source: LeCun et al.
    1990; Theis et al. 2018.

    Args:
        group: the channel group whose units are scored.
        evidence: gives weights and gradients; members without gradients are left out.

    Returns:
        (units,) scores; a higher score is a more important unit.
    """

    def part(member: Member, module: nn.Module) -> Tensor | None:
        gradients = evidence.gradients.get(member.name)
        if gradients is None:
            return None
        squares = weight_of(module).detach().cpu().float().square()
        return _along(squares * gradients.square / 2, member, module)

    return _sums(group, part, evidence)


def wanda(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Return sum |w_ij| ||x_j|| over the columns j that read the unit.

    Source: Sun et al. 2024, eq. 1.

    Args:
        group: the channel group whose units are scored.
        evidence: gives weights and input statistics.

    Returns:
        (units,) scores; a higher score is a more important unit. `l2` if no reader has statistics.
    """

    def part(weight: Tensor, gram: Tensor) -> Tensor:
        return (weight.abs() * gram.diagonal().clamp_min(0).sqrt()).sum(0)

    return _from_readers(group, evidence, part)


def obs_diagonal(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Return sum w_ij^2 / [H^-1]_jj over the columns j that read the unit.

    It is the error of the layer's output if column j alone is removed and the others compensate for
    it. H is the Gram matrix of the layer's inputs. Source: Hassibi and Stork 1993, eq. 5.

    Args:
        group: the channel group whose units are scored.
        evidence: gives weights and input statistics.

    Returns:
        (units,) scores; a higher score is a more important unit. `l2` if no reader has statistics.
    """

    def part(weight: Tensor, gram: Tensor) -> Tensor:
        inverse = torch.cholesky_inverse(damped_factor(gram))
        return weight.square().sum(0) / inverse.diagonal()

    return _from_readers(group, evidence, part)


def _from_readers(
    group: ChannelGroup, evidence: Evidence, part: Callable[[Tensor, Tensor], Tensor]
) -> Scores:
    """Sum `part`, (weight (rows, columns), gram) -> (columns,), over the readers, else `l2`."""

    def of_member(member: Member, module: nn.Module) -> Tensor | None:
        read = _reads(member, module, evidence)
        return None if read is None else part(*read).reshape(weight_of(module).shape[1], -1).sum(1)

    if not any(_reads(m, evidence.model.get_submodule(m.name), evidence) for m in group.members):
        return l2(group, evidence)
    return _sums(group, of_member, evidence)


def _reads(member: Member, module: nn.Module, evidence: Evidence) -> tuple[Tensor, Tensor] | None:
    """Return a reader's weight (rows, columns) and gram (columns, columns) in double precision."""
    statistics = evidence.statistics.get(member.name)
    if member.side != "in" or statistics is None or len(statistics.gram) != 1:
        return None
    return weight_of(module).detach().flatten(1).cpu().double(), statistics.gram[0].double()


def obs(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Return the step at which each unit is removed if the cheapest is removed first, one by one.

    The other columns compensate for every removal; see `surgeon.py`. Source: Hassibi and Stork
    1993; Kurtic et al. 2023, "ZipLM", eq. 3 and 4.

    Args:
        group: the channel group whose units are scored.
        evidence: gives weights and input statistics.

    Returns:
        (units,) steps 0 to units - 1 as floats. `l2` if no reader has statistics.
    """
    readers = list(_readers(group, evidence))
    return removal_steps(readers, group.units) if readers else l2(group, evidence)


def _readers(group: ChannelGroup, evidence: Evidence) -> Iterator[Reader]:
    for member in group.members:
        module = evidence.model.get_submodule(member.name)
        read = _reads(member, module, evidence)
        if read is None:
            continue
        owners = member.root // group.unit_size
        if len(set(np.bincount(owners, minlength=group.units))) > 1:
            continue  # reads only some channels, so that units differ in their number of columns
        per_channel = read[0].shape[1] // weight_of(module).shape[1]
        order = np.argsort(owners, kind="stable")
        channels = torch.from_numpy(member.index[order].reshape(group.units, -1))
        columns = channels[:, :, None] * per_channel + torch.arange(per_channel)
        yield Reader(*read, columns.flatten(1))


CRITERIA: Mapping[str, Callable[[ChannelGroup, Evidence], Scores]] = {
    "l2": l2,
    "l1": l1,
    "random": random,
    "gradient": gradient,
    "taylor": taylor,
    "hessian": hessian,
    "wanda": wanda,
    "obs_diagonal": obs_diagonal,
    "obs": obs,
}
