"""Keep the memory of activations below a limit in proposals, before a file is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate
from autocompress.export.parts.activations import Activations
from autocompress.search.propose.allocation import Allocator, Choices
from autocompress.search.propose.tables.module_table import kept_share
from autocompress.targets.workload import INTEGER_CONVOLUTIONS, Layout

Array = NDArray[np.float64]
ROOM = 0.98  # share of the limit that a prediction may use
SAFE = 0.75  # share of the told trials whose memory is at most the predicted one
LITTLE = 1e-6  # loss that a change counts as at least, as a share of the largest one
MOST_STEPS = 4  # changes of one allocation, as a multiple of its columns


@dataclass(frozen=True, eq=False)
class MemoryBudget:
    """Predict the memory of allocations, and change those that are over a limit.

    The memory is the largest sum of activations that are alive at once. Pruned channels take none,
    and integers a byte: an activation is one of integers where all modules that write and read it
    compute with 8 bits. What a runtime adds, such as copies, is learned from told trials, whose
    memory is known (`corrected`).

    Attributes:
        allocator: the configs of modules and groups.
        activations: of the float graph.
        limit: most bytes.
        exact: returns the memory of a candidate's file in bytes.
        integer: by module, (configs,) True where it reads and writes integers of 8 bits.
        kept: by channel group, (choices,) share of its units that stays.
        factor: memory by files, as a multiple of the predicted one.
    """

    allocator: Allocator
    activations: Activations
    limit: float
    exact: Callable[[Candidate], int]
    integer: Mapping[str, NDArray[np.bool_]]
    kept: Mapping[str, Array]
    factor: float = 1.0

    @classmethod
    def of(
        cls,
        allocator: Allocator,
        activations: Activations,
        layout: Layout,
        limit: float,
        exact: Callable[[Candidate], int],
        flat: bool,
    ) -> MemoryBudget:
        """Return the budget of an allocator.

        Args:
            allocator: the configs of modules and groups.
            activations: of the float graph.
            layout: the form in which each config runs.
            limit: most bytes.
            exact: returns the memory of a candidate's file in bytes.
            flat: True for LiteRT, whose static linear layers write integers too.
        """
        forms = (*INTEGER_CONVOLUTIONS, "int8-unsigned")
        integer = {}
        for name, table in allocator.modules.items():
            module = layout.module_map[name]
            own = forms if module.kind == "conv" else ("int8-static",) if flat else ()
            integer[name] = np.array([layout.form(module, c) in own for c in table.configs])
        groups = {group.name: group for group in layout.module_map.groups}
        kept = {}
        for name, configs in allocator.group_configs.items():
            kept[name] = np.array([kept_share(groups[name], config) for config in configs])
        return cls(allocator, activations, limit, exact, integer, kept)

    def keeps(self, candidate: Candidate) -> bool:
        """Return True if the file of a candidate keeps the limit.

        Args:
            candidate: configs of modules.
        """
        return self.exact(candidate) <= self.limit

    def corrected(self, told: Sequence[tuple[Choices, int]]) -> MemoryBudget:
        """Return the budget with the factor that files of told trials show.

        Args:
            told: (allocation, bytes by its file) of trials.
        """
        if not told:
            return self
        predicted = self.peaks(np.stack([choices for choices, _ in told]))
        ratios = np.array([size for _, size in told]) / np.maximum(predicted, 1.0)
        return replace(self, factor=float(np.quantile(ratios, SAFE)))

    def within(self, choices: Choices) -> NDArray[np.bool_]:
        """Return which allocations are predicted to keep the limit.

        Args:
            choices: (n, modules + groups) allocations.
        """
        return np.asarray(self.factor * self.peaks(choices) <= ROOM * self.limit)

    def peaks(self, choices: Choices) -> Array:
        """Return (n,) predicted bytes of allocations, without `factor`.

        Args:
            choices: (n, modules + groups) allocations.
        """
        return np.asarray(self._by_step(choices).max(1, initial=0.0))

    def relieved(self, choices: Choices, weights: Array | None = None) -> Choices:
        """Return allocations with changes that bring their memory below the limit.

        The change that lowers the memory above the limit most for its loss is made first: a channel
        group is pruned more, or all modules around an activation compute with integers.

        Args:
            choices: (n, modules + groups) allocations.
            weights: (n, features) factor of each feature of the loss; 1 by default.

        Returns:
            (n, modules + groups). Those that no change brings below the limit are as near as
            changes bring them.
        """
        result: Choices = choices.copy()
        for i in np.flatnonzero(~self.within(choices)):
            factors = np.ones(len(self.allocator.features)) if weights is None else weights[i]
            result[i] = self._relieved(result[i], factors)
        return result

    def _relieved(self, row: Choices, weights: Array) -> Choices:
        most = ROOM * self.limit / self.factor
        for _ in range(MOST_STEPS * self.allocator.width):
            by_step = self._by_step(row[None])[0]
            options = self._options(row, by_step > most)
            excess = np.maximum(by_step - most, 0.0).sum()
            if excess <= 0 or not len(options):
                break
            saved = excess - np.maximum(self._by_step(options) - most, 0.0).sum(1)
            losses = self.allocator.losses(np.concatenate([row[None], options])) @ weights
            lost = np.maximum(losses[1:] - losses[0], LITTLE * max(float(losses.max()), 1e-30))
            best = int(np.argmax(np.where(saved > 0, saved / lost, 0.0)))
            if saved[best] <= 0:
                break
            row = options[best]
        return row

    def _options(self, row: Choices, over: NDArray[np.bool_]) -> Choices:
        """Return the changes that may lower the memory of the steps that are over the limit."""
        alive = self._alive[over].any(0)
        options = []
        for g in np.flatnonzero((self._shares[alive] > 0).any(0)):
            column = len(self.allocator.modules) + int(g)
            kept = self._kept[g]
            smaller = np.flatnonzero(kept < kept[row[column]])
            if len(smaller):
                options.append(self._with(row, {column: int(smaller[np.argmax(kept[smaller])])}))
                options.append(self._with(row, {column: int(smaller[np.argmin(kept[smaller])])}))
        for i in np.flatnonzero(alive & ~self._floats):
            changes = {}
            for m in np.flatnonzero(self._around[i]):
                integer = self._integer[m]
                if not integer[row[m]] and integer.any():
                    changes[int(m)] = self._integer_choice(int(m))
            if changes:
                options.append(self._with(row, changes))
        if not options:
            return np.zeros((0, len(row)), dtype=np.intp)
        return np.unique(np.stack(options), axis=0)

    def _integer_choice(self, module: int) -> int:
        """Return the choice of integers with the least loss."""
        table = list(self.allocator.modules.values())[module]
        return int(np.argmin(np.where(self._integer[module], table.losses.sum(0), np.inf)))

    @staticmethod
    def _with(row: Choices, changes: Mapping[int, int]) -> Choices:
        changed = row.copy()
        for column, choice in changes.items():
            changed[column] = choice
        return changed

    def _by_step(self, choices: Choices) -> Array:
        """Return (n, steps) bytes of the activations that are alive."""
        count = len(self.allocator.modules)
        kept = np.ones((len(choices), 0))
        if self._kept:
            parts = [kept[choices[:, count + g]] for g, kept in enumerate(self._kept)]
            kept = np.stack(parts, axis=1)
        share = 1.0 - (1.0 - kept) @ self._shares.T
        floats = np.stack(
            [~integer[choices[:, m]] for m, integer in enumerate(self._integer)], axis=1
        )
        is_float = (floats.astype(float) @ self._around.T > 0) | self._floats
        item = np.where(is_float, self.activations.itemsize, 1.0)
        sizes: Array = self.activations.elements * share * item
        return np.asarray(sizes @ self._alive.T)

    @cached_property
    def _alive(self) -> Array:
        """Return (steps, activations) 1 where an activation is alive."""
        first, last = self.activations.alive.T
        steps = np.arange(self.activations.steps)[:, None]
        return np.asarray((steps >= first) & (steps <= last), dtype=float)

    @cached_property
    def _integer(self) -> list[NDArray[np.bool_]]:
        return [self.integer[name] for name in self.allocator.modules]

    @cached_property
    def _kept(self) -> list[Array]:
        return [self.kept[name] for name in self.allocator.group_configs]

    @cached_property
    def _shares(self) -> Array:
        """Return (activations, groups) share of an activation that a group prunes."""
        place = {name: g for g, name in enumerate(self.allocator.group_configs)}
        shares = np.zeros((len(self.activations.makers), len(place)))
        for i, makers in enumerate(self.activations.makers):
            for name, share in makers.items():
                table = self.allocator.modules.get(name)
                if table is not None and table.out_group in place:
                    shares[i, place[table.out_group]] += share
        return shares

    @cached_property
    def _around(self) -> Array:
        """Return (activations, modules) 1 for the modules that write or read an activation."""
        place = {name: m for m, name in enumerate(self.allocator.modules)}
        around = np.zeros((len(self.activations.writers), len(place)))
        pairs = zip(self.activations.writers, self.activations.readers, strict=True)
        for i, (writers, readers) in enumerate(pairs):
            for name in (writers | readers) & place.keys():
                around[i, place[name]] = 1.0
        return around

    @cached_property
    def _floats(self) -> NDArray[np.bool_]:
        """Return (activations,) True for those that something else than modules writes or reads."""
        known = {*self.allocator.modules}
        pairs = zip(self.activations.writers, self.activations.readers, strict=True)
        return np.array([bool((writers | readers) - known) for writers, readers in pairs])
