"""Describe a target: what a runtime on a machine can store and execute, read from a YAML file."""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from autocompress.errors import TargetError, nearest_name, nearest_number
from autocompress.targets.device.sessions import (
    LITERT,
    ProviderError,
    SessionSettings,
    open_session,
)
from autocompress.targets.device.tuning import thread_counts
from autocompress.targets.figures import Figures, check_keys, parse_figures
from autocompress.targets.kernel_models import product_model
from autocompress.targets.phases import parse_phase

FILES = Path(__file__).parent / "builtin"
ANALYTIC = "analytic"
RUNTIMES = ("onnxruntime", "openvino", "litert", ANALYTIC)
# Provider by runtime.
PROCESSOR = {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU", "litert": LITERT.provider}
KEYS = ("runtime", "provider", "threads", "portable", "stores", "executes", "device", "phase")
STORED_BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
ACTIVATION_BITS = (8, 16, 32)
INTEGER_KINDS = ("linear", "conv")
FLAT_BITS = (4, 8, 16, 32)  # of .tflite files
KINDS = ("linear", "conv", "embedding", "recurrent")


@dataclass(frozen=True)
class Target:
    """Describe a runtime on a machine.

    Attributes:
        name: a built-in name, or the path of its file.
        runtime: "onnxruntime", "openvino", "litert" or "analytic".
        provider: execution provider of ONNX Runtime, device of OpenVINO, or kernels of LiteRT.
        threads: numbers of threads inside one operator to choose from; the first is the default.
        weight_bits: widths of weights in its files.
        activation_bits: widths it can compute with.
        integer_kinds: module kinds with kernels for 8-bit activations (with weights of at most
            8 bits).
        plain_kinds: module kinds whose weights may neither be factors nor have a scale per group.
        weight_only: True if it has kernels on packed weights (MatMulNBits, GatherBlockQuantized).
        sparsity: True if its files may store zeros as a bitmap, which takes functions of the file.
        groups: True if weights may have a scale per group, and zero points.
        portable: True if integer weights are held in a range whose products are exact on every
            processor. Otherwise they take all 8 bits where this machine's products are exact.
        integer_ends: True if inputs and outputs of .tflite files are int8 where files round them.
        integers_only: True if rounded weights are computed with on 8-bit inputs and outputs of
            calibrated ranges alone, and 8-bit inputs with rounded weights. Results between rounded
            layers are rounded too.
        operators: types of operators that .tflite files may have; () for all.
        figures: of a device that is not at hand, whose latency is computed, else None.
        phase: for decoders with a cache, whose graph onnxruntime-genai's model builder makes: the
            latency that decides, as `phases.parse_phase` returns it. "" for all other graphs.
        described: content of its file, without `portable` and `phase`, which options replace.
    """

    name: str
    runtime: str
    provider: str
    threads: tuple[int, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    integer_kinds: tuple[str, ...]
    plain_kinds: tuple[str, ...] = ()
    weight_only: bool = True
    sparsity: bool = True
    groups: bool = field(default=True, repr=False)
    portable: bool = True
    figures: Figures | None = None
    phase: str = field(default="", repr=False)
    integer_ends: bool = field(default=False, repr=False)
    integers_only: bool = field(default=False, repr=False)
    operators: tuple[str, ...] = field(default=(), repr=False)
    described: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def decoder(self) -> bool:
        """Return True if its files are decoders with a cache."""
        return self.phase != ""

    @property
    def litert(self) -> bool:
        """Return True if its files are .tflite files."""
        return self.runtime == LITERT.runtime

    @property
    def settings(self) -> SessionSettings:
        """Return default session settings; those of an analytic target run on ONNX Runtime here."""
        runtime = "onnxruntime" if self.runtime == ANALYTIC else self.runtime
        return SessionSettings(runtime, self.provider, self.threads[0])

    @property
    def dynamic_kinds(self) -> tuple[str, ...]:
        """Return the module kinds with kernels for 8-bit inputs whose range is found at run time.

        In .tflite files convolutions have calibrated ranges.
        """
        if self.integers_only:
            return ()
        return tuple(kind for kind in self.integer_kinds if not (self.litert and kind == "conv"))

    def serves(self, settings: SessionSettings) -> str:
        """Return why sessions of this target cannot have some settings, in words; "" if they can.

        Args:
            settings: of a latency table.
        """
        own = self.settings
        for name in ("runtime", "provider"):
            there, here = getattr(settings, name), getattr(own, name)
            if there != here:
                return f"{name} {there}, not {here}"
        # "all" are the processors of the machine of the table.
        if self.described.get("threads") == "all" or settings.threads in self.threads:
            return ""
        return f"threads {settings.threads}, not {', '.join(map(str, self.threads))}"

    def executes(self, axis: str, value: Any) -> bool:
        """Return True if a file for this target can hold a value of an axis.

        Args:
            axis: key of the search space, such as weight_bits; most axes do not depend on targets.
            value: value of that axis.
        """
        if axis == "sparsity":
            return self.sparsity or value == 0
        return value in {
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
        }.get(axis, (value,))

    def check(self, where: str, axis: str, value: float) -> None:
        """Check that a file for this target can hold a value of an axis.

        Args:
            where: part of the search space, for the error.
            axis: key of the search space.
            value: value of that axis.

        Raises:
            TargetError: if it cannot; names the nearest valid value.
        """
        if not self.executes(axis, value):
            valid = {"weight_bits": self.weight_bits, "activation_bits": self.activation_bits}.get(
                axis, (0.0,)
            )
            raise TargetError(
                f"{where}: {axis} {value} cannot be stored by target {self.name}; nearest valid "
                f"value: {nearest_number(value, valid)}"
            )


def target_names() -> tuple[str, ...]:
    """Return the names of the built-in targets, analytic devices last."""
    measured = sorted(path.stem for path in FILES.glob("*.yaml"))
    return (
        *measured,
        *(f"{ANALYTIC}:{path.stem}" for path in sorted((FILES / ANALYTIC).glob("*.yaml"))),
    )


def target_file(name: str) -> Path:
    """Return the file that describes a target.

    Args:
        name: built-in name, or path of a file that ends in .yaml.

    Returns:
        A path that exists.

    Raises:
        TargetError: there is no such target or file.
    """
    names = target_names()
    if name in names:
        return FILES.joinpath(*name.split(":")).with_suffix(".yaml")
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise TargetError(f"target {name}: no such file; built in: {', '.join(names)}")
        return Path(name)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    words = f"nearest: {near[0]}; " if near else ""
    raise TargetError(f"target {name!r} is unknown; {words}valid: {', '.join(names)}")


def find_target(
    name: str, present: bool = True, portable: bool | None = None, phase: str | None = None
) -> Target:
    """Return a target by name.

    Args:
        name: built-in name, or path of a file that ends in .yaml.
        present: True to require the runtime and its provider on this machine.
        portable: replaces the value of the file unless None.
        phase: the same; takes what `phases.parse_phase` does.

    Raises:
        TargetError: if the name is unknown (lists the valid ones), the file is wrong, the
            runtime is missing here, or it has no such latency.
    """
    path = target_file(name)
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise TargetError(
            f"target {name}: cannot be read ({' '.join(str(error).split())})"
        ) from None
    target = parse_target(name, data)
    target = target if portable is None else replace(target, portable=portable)
    if phase is not None:
        phase = parse_phase(f"target {name}", phase)
        if not target.decoder:
            raise TargetError(
                f"target {name}: has no latency {phase!r}, which is for decoders with a cache; "
                "nearest: --target onnxruntime-genai, or none"
            )
        target = replace(target, phase=phase)
    missing = missing_here(target) if present else ""
    if missing:
        raise TargetError(f"target {name}: {missing}")
    return target


def parse_target(name: str, data: Any) -> Target:
    """Return a target from the content of its file.

    Args:
        name: of the target, for errors too.
        data: parsed YAML.

    Raises:
        TargetError: names the key, the value that came and the nearest valid one.
    """
    where = f"target {name}"
    check_keys(where, data, KEYS)
    runtime = data.get("runtime")
    if runtime not in RUNTIMES:
        raise TargetError(
            f"{where}: runtime {runtime!r} is unknown; nearest: "
            f"{nearest_name(str(runtime), RUNTIMES)}"
        )
    stores, executes = data.get("stores", {}), data.get("executes", {})
    check_keys(f"{where}: stores", stores, ("weight_bits", "sparsity", "groups", "integer_ends"))
    check_keys(
        f"{where}: executes",
        executes,
        (
            *("activation_bits", "integer_kinds", "plain_kinds", "weight_only"),
            *("integers_only", "operators"),
        ),
    )
    figures = _figures(where, runtime, data)
    target = Target(
        name,
        runtime,
        str(data.get("provider", PROCESSOR.get(runtime, PROCESSOR["onnxruntime"]))),
        _threads(where, data.get("threads", 1)),
        _listed(
            where, "stores: weight_bits", stores.get("weight_bits", list(STORED_BITS)), STORED_BITS
        ),
        _listed(
            where,
            "executes: activation_bits",
            executes.get("activation_bits", list(ACTIVATION_BITS)),
            ACTIVATION_BITS,
        ),
        _listed(
            where,
            "executes: integer_kinds",
            executes.get("integer_kinds", list(INTEGER_KINDS)),
            INTEGER_KINDS,
        ),
        _listed(where, "executes: plain_kinds", executes.get("plain_kinds", []), KINDS),
        _switch(f"{where}: executes: weight_only", executes.get("weight_only", True)),
        _switch(f"{where}: stores: sparsity", stores.get("sparsity", True)),
        _switch(f"{where}: stores: groups", stores.get("groups", True)),
        _switch(f"{where}: portable", data.get("portable", True)),
        figures,
        _phase(where, runtime, data.get("phase", "")),
        _switch(f"{where}: stores: integer_ends", stores.get("integer_ends", False)),
        _switch(f"{where}: executes: integers_only", executes.get("integers_only", False)),
        _texts(f"{where}: executes: operators", executes.get("operators", [])),
        _plain({key: value for key, value in data.items() if key not in ("portable", "phase")}),
    )
    for key, is_given in (
        ("stores: integer_ends", target.integer_ends),
        ("executes: integers_only", target.integers_only),
        ("executes: operators", target.operators),
    ):
        if is_given and not target.litert:
            raise TargetError(f"{where}: {key} is of .tflite files; nearest: runtime litert")
    if runtime == "litert":
        _check_flat(where, target)
    return target


def _check_flat(where: str, target: Target) -> None:
    """Refuse what .tflite files are not written with."""
    more = [bits for bits in target.weight_bits if bits not in FLAT_BITS]
    if more:
        raise TargetError(
            f"{where}: stores: weight_bits: .tflite files have no {more[0]}; nearest: "
            f"{list(FLAT_BITS)}"
        )
    for key, is_given in (
        ("stores: sparsity", target.sparsity),
        ("stores: groups", target.groups),
        ("executes: weight_only", target.weight_only),
    ):
        if is_given:
            raise TargetError(f"{where}: {key}: .tflite files have none; nearest: false")


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a file as JSON holds it, to be compared with that of run.json."""
    plain: dict[str, Any] = json.loads(json.dumps(data, default=str))
    return plain


def _figures(where: str, runtime: str, data: Mapping[str, Any]) -> Figures | None:
    """Return the figures of a device that is not at hand; None for a runtime that is measured."""
    is_given = "device" in data
    if is_given != (runtime == ANALYTIC) and not (is_given and runtime == LITERT.runtime):
        raise TargetError(
            f"{where}: a device's figures belong to runtime {ANALYTIC!r}, which needs them, and to "
            f"{LITERT.runtime!r}"
        )
    return parse_figures(f"{where}: device", data["device"]) if is_given else None


def _phase(where: str, runtime: str, phase: Any) -> str:
    """Return the phase that decides, after a check; "" for graphs without a cache."""
    if phase == "":
        return ""
    if runtime != "onnxruntime":
        raise TargetError(
            f"{where}: phase {phase!r} needs the runtime onnxruntime, got {runtime}; nearest: no "
            "phase"
        )
    return parse_phase(f"{where}: phase", phase)


def _threads(where: str, threads: Any) -> tuple[int, ...]:
    """Return the numbers of threads to choose from, after a check of their types."""
    counts = threads if isinstance(threads, list) else [threads]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in counts)
    if not counts or not (whole or threads == "all"):
        raise TargetError(
            f"{where}: threads must be a whole number of at least 1, a list of them, or all, got "
            f"{threads!r}"
        )
    return thread_counts(threads)


def _listed(where: str, key: str, values: Any, valid: tuple[Any, ...]) -> tuple[Any, ...]:
    values = values if isinstance(values, list) else [values]
    for value in values:
        if value not in valid:
            raise TargetError(
                f"{where}: {key} {value!r} is unknown; nearest: "
                f"{nearest_name(str(value), [str(v) for v in valid])}"
            )
    if 32 in valid and 32 not in values:
        raise TargetError(
            f"{where}: {key} must hold 32, since normalisation and attention stay float; got "
            f"{values}"
        )
    return tuple(values)


def _texts(where: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TargetError(f"{where} must be a list of names such as [CONV_2D], got {values!r}")
    return tuple(values)


def _switch(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TargetError(f"{where} must be true or false, got {value!r}")
    return value


def missing_here(target: Target) -> str:
    """Return what this machine lacks to run sessions of a target, in words; "" if nothing.

    Args:
        target: a measured target; nothing is missing for an analytic one.
    """
    if target.litert and importlib.util.find_spec("ai_edge_litert") is None:
        return "LiteRT is not installed; pip install 'autocompress[litert]'"
    if target.figures is not None:
        return ""
    if target.runtime == "openvino" and importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed; pip install 'autocompress[openvino]'"
    if target.decoder and importlib.util.find_spec("onnxruntime_genai") is None:
        return "onnxruntime-genai is not installed; pip install 'autocompress[genai]'"
    is_processor = target.provider == PROCESSOR[target.runtime]
    return "" if is_processor else _provider_fault(target.runtime, target.provider)


@cache
def _provider_fault(runtime: str, provider: str) -> str:
    """Return why a provider runs no session here, in words; "" if it does.

    A runtime lists what it was built for, also without the device and its libraries.
    """
    try:
        open_session(product_model(), SessionSettings(runtime, provider))
    except ProviderError as error:
        return str(error)
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        return f"no session opens on {provider} here ({words})"
    return ""
