"""Hold what a user says about a model folder and its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.argument_types import shown, switch, text, whole_number
from autocompress.errors import TaskError

BATCH_SIZE = 16  # samples, unless the user or the memory of outputs asks for another number
WHERE = "from_pretrained"


@dataclass(frozen=True)
class Options:
    """Describe how a model folder becomes a task.

    Attributes:
        folder: the model folder, or "hf://owner/name".
        data: file or folder of training data; None if there is none.
        validation: file or folder of the validation split; None cuts it from `data`.
        test: file or folder of the test split; None cuts it from what is given.
        task: name of the task; None takes that of the architecture.
        metrics: names; the first one decides, the others are reported. () takes the task's.
        columns: part of a sample ("text") -> column of the data ("body").
        max_length: most tokens of a text; None takes the limit of model and tokenizer.
        batch_size: samples of a batch of data; None takes BATCH_SIZE, or fewer where the outputs of
            a batch would be large (`kinds/memory.py`).
        batch: samples at which latency is measured.
        lengths: tokens at which latency is measured: the first decides, the others are reported.
            () takes the median length of the validation split.
        fixed_length: tokens to which all texts are filled up; 0 fills up to the longest of a batch.
        samples: most samples of a split; None takes all.
        seed: of all cuts and orders.
        trust_remote_code: run the code that the folder brings.
    """

    folder: str
    data: str | None = None
    validation: str | None = None
    test: str | None = None
    task: str | None = None
    metrics: tuple[str, ...] = ()
    columns: Mapping[str, str] | None = None
    max_length: int | None = None
    batch_size: int | None = None
    batch: int = 1
    lengths: tuple[int, ...] = ()
    fixed_length: int = 0
    samples: int | None = None
    seed: int = 0
    trust_remote_code: bool = False

    @property
    def samples_of_batch(self) -> int:
        """Return the samples of a batch of data."""
        return BATCH_SIZE if self.batch_size is None else self.batch_size


def checked_options(
    folder: Any, metric: Any, columns: Any, length: Any, values: Mapping[str, Any]
) -> Options:
    """Return the options of `from_pretrained`, with their types checked.

    Args:
        folder: text or path.
        metric: name, list of names, or None.
        columns: mapping of texts, or None.
        length: whole number, list of them, or None.
        values: the other options by name.

    Returns:
        The options.

    Raises:
        TaskError: one of them has a wrong type or value.
    """
    checked: dict[str, Any] = {}
    for name in ("data", "validation", "test", "task"):
        value = values[name]
        checked[name] = None if value is None else text(WHERE, name, value, "data.jsonl", TaskError)
    for name in ("max_length", "samples", "batch_size"):
        value = values[name]
        checked[name] = None if value is None else _positive(name, value)
    checked["batch"] = _positive("batch", values["batch"])
    fixed = values["fixed_length"]
    if fixed is not None:
        fixed = _positive("fixed_length", fixed)
        for name, value in (("max_length", checked["max_length"]), ("length", length)):
            if value not in (None, (), fixed):
                raise TaskError(
                    f"{WHERE}: fixed_length {fixed} is the {name} too, got {name} {value}; "
                    "nearest: fixed_length alone"
                )
        checked["max_length"] = length = fixed
    names = [] if metric is None else [metric] if isinstance(metric, str) else list(metric)
    lengths = [] if length is None else [length] if isinstance(length, int) else list(length)
    if columns is not None and not isinstance(columns, Mapping):
        raise TaskError(
            f"{WHERE}: columns must be a mapping, got {shown(columns)}; nearest: {{'text': 'body'}}"
        )
    return Options(
        folder=text(WHERE, "folder", folder, "./my-model", TaskError),
        metrics=tuple(_texts("metric", names)),
        columns=None if columns is None else {str(k): str(v) for k, v in columns.items()},
        fixed_length=fixed or 0,
        lengths=tuple(_positive("length", item) for item in lengths),
        seed=whole_number(WHERE, "seed", values["seed"], 0, TaskError),
        trust_remote_code=switch(
            WHERE, "trust_remote_code", values["trust_remote_code"], TaskError
        ),
        **checked,
    )


def _positive(name: str, value: Any) -> int:
    number = whole_number(WHERE, name, value, 1, TaskError)
    if number < 1:
        raise TaskError(f"{WHERE}: {name} must be at least 1, got {number}; nearest: 1")
    return number


def _texts(name: str, values: Sequence[Any]) -> list[str]:
    return [text(WHERE, name, value, "accuracy", TaskError) for value in values]
