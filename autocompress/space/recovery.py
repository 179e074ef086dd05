"""Parse the key `distillation` of a search space: how candidates may be trained.

`RecoverySpace` turns Optuna parameters into a `Distillation`, which `compress/recover` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autocompress.candidate import BATCH_NORMS, SCHEDULES, UNTRAINED, Distillation
from autocompress.errors import SpaceError, nearest_name
from autocompress.space.axes import check_keys, listed

ALPHA, AUTO = "distillation/alpha", "auto"
STUDENT_RATE = 1e-3  # learning rate of a student, which may start untrained
BLOCKS_FROM = 50_000_000  # parameters from which on recovery of whole models takes too long
FIRST_RUNG = 0.3  # first rung as a share of the steps, if the space gives only their number
AUTO_RUNGS = (30, 100)  # until a search has planned its own
# Test of each choice, its text in errors, and a valid value that an error may propose.
CHOSEN: Mapping[str, tuple[Callable[[float], bool], str, float]] = {
    "temperature": (lambda v: v > 0, "above 0", 1.0),
    "features": (lambda v: v >= 0, "at least 0", 0.0),
    "sequences": (lambda v: 0 <= v <= 1, "in [0, 1]", 0.0),
    "learning_rate": (lambda v: 0 < v < 1, "above 0 and below 1", UNTRAINED.learning_rate),
}
KEYS = (
    "alpha",
    *CHOSEN,
    "steps",
    "schedule",
    "rounds",
    "accumulation",
    "checkpointing",
    "batch_norm",
    "student_steps",
    "blocks",
)


@dataclass(frozen=True)
class RecoverySpace:
    """Hold the choices of `Distillation`.

    Attributes:
        alphas: lowest and highest alpha; equal if alpha is not searched.
        choices: values of temperature, schedule, features, sequences and learning_rate, at least
            one of each.
        rungs: ascending steps after which a candidate is judged. A candidate that is not beaten
            goes on to the next rung. Empty if nothing is trained.
        plans_steps: True if a search plans the rungs by the time of a step.
        tests_rates: True if a search finds the learning rate by a range test.
        rounds: as in `Distillation`.
        accumulation: as in `Distillation`.
        checkpointing: as in `Distillation`.
        batch_norm: as in `Distillation`; None decides by the task (`fitted`). A student trains with
            frozen statistics.
        student_steps: steps for which `Task.student` learns from the model before the search; 0
            takes it as it is.
        blocks: True if the long recovery of the front trains block after block and trials are not
            trained, False if whole models are trained; None decides by the task (`fitted`).
    """

    alphas: tuple[float, float] = (0.5, 0.5)
    choices: Mapping[str, tuple[Any, ...]] = field(
        default_factory=lambda: {n: (getattr(UNTRAINED, n),) for n in ("schedule", *CHOSEN)}
    )
    rungs: tuple[int, ...] = ()
    plans_steps: bool = False
    tests_rates: bool = False
    rounds: int = UNTRAINED.rounds
    accumulation: int = 1
    checkpointing: bool = False
    batch_norm: str | None = UNTRAINED.batch_norm
    student_steps: int = 0
    blocks: bool | None = None

    @property
    def by_blocks(self) -> bool:
        """Return True if the long recovery trains block after block."""
        return self.blocks is True

    @property
    def steps(self) -> int:
        """Return the steps of the longest recovery."""
        return self.rungs[-1] if self.rungs else 0

    @property
    def searched(self) -> dict[str, tuple[Any, ...]]:
        """Return the choices with more than one value, by Optuna parameter."""
        searched: dict[str, tuple[Any, ...]] = {}
        for name, values in self.choices.items():
            if len(values) > 1 and self.steps > 0:
                searched[f"distillation/{name}"] = values
        return searched

    @property
    def alpha_is_searched(self) -> bool:
        """Return True if alpha is an Optuna parameter."""
        return self.steps > 0 and self.alphas[0] < self.alphas[1]

    def distillation(self, parameters: Mapping[str, float]) -> Distillation:
        """Return the recovery that Optuna parameters stand for.

        Args:
            parameters: alpha, and an index for each choice that is searched; others take the first
                value.

        Returns:
            The recovery with the steps of the last rung, where its schedule has rungs.
        """
        values: dict[str, Any] = {}
        for name, choices in self.choices.items():
            values[name] = choices[int(parameters.get(f"distillation/{name}", 0))]
        # Rounds of pruning do not end at the rungs, so that only one-shot pruning can restart
        # there. Planned rungs give them the steps that a trial makes on average.
        rungs = self.rungs
        if values["schedule"] != "one_shot":
            rungs = rungs[-2:][:1] if self.plans_steps else rungs[-1:]
        return Distillation(
            alpha=round(float(parameters.get(ALPHA, self.alphas[0])), 4),
            steps=rungs[-1] if rungs else 0,
            rounds=self.rounds,
            restarts=rungs[:-1],
            accumulation=self.accumulation,
            checkpointing=self.checkpointing,
            batch_norm=self.batch_norm or UNTRAINED.batch_norm,
            **values,
        )

    def student_lesson(self) -> Distillation:
        """Return the training of a student before the search.

        Alpha is the middle of its range, every other choice takes its first value.
        """
        first = self.distillation({ALPHA: sum(self.alphas) / 2})
        return replace(
            first,
            steps=self.student_steps,
            restarts=(),
            schedule="one_shot",
            sequences=0.0,
            learning_rate=STUDENT_RATE,
            batch_norm=UNTRAINED.batch_norm,
        )

    def planned(self, rungs: tuple[int, ...], learning_rate: float | None) -> RecoverySpace:
        """Return the space with the plan of a search; what it does not leave open stays.

        Args:
            rungs: ascending steps after which a candidate is judged.
            learning_rate: of the longest of them; None keeps the default.
        """
        space = replace(self, rungs=rungs) if self.plans_steps else self
        if learning_rate is None or not self.tests_rates:
            return space
        choices = {**space.choices, "learning_rate": (learning_rate,)}
        return replace(space, choices=choices, tests_rates=False)  # it is known now

    def fitted(
        self, has_labels: bool, has_logits: bool, parameters: int, norms: bool = False
    ) -> RecoverySpace:
        """Return the space without choices that change nothing for a task.

        Args:
            has_labels: False removes the choice of alpha.
            has_logits: False removes the choice of the temperature.
            parameters: number of parameters of the model. More than BLOCKS_FROM turn blocks on
                where the space leaves it open.
            norms: True if the model has batch normalisations, and batches are large enough for
                their statistics. These are trained where the space leaves it open.
        """
        blocks, batch_norm = self.blocks, self.batch_norm
        if blocks is None:
            blocks = parameters > BLOCKS_FROM
        if batch_norm is None:
            batch_norm = "train" if norms else UNTRAINED.batch_norm
        space = replace(self, blocks=blocks, batch_norm=batch_norm)
        space = space if has_labels else replace(space, alphas=(0.0, 0.0))
        if has_logits:
            return space
        temperature = space.choices["temperature"][:1]
        return replace(space, choices={**space.choices, "temperature": temperature})

    def untrained(self) -> RecoverySpace:
        """Return the space without training, for a task that nothing can train."""
        return replace(self, rungs=(), plans_steps=False, tests_rates=False)


def parse_recovery(where: str, data: Mapping[str, Any]) -> RecoverySpace:
    """Return the recovery that the key `distillation` of a space describes.

    Args:
        where: file of the space, for errors.
        data: the value of the key; empty for no training.

    Returns:
        The choices; missing keys take the values of an untrained candidate.

    Raises:
        SpaceError: names the invalid value and the nearest valid one.
    """
    where = f"{where}: distillation"
    check_keys(where, data, KEYS)
    steps = data.get("steps", AUTO if data else 0)
    plans_steps = steps == AUTO
    tests_rates = data.get("learning_rate", AUTO if plans_steps else None) == AUTO
    if tests_rates:
        data = {name: value for name, value in data.items() if name != "learning_rate"}
    choices: dict[str, tuple[Any, ...]] = {"schedule": _schedules(where, data)}
    for name, (valid, rule, near) in CHOSEN.items():
        values = listed(data.get(name, getattr(UNTRAINED, name)))
        for value in values:
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not valid(value):
                raise SpaceError(
                    f"{where}: {name} must be {rule}, got {value!r}; nearest valid value: {near:g}"
                )
        choices[name] = tuple(float(value) for value in values)
    checkpointing = data.get("checkpointing", False)
    if not isinstance(checkpointing, bool):
        raise SpaceError(f"{where}: checkpointing must be true or false, got {checkpointing!r}")
    batch_norm = data.get("batch_norm", None if plans_steps else UNTRAINED.batch_norm)
    if batch_norm not in BATCH_NORMS and (batch_norm is not None or "batch_norm" in data):
        raise SpaceError(
            f"{where}: batch_norm {batch_norm!r} is unknown; nearest: "
            f"{nearest_name(str(batch_norm), BATCH_NORMS)}"
        )
    blocks = data.get("blocks", AUTO)
    if blocks != AUTO and not isinstance(blocks, bool):
        raise SpaceError(
            f"{where}: blocks must be true, false or auto, got {blocks!r}; "
            "nearest valid value: auto"
        )
    numbers: dict[str, int] = {}
    for name, default, least in _COUNTS:
        numbers[name] = _count(where, name, data.get(name, default), least)
    return RecoverySpace(
        _alphas(where, data),
        choices,
        AUTO_RUNGS if plans_steps else _rungs(where, steps),
        plans_steps,
        tests_rates,
        checkpointing=checkpointing,
        batch_norm=batch_norm,
        blocks=None if blocks == AUTO else blocks,
        **numbers,
    )


_COUNTS = (("rounds", UNTRAINED.rounds, 1), ("accumulation", 1, 1), ("student_steps", 0, 0))


def _count(where: str, name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SpaceError(
            f"{where}: {name} must be an integer >= {least}, got {value!r}; "
            f"nearest valid value: {least}"
        )
    return value


def _rungs(where: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        raise SpaceError(f"{where}: steps must be numbers or auto, got {value!r}; nearest: auto")
    if not isinstance(value, list):
        steps = _count(where, "steps", value, 0)
        return tuple(dict.fromkeys(rung for rung in (round(FIRST_RUNG * steps), steps) if rung > 0))
    rungs = [_count(where, "steps", rung, 0) for rung in value]
    if rungs != sorted(set(rungs)):
        raise SpaceError(
            f"{where}: steps must grow, got {value}; nearest valid value: {sorted(set(rungs))}"
        )
    return tuple(rung for rung in rungs if rung > 0)


def _schedules(where: str, data: Mapping[str, Any]) -> tuple[str, ...]:
    schedules = tuple(str(name) for name in listed(data.get("schedule", UNTRAINED.schedule)))
    for name in schedules:
        if name not in SCHEDULES:
            raise SpaceError(
                f"{where}: schedule {name!r} is unknown; nearest: {nearest_name(name, SCHEDULES)}"
            )
    return schedules


def _alphas(where: str, data: Mapping[str, Any]) -> tuple[float, float]:
    value = data.get("alpha", UNTRAINED.alpha)
    if isinstance(value, dict):
        check_keys(f"{where}: alpha", value, ("low", "high"))
        low, high = value.get("low", 0.0), value.get("high", 1.0)
    else:
        low = high = value
    if not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in (low, high)) or low > high:
        raise SpaceError(
            f"{where}: alpha must be a number or {{low, high}} in [0, 1], got {value!r}; "
            "nearest valid value: 0.5"
        )
    return float(low), float(high)
