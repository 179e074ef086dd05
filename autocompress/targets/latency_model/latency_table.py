"""The latency table of a target: whole models that were measured there, as a file, and the predictions that follow from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.errors import TargetError
from autocompress.model.modules import CompressibleModule
from autocompress.results.files import write_atomic
from autocompress.targets.device.sessions import SessionSettings
from autocompress.targets.latency_model.fit import REST, LatencyModel, Run
from autocompress.targets.latency_model.plausible import missing_time
from autocompress.targets.latency_model.table_rows import COLUMNS, runs_of
from autocompress.targets.workload import Kernel, Layout, Work, workload

FORMAT = 7
FEWEST = 3  # candidates that a check needs
WRONG = (
    0.15  # mean error on candidates that were not fitted, above which a model is not taken as it is
)


@dataclass(frozen=True)
class LatencyTable:
    """Models that were measured on one target.

    Attributes:
        versions: runtime and machine; `settings`: the session settings that were tuned there, `tuning` what was tried.
        inputs: shapes that the models were fed with.
        baseline_ms: the float model, undisturbed; the times of all runs are ratios to it times this.
        multiples: the widths that its kernels like, by kind of module.
        integer_forms: the form of the integer weights of each module in the models that were measured.
        warning: what was noticed while measuring, e.g. a busy machine.
        left_out: how many of the planned models there was no time to measure.
        product_rate: multiply-adds per microsecond of a large float product there; 0 where it is not known.
    """

    target: str
    versions: Mapping[str, str]
    settings: SessionSettings
    inputs: Mapping[str, list[int]]
    baseline_ms: float
    runs: tuple[Run, ...]
    multiples: Mapping[str, int] = field(default_factory=dict)
    integer_forms: Mapping[str, str] = field(default_factory=dict)
    tuning: tuple[Mapping[str, Any], ...] = ()
    warning: str = ""
    left_out: int = 0
    product_rate: float = 0.0

    @cached_property
    def doubt(self) -> str:
        """Why the operators' times are not used, in words; "" where they are."""
        missing = missing_time(self.runs, self.product_rate)
        if missing:
            return missing
        if not self._kept:
            return ""
        error, otherwise = (
            self._errors(LatencyModel.of(self.runs, attributed))["mape"]
            for attributed in (True, False)
        )
        if error <= max(WRONG, otherwise):
            return ""
        return f"with them, candidates that the model has not seen were predicted {error:.0%} wrong"

    @cached_property
    def model(self) -> LatencyModel:
        """Fitted to all runs but those that are kept for checking: to the operators' times, or where these are wrong to whole models."""
        return LatencyModel.of(self.runs, attributed=not self.doubt)

    @cached_property
    def check(self) -> dict[str, Any]:
        """The errors on candidates that were never used in a fit; {} where a space is so small that hardly any are left."""
        return self._errors(self.model) if self._kept else {}

    @property
    def note(self) -> str:
        """What a user must know of the model's quality, in one line; "" where it is as it should be."""
        error = self.check.get("mape", 0.0)
        rough = f"predictions are rough (mean error {error:.0%})" if error > WRONG else ""
        if not self.doubt:
            return rough
        fitted = sum(run.role != "checked" for run in self.runs)
        return (
            f"operators' times are not used: {self.doubt}; {fitted} whole models are regressed instead"
            + f"; {rough}" * bool(rough)
        )

    @property
    def _kept(self) -> list[Run]:
        """The candidates that no fit sees; none where there are too few to show anything."""
        kept = [run for run in self.runs if run.role == "checked"]
        return kept if len(kept) >= FEWEST else []

    def _errors(self, model: LatencyModel) -> dict[str, Any]:
        predicted = [model.predict_us(run.work) / 1e3 for run in self._kept]
        return prediction_errors(predicted, [run.milliseconds for run in self._kept])

    def predict_ms(self, layout: Layout, candidate: Candidate) -> float:
        """Predicted latency; TargetError when a module runs in a form that was never measured."""
        return self.predict(workload(layout, candidate))

    def predict(self, work: Work) -> float:
        """Predicted milliseconds of what a candidate does."""
        try:
            return self.model.predict_us(work) / 1e3
        except KeyError:
            self._check_covered(work.kernels)  # says which module it was
            raise

    def module_us(
        self,
        layout: Layout,
        module: CompressibleModule,
        config: ModuleConfig,
        kept_out: int,
        kept_in: int,
    ) -> float:
        """Predicted time of one module and of what it alone decides around it."""
        kernel = layout.kernel(module, config, kept_out, kept_in)
        self._check_covered({module.name: kernel})
        return self.model.kernel_us(kernel) + self.model.around_us(layout.around(module, kernel))

    def kernel_us(self, layout: Layout, module: CompressibleModule, config: ModuleConfig) -> float:
        """Predicted time of one module, whole, without what surrounds it."""
        kernel = layout.kernel(module, config, *(*module.weight_shape, 1)[:2])
        self._check_covered({module.name: kernel})
        return self.model.kernel_us(kernel)

    def interpolated_share(self, work: Work) -> float:
        """The share of the predicted time that lies in kernels of widths or rows between measured ones."""
        unseen = sum(
            self.model.kernel_us(kernel)
            for kernel in work.kernels.values()
            if not self.model.measured(kernel)
        )
        return unseen / max(self.model.predict_us(work), 1e-9)

    def _check_covered(self, kernels: Mapping[str, Kernel]) -> None:
        for module, kernel in kernels.items():
            try:
                self.model.kernel_us(kernel)
            except KeyError:
                known = sorted(
                    {
                        form
                        for signature, _, form, *_ in self.model.grid
                        if signature == kernel.signature
                    }
                )
                has = f"it has {', '.join(known)}" if known else "it knows no module like it"
                raise TargetError(
                    f"latency table of {self.target}: has no time of module {module} in form {kernel.form}; {has}"
                ) from None

    def covers(self, layout: Layout, candidates: Iterable[Candidate]) -> None:
        """Raise TargetError unless every module of the candidates runs in a form that was measured."""
        for candidate in candidates:
            self._check_covered(workload(layout, candidate).kernels)

    def with_front(self, works: Sequence[Work], milliseconds: Sequence[float]) -> LatencyTable:
        """The same table, its model fitted to verified points too."""
        found = tuple(
            Run("front", work, ms, (ms, ms)) for work, ms in zip(works, milliseconds, strict=True)
        )
        return replace(self, runs=(*(run for run in self.runs if run.role != "front"), *found))

    def merged(self, other: LatencyTable) -> LatencyTable:
        """Both tables' runs, held to this one's speed; TargetError when they are of other targets, runtimes, machines or settings."""
        for what in ("target", "versions", "settings"):
            mine, others = getattr(self, what), getattr(other, what)
            if mine != others:
                raise TargetError(
                    f"latency tables differ in {what} ({_words(mine)} against {_words(others)}); measure both on one machine"
                )
        factor = self.baseline_ms / other.baseline_ms if self.inputs == other.inputs else 1.0
        runs = [
            replace(
                r,
                milliseconds=r.milliseconds * factor,
                interval=(r.interval[0] * factor, r.interval[1] * factor),
            )
            for r in other.runs
        ]
        return replace(self, runs=(*self.runs, *runs))

    def save(self, path: Path) -> None:
        """Write the table as JSON: a head, and rows whose columns it names. RunFolderError when it cannot be written."""
        write_atomic(path, self.to_json())

    def to_json(self) -> str:
        """Return the content of the table's file."""
        rows: dict[str, list[list[Any]]] = {name: [] for name in COLUMNS}
        for number, run in enumerate(self.runs):
            rows["runs"].append([number, run.role, run.milliseconds, *run.interval])
            for module, kernel in run.work.kernels.items():
                rows["kernels"].append(
                    [number, module, *kernel, *run.spent.get(module, (None, None))]
                )
            rows["surroundings"] += [
                [number, feature, amount] for feature, amount in run.work.surroundings.items()
            ]
            if run.spent:
                rows["rest"].append([number, None, *run.spent.get(REST, (0.0, 0))])
            rows["rest"] += [
                [number, operator, microseconds, None]
                for operator, microseconds in run.operators.items()
            ]
        head = {
            "format": FORMAT,
            **{key: value for key, value in asdict(self).items() if key != "runs"},
            "check": self.check,
            "note": self.note,
            "columns": COLUMNS,
        }
        lines = ",\n".join(
            f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, found)) + "]"
            for name, found in rows.items()
        )
        return json.dumps(head, indent=1)[:-2] + ",\n" + lines + "}\n"

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a table; TargetError when it is damaged or of another format."""
        try:
            data = json.loads(path.read_text())
            if data.pop("format") != FORMAT:
                raise ValueError("another format")
            tables = {
                name: [dict(zip(data["columns"][name], row, strict=True)) for row in data.pop(name)]
                for name in COLUMNS
            }
            (
                data.pop("columns"),
                data.pop("check"),
                data.pop("note"),
            )  # the latter two follow from the runs
            data["settings"] = SessionSettings.from_json(data["settings"])
            data["tuning"] = tuple(data["tuning"])
            table = cls(runs=runs_of(tables), **data)
            if not any(run.spent for run in table.runs):
                raise ValueError("no profiled model")
            return table
        except FileNotFoundError:
            raise TargetError(
                f"{path}: no such file; measure a table with: autocompress profile TASK --out {path.name}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TargetError(
                f"{path}: not a latency table ({type(error).__name__}: {error}); measure it again"
            ) from error


def _words(value: Any) -> str:
    return (
        ", ".join(f"{k} {v}" for k, v in value.items())
        if isinstance(value, Mapping)
        else str(value)
    )


def prediction_errors(
    predicted_ms: Sequence[float], measured_ms: Sequence[float]
) -> dict[str, Any]:
    """Mean and 95th percentile of the absolute percentage error, bias, Kendall's tau, and the pairs themselves."""
    predicted, measured = np.array(predicted_ms), np.array(measured_ms)
    relative = predicted / measured - 1
    return {
        "candidates": len(measured),
        "mape": float(np.abs(relative).mean()),
        "p95": float(np.quantile(np.abs(relative), 0.95)),
        "bias": float(relative.mean()),
        "kendall_tau": float(kendalltau(predicted, measured).statistic),
        "predicted_ms": [round(float(x), 5) for x in predicted],
        "measured_ms": [round(float(x), 5) for x in measured],
    }
