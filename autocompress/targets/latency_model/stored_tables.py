"""Find the latency table of a model: in a file, in the cache, or by measuring it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.cache import Cache, cache_folder, key_of
from autocompress.errors import TargetError
from autocompress.integer_form import IntegerForm
from autocompress.targets.device.job import Report
from autocompress.targets.device.litert.nodes import profile_digest
from autocompress.targets.device.result import JobResult, read_result, versions
from autocompress.targets.kernel_arithmetic import products_saturate
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import Plan, Subject, all_forms, uniform_candidate
from autocompress.targets.latency_model.profile import measure_table, rules_of, table_of
from autocompress.targets.target import Target


def table_key(subject: Subject, target: Target) -> str:
    """Return the key of a table in the cache.

    It is a hash of machine, runtime, target, model structure and the choices of the space. Weights
    do not affect latency.

    Args:
        subject: model and space.
        target: its settings and name count.
    """
    layout = subject.layout
    content: list[Any] = [
        sorted(versions(target.settings).items()),
        repr(target),
        sorted(layout.multiples.items()),
        layout.digest,
        target.integer_ends,
        target.integers_only,
        *rules_of(target),
    ]
    for module in layout.module_map:
        options = subject.choices[module.name]
        content.append(sorted(layout.form(module, option) for option in options))
    content += [
        sorted(subject.ratios.items()),
        [(name, array.shape) for name, array in subject.feed.items()],
    ]
    return key_of(repr(content))


def known_table(subject: Subject, target: Target, file: Path | None = None) -> LatencyTable | None:
    """Return the latency table of a model without measuring anything.

    Args:
        subject: model and space.
        target: runtime and machine of the models.
        file: file of a table; None to look in the cache.

    Returns:
        The table; None if the cache has none.

    Raises:
        TargetError: if the file does not fit.
    """
    if file is not None:
        return _serving(subject, target, file)
    name = f"{table_key(subject, target)}.json"
    return Cache(cache_folder() / "latency").read(name, LatencyTable.load)


def cached_table(
    subject: Subject,
    target: Target,
    file: Path | None = None,
    report: Report = lambda what, share: None,
    limit_s: float | None = None,
) -> LatencyTable:
    """Return the latency table of a model, measured if it is not known.

    Args:
        subject: model and space.
        target: runtime and machine of the models.
        file: file of a table; None to look in the cache, and to measure and cache it otherwise.
        report: called with (current step, done share of it).
        limit_s: limit in seconds for measuring. An incomplete table is not cached, nor one that was
            measured on a busy machine, or whose profiles are in doubt.

    Raises:
        TargetError: if the file does not fit.
    """
    known = known_table(subject, target, file)
    if known is not None:
        return known
    table = measure_table(subject, target, report=report, limit_s=limit_s)
    if not (table.left_out or table.warning or table.doubt):
        cache = Cache(cache_folder() / "latency")
        cache.write(f"{table_key(subject, target)}.json", table.to_json())
    return table


def unmeasured(subject: Subject, target: Target) -> LatencyTable:
    """Return a table without runs, which stands for the default settings of a target.

    Args:
        subject: model and space.
        target: runtime and machine.
    """
    layout, settings = subject.layout, target.settings
    return LatencyTable(
        target.name,
        versions(settings),
        settings,
        subject.inputs,
        0.0,
        (),
        dict(layout.multiples),
        layout.integer_forms,
        structure=layout.digest,
        rules=rules_of(target),
    )


def run_table(subject: Subject, target: Target, path: Path) -> LatencyTable | None:
    """Return the table of a run folder, or None without a fitting one.

    Args:
        subject: model and space.
        target: runtime and machine of the models.
        path: file in the run folder.
    """
    try:
        return _serving(subject, target, path) if path.is_file() else None
    except TargetError:
        return None


def _serving(subject: Subject, target: Target, path: Path) -> LatencyTable:
    table = load_table(subject, target, path)
    table.covers(subject.layout, [uniform_candidate(subject, form) for form in all_forms(subject)])
    return table


def load_table(subject: Subject, target: Target, path: Path) -> LatencyTable:
    """Return a table from `profile`, or from probes' measurements on a device.

    Args:
        subject: model and space.
        target: must be that of the table.
        path: file of either kind.

    Raises:
        TargetError: if the file is damaged, or of another target, model or version.
    """
    probes = _probes(path)
    if probes is None:
        table = LatencyTable.load(path)
        _check_target(path, table.target, target)
    else:
        _check_target(path, probes.plan["target"], target)
        if probes.plan["model"] != subject.layout.digest:
            raise TargetError(
                f"{path}: was measured with the probes of another model, or of another version of "
                "autocompress; export probes of this one"
            )
        if target.litert:
            _check_files(path, subject, probes)
        table = table_of(subject, target, Plan.from_json(probes.plan), probes)
    other = target.serves(table.settings)
    if other:
        raise TargetError(
            f"{path}: table of target {target.name} with {other}; measure it again with: "
            "autocompress profile TASK --target T --out FILE"
        )
    if table.rules != rules_of(target):
        raise TargetError(
            f"{path}: was measured by another version of autocompress, whose files have other "
            "operators; measure it again with: autocompress profile TASK --target T --out FILE"
        )
    # Versions of other runtimes do not matter.
    own = ("machine", "processor", target.settings.runtime)
    here = {name: version for name, version in versions(target.settings).items() if name in own}
    there = table.versions
    differing = [name for name, version in here.items() if there.get(name) != version]
    if not is_foreign(table) and differing:
        changed = ", ".join(f"{name} {there.get(name)} (here {here[name]})" for name in differing)
        raise TargetError(
            f"{path}: was measured with {changed}; measure it again with: autocompress profile "
            f"TASK --out FILE"
        )
    return table


def _check_target(path: Path, name: str, target: Target) -> None:
    """Refuse a file of another target."""
    if name != target.name:
        raise TargetError(f"{path}: table of target {name}, not of {target.name}")


def _check_files(path: Path, subject: Subject, probes: JobResult) -> None:
    """Refuse profiles of .tflite files that are not those which would be written here.

    Profiles name tensors by their numbers in the files.
    """
    plan = Plan.from_json(probes.plan)
    candidates = plan.profiled[: len(probes.profiles)]
    digests = [profile_digest(subject.noise_file(candidate)[0]) for candidate in candidates]
    if probes.plan.get("files", [])[: len(digests)] != digests:
        raise TargetError(
            f"{path}: was measured with files that another version of autocompress wrote; export "
            "probes again"
        )


def table_digest(path: Path | None) -> str:
    """Return a hash of the file of a latency table.

    Args:
        path: the file; None for none.

    Returns:
        Hexadecimal digits; "" for none.

    Raises:
        TargetError: the file cannot be read.
    """
    if path is None:
        return ""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise TargetError(f"{path}: cannot be read ({error.strerror or error})") from error


def table_multiples(path: Path) -> Mapping[str, int]:
    """Return the multiples of channels in the models of a table.

    Args:
        path: file of a table, or of probes' measurements.
    """
    probes = _probes(path)
    return LatencyTable.load(path).multiples if probes is None else probes.plan["multiples"]


def table_forms(path: Path, target: Target) -> dict[str, IntegerForm]:
    """Return the integer forms in the models of a table.

    Args:
        path: file of a table, or of probes' measurements.
        target: must be that of the table, and allow the forms.

    Raises:
        TargetError: if the table is of another target, the target does not allow the forms, or this
            machine cannot run such files.
    """
    probes = _probes(path)
    if probes is None:
        table = LatencyTable.load(path)
        name, forms = table.target, table.integer_forms
    else:
        name, forms = probes.plan["target"], probes.plan["integer_forms"]
    _check_target(path, name, target)
    signed = any(not IntegerForm(form).portable for form in forms.values())
    if signed and target.portable and not target.litert:
        raise TargetError(
            f"{path}: was measured with --no-portable; give --no-portable too, or measure it again"
        )
    if signed and products_saturate(target.settings):
        raise TargetError(
            f"{path}: was measured with exact 8-bit products, which this processor does not "
            f"compute; measure with --portable"
        )
    return {name: IntegerForm(form) for name, form in forms.items()}


def _probes(path: Path) -> JobResult | None:
    """Return the measurements of probes, or None if the file is of another kind."""
    try:
        probes = read_result(path)
        return (
            probes
            if {"model", "target", "multiples", "integer_forms", "profiled", "checked"}
            <= set(probes.plan)
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_foreign(table: LatencyTable) -> bool:
    """Return True if a table was measured on another machine.

    Args:
        table: its processor is compared with this one.
    """
    return table.versions.get("processor") != versions()["processor"]
