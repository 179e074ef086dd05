"""How much each unit of a channel group matters: one function per criterion, group -> scores."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.calibrate.linear_algebra import damped
from autocompress.model.channel_group import ChannelGroup, Member
from autocompress.model.weights import side_dimension, weight_of

Scores = NDArray[np.float64]


def _sums(
    group: ChannelGroup, part_of: Callable[[Member, nn.Module], Tensor | None], evidence: Evidence
) -> Scores:
    """(units,) sum over the members of what each gives its channels, every member's part divided by its mean, so that no module
    outweighs the rest (Fang et al. 2023, sec. 3.3)."""
    total, wholes = np.zeros(group.channels), np.zeros(group.channels)
    for member in group.members:
        module = evidence.model.get_submodule(member.name)
        values = (
            part_of(member, module)
            if member.side in ("out", "in", "whole") and hasattr(module, "weight")
            else None
        )
        if values is None:
            continue
        found = values.detach().float().cpu().numpy().astype(np.float64)
        if member.side == "whole":
            wholes[member.root] += found.sum()
            continue
        part = np.bincount(member.root, weights=found[member.index], minlength=group.channels)
        total += part / max(part.mean(), 1e-30)
    if wholes.any():
        total += wholes / wholes.mean()
    return np.asarray(total.reshape(group.units, group.unit_size).sum(1))


def _along(values: Tensor, member: Member, module: nn.Module) -> Tensor:
    """(channels of the member's side,) sums of a tensor of the weight's shape."""
    if member.side == "whole":
        return values.sum().unsqueeze(0)
    return (
        values.transpose(0, side_dimension(module, member.side)).flatten(1).sum(1)
        if values.dim() > 1
        else values
    )


def l2(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Squared magnitudes of everything that goes with a unit: rows of its producers and columns of its consumers (Li et al. 2017)."""
    return _sums(
        group,
        lambda member, module: _along(weight_of(module).detach().float().square(), member, module),
        evidence,
    )


def l1(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Absolute magnitudes of the same."""
    return _sums(
        group,
        lambda member, module: _along(weight_of(module).detach().float().abs(), member, module),
        evidence,
    )


def random(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Uniform numbers that depend on the group's name only: what any other criterion must beat."""
    return np.random.default_rng(zlib.crc32(group.name.encode())).random(group.units)


def gradient(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Mean square of the loss's gradient."""

    def part(member: Member, module: nn.Module) -> Tensor | None:
        found = evidence.gradients.get(member.name)
        return None if found is None else _along(found.square, member, module)

    return _sums(group, part, evidence)


def taylor(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Mean square of the first-order change of the loss when the unit is set to 0 (Molchanov et al. 2019, eq. 8, per unit)."""

    def part(member: Member, module: nn.Module) -> Tensor | None:
        found = evidence.gradients.get(member.name)
        if found is None or member.side == "whole":
            return None if found is None else found.whole.unsqueeze(0)
        return found.columns if side_dimension(module, member.side) == 1 else found.rows

    return _sums(group, part, evidence)


def hessian(group: ChannelGroup, evidence: Evidence) -> Scores:
    """Second-order change of the loss with the diagonal of the empirical Fisher matrix as its Hessian: F w^2 / 2 (LeCun et al. 1990;
    Theis et al. 2018)."""

    def part(member: Member, module: nn.Module) -> Tensor | None:
        found = evidence.gradients.get(member.name)
        return (
            None
            if found is None
            else _along(
                weight_of(module).detach().cpu().float().square() * found.square / 2, member, module
            )
        )

    return _sums(group, part, evidence)


def wanda(group: ChannelGroup, evidence: Evidence) -> Scores:
    """|w_ij| ||x_j|| of the columns that read the unit (Sun et al. 2024, eq. 1); l2 where no reader's inputs are known."""
    return _from_readers(
        group,
        evidence,
        lambda weight, gram: (weight.abs() * gram.diagonal().clamp_min(0).sqrt()).sum(0),
    )


def obs_diagonal(group: ChannelGroup, evidence: Evidence) -> Scores:
    """w_ij^2 / [H^-1]_jj of the columns that read the unit: what the layer's output loses when the others make up for this one alone
    (Hassibi and Stork 1993, eq. 5), H the Gram matrix of its inputs."""

    def part(weight: Tensor, gram: Tensor) -> Tensor:
        return (
            weight.square().sum(0)
            / torch.cholesky_inverse(torch.linalg.cholesky(damped(gram))).diagonal()
        )

    return _from_readers(group, evidence, part)


def _from_readers(
    group: ChannelGroup, evidence: Evidence, part: Callable[[Tensor, Tensor], Tensor]
) -> Scores:
    """Scores from (weight (rows, columns), gram) -> (columns,) of every module that reads the group; l2 where there is none."""

    def of_member(member: Member, module: nn.Module) -> Tensor | None:
        read = _reads(member, module, evidence)
        return None if read is None else part(*read).reshape(weight_of(module).shape[1], -1).sum(1)

    if not any(_reads(m, evidence.model.get_submodule(m.name), evidence) for m in group.members):
        return l2(group, evidence)
    return _sums(group, of_member, evidence)


def _reads(member: Member, module: nn.Module, evidence: Evidence) -> tuple[Tensor, Tensor] | None:
    """(weight (rows, columns), gram (columns, columns)) of a member that reads the group's channels, in double precision."""
    seen = evidence.statistics.get(member.name)
    if member.side != "in" or seen is None or len(seen.gram) != 1:
        return None
    return weight_of(module).detach().flatten(1).cpu().double(), seen.gram[0].double()


def obs(group: ChannelGroup, evidence: Evidence) -> Scores:
    """The step at which each unit goes when the cheapest is removed one after another, the kept columns making up for every removal
    (Hassibi and Stork 1993; Kurtic et al. 2023, "ZipLM", eq. 3 and 4).

    A unit U of a reader costs tr(W_U [H^-1]_UU^-1 W_U^T); then W -= W_U [H^-1]_UU^-1 [H^-1]_U and H^-1 loses U. Several readers' costs are
    added as shares of their outputs' energy. The weights so found are those of the least-squares reconstruction.
    """
    readers = list(_readers(group, evidence))
    if not readers:
        return l2(group, evidence)
    gone = np.zeros(group.units, dtype=bool)
    scores = np.zeros(group.units)
    for step in range(group.units):
        costs = np.sum([reader.costs() for reader in readers], axis=0)
        worst = int(np.argmin(np.where(gone, np.inf, costs)))
        gone[worst], scores[worst] = True, step
        for reader in readers:
            reader.remove(worst)
    return scores


class _Reader:
    """One layer that reads a group, while units are removed; `columns` (units, k) are those of each unit."""

    def __init__(self, weight: Tensor, gram: Tensor, columns: Tensor) -> None:
        self.weight, self.columns = weight.clone(), columns
        self.energy = float(((weight @ gram) * weight).sum().clamp_min(1e-30))
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram)))

    def costs(self) -> Scores:
        """(units,) as shares of the output's energy."""
        own = self.weight[:, self.columns].transpose(0, 1)  # (units, rows, k)
        if self.columns.shape[1] == 1:
            found = own.square().sum((1, 2)) / self.inverse.diagonal()[self.columns[:, 0]]
        else:
            blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
            found = (torch.linalg.solve(blocks, own.transpose(1, 2)) * own.transpose(1, 2)).sum(
                (1, 2)
            )
        return np.asarray((found / self.energy).numpy())

    def remove(self, unit: int) -> None:
        """Take one unit out; its columns become 0, and 1 on the diagonal of the inverse, so that they can be looked at again."""
        at = self.columns[unit]
        solved = torch.linalg.solve(self.inverse[at][:, at], self.inverse[at])
        self.weight -= self.weight[:, at] @ solved
        self.inverse -= self.inverse[:, at] @ solved
        self.weight[:, at] = 0
        self.inverse[at] = 0
        self.inverse[:, at] = 0
        self.inverse[at, at] = 1


def _readers(group: ChannelGroup, evidence: Evidence) -> Iterator[_Reader]:
    for member in group.members:
        module = evidence.model.get_submodule(member.name)
        read = _reads(member, module, evidence)
        if read is None:
            continue
        owners = member.root // group.unit_size
        if len(set(np.bincount(owners, minlength=group.units))) > 1:
            continue  # it reads a part of the channels, so that units are not alike to it
        per_channel = read[0].shape[1] // weight_of(module).shape[1]
        order = np.argsort(owners, kind="stable")
        channels = torch.from_numpy(member.index[order].reshape(group.units, -1))
        columns = channels[:, :, None] * per_channel + torch.arange(per_channel)
        yield _Reader(*read, columns.flatten(1))


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
