"""Hold the numbers of one model: size, latency, accuracy and further metrics.

The float model and every point of a front have one `Measurement`, which front.json stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# By `Measurement.latency_source`: how the latency of a front came about, for reports.
LATENCY_WORDS = {
    "measured": (
        "Latency is the ratio to the float file, run in turn with it, times the float file's "
        "latency at the start of the search."
    ),
    "analytic": (
        "Latency is computed from the operators of the file and the published figures of the "
        "device; nothing was run there."
    ),
    "table": (
        "Latency is predicted from a table that was measured on another machine; the file was not "
        "run there."
    ),
}


@dataclass(frozen=True)
class Measurement:
    """Hold the numbers of one model.

    Attributes:
        size_bytes: of the file.
        latency_ms: of one run on the task's example inputs.
        accuracy: the task's metric on the validation split, higher is better.
        test_accuracy: the same on the test split; None without one.
        metrics: further metrics by name.
        verified: True if the numbers were measured from the file; else the search predicted them.
        memory_bytes: of the weights in a session, which may hold packed weights unpacked; of a
            .tflite file with the activations.
        latency_source: "measured" (in the target's runtime on this machine), "analytic" (computed
            from the file for an analytic target) or "table" (predicted for the machine on which the
            latency table was measured).
        left_out: for each figure that could not be computed, such as "accuracy (test)", the reason.
        test_share: part of the batches of the test split that `test_accuracy` is of.
        activation_bytes: largest sum of the activations that are alive at once, estimated from the
            file; None if it was not.
    """

    size_bytes: int
    latency_ms: float
    accuracy: float
    test_accuracy: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    verified: bool = False
    memory_bytes: int | None = None
    latency_source: str = "measured"
    left_out: Mapping[str, str] = field(default_factory=dict)
    test_share: float = 1.0
    activation_bytes: int | None = None

    @property
    def accuracy_scale(self) -> float:
        """Return what losses of accuracy are shares of.

        It is 1 for a metric between -1 and 1, such as a share of right answers or an error rate.
        Larger ones, such as a negative perplexity, lose a share of their own value.
        """
        return max(1.0, abs(self.accuracy))

    def to_json(self) -> dict[str, Any]:
        """Return the numbers in plain types."""
        return {
            "size_bytes": self.size_bytes,
            "latency_ms": self.latency_ms,
            "accuracy": self.accuracy,
            "test_accuracy": self.test_accuracy,
            "metrics": dict(self.metrics),
            "verified": self.verified,
            "memory_bytes": self.memory_bytes,
            "activation_bytes": self.activation_bytes,
            "latency_source": self.latency_source,
            "left_out": dict(self.left_out),
            "test_share": self.test_share,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Return the measurement that `to_json` wrote.

        Args:
            data: optional fields may be missing and take their defaults.

        Returns:
            The measurement.
        """
        return cls(
            int(data["size_bytes"]),
            float(data["latency_ms"]),
            float(data["accuracy"]),
            data.get("test_accuracy"),
            data.get("metrics", {}),
            bool(data.get("verified", False)),
            data.get("memory_bytes"),
            data.get("latency_source", "measured"),
            data.get("left_out", {}),
            float(data.get("test_share", 1.0)),
            data.get("activation_bytes"),
        )


def score_words(value: float) -> str:
    """Return a score in four decimals; one that they would round to nothing, in four digits.

    Args:
        value: of any metric, such as a negated error of 1e-7.
    """
    return f"{value:.4g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def left_out_words(measurements: Sequence[Measurement]) -> list[str]:
    """Return one line for each reason why figures are missing or of a part of the test split.

    Args:
        measurements: of the float model and the points.

    Returns:
        Lines such as "left out: accuracy (test): REASON".
    """
    figures: dict[str, list[str]] = {}
    for measured in measurements:
        for figure, reason in measured.left_out.items():
            figures.setdefault(reason, []).append(figure)
    lines = []
    for reason, names in figures.items():
        lines.append(f"left out: {', '.join(dict.fromkeys(names))}: {reason}")
    shares = {m.test_share for m in measurements if m.test_accuracy is not None}
    if shares and min(shares) < 1:
        shown = " and ".join(f"{share:.0%}" for share in sorted(shares))
        lines.append(f"accuracy (test) is of {shown} of the test split, as the time allowed")
    return lines
