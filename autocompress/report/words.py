"""Put numbers of a report into words: sizes, times, ratios, metrics, and what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from autocompress.candidate import Candidate
from autocompress.results.measurement import score_words
from autocompress.task.task import ERRORS


class MetricWords(NamedTuple):
    """Name the metric of a run, and show its values.

    Attributes:
        name: such as "accuracy" or "perplexity".
        sign: -1 if accuracies are negative errors, which are shown as the errors; else 1.
    """

    name: str = "accuracy"
    sign: float = 1.0

    def value(self, accuracy: float) -> str:
        """Return a value of the metric.

        Args:
            accuracy: as files hold it, higher is better.
        """
        return score_words(self.sign * accuracy)

    def lost(self, drop: float) -> str:
        """Return a loss, such as "loses 0.0093", "loses nothing" or "adds 0.3100 perplexity".

        Args:
            drop: accuracy of the float model minus that of a point; below 0 for a gain.
        """
        verb = "loses" if self.sign > 0 else "adds"
        other = "gains" if self.sign > 0 else "saves"
        amount = score_words(abs(drop))
        if float(amount) == 0:
            return f"{verb} nothing"
        words = f"{verb if drop >= 0 else other} {amount}"
        return words if self.sign > 0 else f"{words} {self.name}"

    def most(self, drop: float, one: bool = False) -> str:
        """Return a limit of losses, such as "lose at most 0.01" or "add nothing".

        Args:
            drop: largest loss of accuracy.
            one: True for a verb of one point, "loses".
        """
        verb = ("lose" if self.sign > 0 else "add") + "s" * one
        unit = "" if self.sign > 0 else f" {self.name}"
        return f"{verb} at most {drop:.4g}{unit}" if drop > 0 else f"{verb} nothing"

    @property
    def axis(self) -> str:
        """Return the title of an axis of losses."""
        return f"{self.name} {'lost' if self.sign > 0 else 'added'}"

    def gap(self, gap: float) -> str:
        """Return a difference with the sign that it has between shown values.

        Args:
            gap: of accuracies, as files hold them.
        """
        return f"{self.sign * gap + 0.0:+.4f}"  # -0.0 + 0.0 is 0.0

    def label(self, column: str) -> str:
        """Return the title of a column of a table.

        Args:
            column: such as "accuracy (test)".
        """
        return column.replace("accuracy (", f"{self.name} (", 1)

    def sign_of(self, column: str) -> float:
        """Return the sign with which a column of metrics is shown.

        Args:
            column: "accuracy (SPLIT)" of the metric itself, or the name of an extra metric.
        """
        if column.startswith("accuracy (") or column.startswith("accuracy_"):
            return self.sign
        return -1.0 if self.name != "accuracy" and column in ERRORS else 1.0


def metric_words(run: Mapping[str, Any]) -> MetricWords:
    """Return how the metric of a run is shown.

    Args:
        run: content of run.json; tasks of model folders name their metric there.
    """
    name = run.get("metric")
    if name is None:
        return MetricWords()
    return MetricWords(str(name).replace("_", " "), -1.0 if name in ERRORS else 1.0)


def own_names(metrics: Collection[str], taken: Collection[str]) -> dict[str, str]:
    """Return the name of the column of each metric.

    Args:
        metrics: their names.
        taken: columns of other figures; a metric of such a name becomes "metric_NAME".
    """
    names: dict[str, str] = {}
    for metric in metrics:
        name = metric
        while name in taken or (name != metric and (name in metrics or name in names.values())):
            name = f"metric_{name}"
        names[metric] = name
    return names


def bytes_words(size: float) -> str:
    """Return a number of bytes, such as "307 KB" or "10.9 MB".

    Args:
        size: bytes.
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= 0.9995 * factor:
            return f"{_three(size / factor)} {unit}"
    return f"{size:.0f} B"


def ms_words(milliseconds: float) -> str:
    """Return a time, such as "0.564 ms" or "1.25 s".

    Args:
        milliseconds: of one run.
    """
    if milliseconds >= 999.5:
        return f"{_three(milliseconds / 1e3)} s"
    return f"{_three(milliseconds)} ms"


def _three(value: float) -> str:
    """Return a number in three digits, never in powers of ten."""
    if value >= 99.95:
        return f"{value:.0f}"
    return (
        f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3g}"
    )


def times_words(before: float, after: float, better: str, worse: str) -> str:
    """Return a ratio, such as "35x smaller" or "1.2x larger".

    Args:
        before: number of the float model.
        after: number of the point.
        better: adjective of a smaller number.
        worse: adjective of a larger number.
    """
    ratio = before / after if after > 0 else float("inf")
    larger = max(ratio, 1 / ratio) if ratio > 0 else float("inf")
    if larger < 1.005:
        return f"as {better.removesuffix('er')} as before" if better == "faster" else "same size"
    return f"{_three(larger)}x {better if ratio > 1 else worse}"


def done_words(candidate: Candidate, parameters: Mapping[str, int] | None = None) -> str:
    """Return what was done to a model, in one line.

    Args:
        candidate: configs of modules.
        parameters: number of each module; the mean of bits is weighted by them. None weights all
            modules equally.
    """
    configs = dict(candidate.modules)
    if not configs:
        return "untouched"
    weights = dict.fromkeys(configs, 1) if parameters is None else parameters
    total = sum(weights.get(name, 1) for name in {*weights, *configs})
    bits = 32.0 * (total - sum(weights.get(name, 1) for name in configs))
    bits += sum(weights.get(name, 1) * config.weight_bits for name, config in configs.items())
    counts: Counter[str] = Counter()
    for config in configs.values():
        counts["8-bit inputs"] += config.activation_bits == 8
        counts["pruning"] += config.pruning_ratio > 0
        counts["lower rank"] += config.rank_ratio < 1
        counts["zeros"] += config.sparsity > 0
    parts = [f"{bits / max(total, 1):.2g}-bit weights on average"]
    for what, count in counts.items():
        if count:
            parts.append(f"{what} in {count} module{'s' * (count > 1)}")
    steps = candidate.distillation.steps
    return ", ".join([*parts, *([f"{steps} steps of training"] if steps else [])])
