"""Hold the latency table of a target: measured whole models, and predictions from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.errors import TargetError
from autocompress.model.modules import CompressibleModule
from autocompress.results.files import write_atomic
from autocompress.targets.device.sessions import SessionSettings
from autocompress.targets.latency_model.fitting.fit import LatencyModel
from autocompress.targets.latency_model.fitting.uncertainty import deviation_us
from autocompress.targets.latency_model.quality import (
    WRONG,
    attribution_doubt,
    held_out,
    held_out_errors,
)
from autocompress.targets.latency_model.run import Known, Place, Run
from autocompress.targets.latency_model.table_rows import COLUMNS, known_of, rows_of, runs_of
from autocompress.targets.workload import Kernel, Layout, Work, workload

FORMAT = 8


@dataclass(frozen=True)
class LatencyTable:
    """Hold the measured models of one target.

    Attributes:
        target: its name.
        versions: of runtime and machine.
        settings: session settings tuned there.
        inputs: shapes of the feed.
        baseline_ms: undisturbed latency of the float model; all runs are ratios to it times this.
        runs: measured models; () before anything is measured, when nothing can be predicted.
        multiples: multiple of channels that kernels run fastest on, by kind of module.
        integer_forms: form of the integer weights of each module in the measured models.
        tuning: rows of the tried settings.
        warning: for the user if the machine was busy, else "".
        left_out: number of planned models without a measurement for lack of time.
        product_rate: multiply-adds per microsecond of a large float product there; 0 if not known.
        known: times of its kernels that other models were measured with on the same machine.
        estimated: (signature, form) of the kernels that the space offers and that have no time.
            They are predicted by the roofline of their class.
        model_s: seconds that measuring one model took; 0 if not known.
        structure: `Layout.digest` of the measured model; "" in files of earlier versions.
        rules: versions of the code that its latencies depend on; () for targets without any, and in
            files of earlier versions.
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
    known: Mapping[Place, Known] = field(default_factory=dict)
    estimated: tuple[tuple[str, str], ...] = ()
    model_s: float = 0.0
    structure: str = ""
    rules: tuple[int, ...] = ()

    @cached_property
    def doubt(self) -> str:
        """Return why the operators' times are not used, in words; "" if they are."""
        return attribution_doubt(self.runs, self.product_rate, self.known, self.estimated)

    @cached_property
    def model(self) -> LatencyModel:
        """Return a model fitted to all runs but the held-out ones.

        It is fitted to the operators' times, or to whole models if these are in doubt.
        """
        estimated = self.estimated
        if self.doubt:  # whole models tell nothing of kernels that others were measured with
            estimated = (*estimated, *((place[0], place[2]) for place in self.known))
        return LatencyModel.of(self.runs, not self.doubt, self.known, estimated)

    @cached_property
    def check(self) -> dict[str, Any]:
        """Return the prediction errors on held-out candidates; {} if they are too few.

        Returns:
            As `prediction_errors`, whose "candidates" the errors rest on, and the number of
            "models" that the model was fitted to.
        """
        runs = held_out(self.runs)
        if not runs:
            return {}
        fitted = sum(run.role != "checked" for run in self.runs)
        return {**held_out_errors(self.model, runs), "models": fitted}

    @property
    def note(self) -> str:
        """Return a line on the model's quality for the user; "" if it is good."""
        error = self.check.get("mape", 0.0)
        rough = f"predictions are rough (mean error {error:.0%})" if error > WRONG else ""
        if not self.doubt:
            return rough
        fitted = sum(run.role != "checked" for run in self.runs)
        return (
            f"operators' times are not used: {self.doubt}; {fitted} whole models are regressed "
            f"instead" + f"; {rough}" * bool(rough)
        )

    def is_of(self, layout: Layout) -> bool:
        """Return True if the measured model has this structure.

        Files of earlier versions do not say it: their untouched model must have the same kernels.

        Args:
            layout: structure of a model.
        """
        if self.structure:
            return self.structure == layout.digest
        kernels = workload(layout, Candidate()).kernels
        return any(run.spent and run.work.kernels == kernels for run in self.runs)

    def _is_of_the_model_of(self, other: LatencyTable) -> bool:
        """Return True if both were measured of one structure, as far as the tables say it."""
        if self.structure and other.structure:
            return self.structure == other.structure
        kernels = [
            next((run.work.kernels for run in table.runs if run.spent), None)
            for table in (self, other)
        ]
        return kernels[0] is not None and kernels[0] == kernels[1]

    def float_ms(self, layout: Layout, inputs: Mapping[str, list[int]]) -> float:
        """Return the latency of a float model: that of the baseline, or as predicted.

        Args:
            layout: structure of the model, which may be another one than the measured one.
            inputs: shapes of its feed.

        Returns:
            Milliseconds at the speed of the table's baseline.

        Raises:
            TargetError: if a module of another model has no time.
        """
        is_own = self.inputs == inputs and self.is_of(layout)
        return self.baseline_ms if is_own else self.predict_ms(layout, Candidate())

    def predict_ms(self, layout: Layout, candidate: Candidate) -> float:
        """Return the predicted latency of a candidate.

        Args:
            layout: structure of the model.
            candidate: config of each module.

        Returns:
            Milliseconds at the speed of the table's baseline.

        Raises:
            TargetError: if a module runs in an unmeasured form.
        """
        return self.predict(workload(layout, candidate))

    def predict(self, work: Work) -> float:
        """Return the predicted milliseconds of the work of a candidate.

        Args:
            work: from `workload`.

        Raises:
            TargetError: if a module runs in an unmeasured form.
        """
        try:
            return self.model.predict_us(work) / 1e3
        except KeyError:
            self._check_covered(work.kernels)  # names the module
            raise

    def deviation_ms(self, work: Work) -> float:
        """Return the standard deviation of a prediction in milliseconds.

        It is larger for kernels that were measured in few models, that lie between measured widths,
        or that are estimated.

        Args:
            work: from `workload`.

        Raises:
            TargetError: if a module runs in an unmeasured form.
        """
        self._check_covered(work.kernels)
        return deviation_us(self.model, work) / 1e3

    def module_us(
        self,
        layout: Layout,
        module: CompressibleModule,
        config: ModuleConfig,
        kept_out: int,
        kept_in: int,
    ) -> float:
        """Return the predicted time of one module among modules that compute as it does.

        Sums of it leave out what every candidate costs, and what mixtures of integers and floats
        cost more (`search/propose/tables/between.py`).

        Args:
            layout: structure of the model.
            module: a compressible module.
            config: its config.
            kept_out: output channels after pruning.
            kept_in: input channels after pruning.

        Returns:
            Microseconds.

        Raises:
            TargetError: if the form was never measured.
        """
        kernel = self._covered(layout, module, config, kept_out, kept_in)
        around = layout.around_alike(module, kernel)
        return self.model.kernel_us(kernel) + self.model.around_us(around)

    def alone_us(
        self,
        layout: Layout,
        module: CompressibleModule,
        config: ModuleConfig,
        kept_out: int,
        kept_in: int,
    ) -> float:
        """Return the same without what lies between the module and its neighbours.

        Args:
            layout: as for `module_us`.
            module: as for `module_us`.
            config: as for `module_us`.
            kept_out: as for `module_us`.
            kept_in: as for `module_us`.
        """
        kernel = self._covered(layout, module, config, kept_out, kept_in)
        return self.model.kernel_us(kernel) + self.model.around_us(layout.around(module, kernel))

    def around_us(self, surroundings: Mapping[str, float]) -> float:
        """Return the predicted microseconds of operators around the modules.

        Args:
            surroundings: amount by feature, as in `Work`.
        """
        return self.model.around_us(surroundings)

    def saved_us(self, layout: Layout, names: Sequence[str], config: ModuleConfig) -> float:
        """Return what one kernel for several unpruned modules saves against one for each.

        Args:
            layout: structure of the model.
            names: of modules that are joined where they are packed.
            config: of all of them.

        Returns:
            Predicted microseconds; 0 where each module has a kernel of its own.

        Raises:
            TargetError: if a form was never measured.
        """
        modules = [layout.module_map[name] for name in names]
        kernels = [layout.kernel(one, config, *one.weight_shape[:2]) for one in modules]
        whole = layout.joined_kernel(kernels)
        if whole is None:
            return 0.0
        self._check_covered({names[0]: whole})
        whole_us = self.model.kernel_us(whole)
        whole_us += self.model.around_us(layout.around(modules[0], whole))
        apart = (self.module_us(layout, one, config, *one.weight_shape[:2]) for one in modules)
        return sum(apart) - whole_us

    def kernel_us(self, layout: Layout, module: CompressibleModule, config: ModuleConfig) -> float:
        """Return the predicted microseconds of one unpruned module, without its surroundings.

        Args:
            layout: structure of the model.
            module: a compressible module.
            config: its config.

        Raises:
            TargetError: if the form was never measured.
        """
        kept_out, kept_in = (*module.weight_shape, 1)[:2]
        return self.model.kernel_us(self._covered(layout, module, config, kept_out, kept_in))

    def _covered(
        self,
        layout: Layout,
        module: CompressibleModule,
        config: ModuleConfig,
        kept_out: int,
        kept_in: int,
    ) -> Kernel:
        """Return the kernel of a module, whose form was measured."""
        kernel = layout.kernel(module, config, kept_out, kept_in)
        self._check_covered({module.name: kernel})
        return kernel

    def _check_covered(self, kernels: Mapping[str, Kernel]) -> None:
        for module, kernel in kernels.items():
            try:
                self.model.kernel_us(kernel)
            except KeyError:
                places = [place for place in self.model.grid if place[0] == kernel.signature]
                known = sorted({form for _, _, form, *_ in places})
                has = f"it has {', '.join(known)}" if known else "it knows no module like it"
                raise TargetError(
                    f"latency table of {self.target}: has no time of module {module} in form "
                    f"{kernel.form}; {has}"
                ) from None

    def covers(self, layout: Layout, candidates: Iterable[Candidate]) -> None:
        """Check for unmeasured forms of the modules of candidates.

        Args:
            layout: structure of the model.
            candidates: configs to check.

        Raises:
            TargetError: names the module, its form and the measured forms.
        """
        for candidate in candidates:
            self._check_covered(workload(layout, candidate).kernels)

    def with_front(self, works: Sequence[Work], milliseconds: Sequence[float]) -> LatencyTable:
        """Return the table with verified points among its runs, which its model is fitted to.

        Args:
            works: work of each point.
            milliseconds: measured latency of each point.
        """
        runs = [run for run in self.runs if run.role != "front"]
        for work, ms in zip(works, milliseconds, strict=True):
            runs.append(Run("front", work, ms, (ms, ms)))
        return replace(self, runs=tuple(runs))

    def merged(self, other: LatencyTable) -> LatencyTable:
        """Return a table with the runs of both, at the speed of this one.

        The speed of the machine is compared where both are of one model.

        Args:
            other: measured on the same target, runtime and machine, with the same settings.

        Raises:
            TargetError: if the tables differ in one of these.
        """
        for what in ("target", "versions", "settings", "rules"):
            mine, others = getattr(self, what), getattr(other, what)
            if mine != others:
                raise TargetError(
                    f"latency tables differ in {what} ({_words(mine)} against {_words(others)}); "
                    f"measure both on one machine"
                )
        is_same = self.inputs == other.inputs and self._is_of_the_model_of(other)
        factor = self.baseline_ms / other.baseline_ms if is_same else 1.0
        runs = list(self.runs)
        for run in other.runs:
            low, high = run.interval
            ms = run.milliseconds * factor
            runs.append(replace(run, milliseconds=ms, interval=(low * factor, high * factor)))
        return replace(
            self,
            runs=tuple(runs),
            known={**other.known, **self.known},
            estimated=tuple(dict.fromkeys((*self.estimated, *other.estimated))),
        )

    def save(self, path: Path) -> None:
        """Write the table as JSON.

        Args:
            path: file to write.

        Raises:
            RunFolderError: if it cannot be written.
        """
        write_atomic(path, self.to_json())

    def to_json(self) -> str:
        """Return the content of the table's file: a head, and rows with named columns."""
        head = {
            "format": FORMAT,
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name not in COLUMNS},
            "settings": asdict(self.settings),
            "check": self.check,
            "note": self.note,
            "columns": COLUMNS,
        }
        lines = []
        for name, rows in rows_of(self.runs, self.known).items():
            lines.append(f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "]")
        return json.dumps(head, indent=1)[:-2] + ",\n" + ",\n".join(lines) + "}\n"

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a table.

        Args:
            path: file from `save`.

        Raises:
            TargetError: if the file is missing, damaged or of another format.
        """
        try:
            data = json.loads(path.read_text())
            if data.pop("format") != FORMAT:
                raise ValueError("another format")
            tables = {}
            for name in COLUMNS:
                columns = data["columns"][name]
                tables[name] = [dict(zip(columns, row, strict=True)) for row in data.pop(name)]
            for derived in ("columns", "check", "note"):
                data.pop(derived)
            data["settings"] = SessionSettings.from_json(data["settings"])
            data["tuning"] = tuple(data["tuning"])
            data["rules"] = tuple(data.get("rules", ()))
            data["estimated"] = tuple((signature, form) for signature, form in data["estimated"])
            table = cls(runs=runs_of(tables), known=known_of(tables["known"]), **data)
            if not any(run.spent for run in table.runs):
                raise ValueError("no profiled model")
            return table
        except FileNotFoundError:
            raise TargetError(
                f"{path}: no such file; measure a table with: autocompress profile TASK --out "
                f"{path.name}"
            ) from None
        except OSError as error:  # the file may be good
            reason = error.strerror or error
            raise TargetError(f"{path}: cannot be read ({reason})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TargetError(
                f"{path}: not a latency table ({type(error).__name__}: {error}); measure it again"
            ) from error


def _words(value: Any) -> str:
    return (
        ", ".join(f"{k} {v}" for k, v in value.items())
        if isinstance(value, Mapping)
        else str(value)
    )
