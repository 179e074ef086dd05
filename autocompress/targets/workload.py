"""Describe the work of a candidate: one kernel per module, and the operators around the modules.

The latency table stores the work of measured models, and predicts from the work of a candidate.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import NamedTuple

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.factorise.low_rank import factor_shapes
from autocompress.compress.prune.masks import Pruner
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import CompressibleModule, ModuleMap

# Forms of convolutions that read and write integers.
INTEGER_CONVOLUTIONS = ("int8", "int8-nbits4")


class Kernel(NamedTuple):
    """Describe a module as far as its time depends on it.

    Attributes:
        signature: kind, weight shape and attributes; modules with equal signatures share
            measurements.
        rows: vectors that the weight multiplies in one call of the model (batch x positions).
        form: how it is executed: float, int8 (dynamic for linear modules, static for convolutions),
            int8-static, int8-dynamic (each with -unsigned where the kernel takes unsigned weights),
            int8-nbits4 (static convolutions of .tflite files that unpack their weights),
            int16, nbits<bits>-<group> (with a z where there are zero points), each with
            -rank<ratio>, -tucker<ratio> or -spatial<ratio> where it is factorised.
        kept_in: input channels after pruning.
        kept_out: output channels after pruning.
        amount: weights that are multiplied per row, widths rounded up to the kernel's multiple.
    """

    signature: str
    rows: int
    form: str
    kept_in: int
    kept_out: int
    amount: float


class Work(NamedTuple):
    """Hold the work of one model.

    Attributes:
        kernels: by module; removed modules are missing. A kernel that computes several modules is
            under the first of them, and the others are missing.
        surroundings: amount of each feature of the operators around the modules.
    """

    kernels: Mapping[str, Kernel]
    surroundings: Mapping[str, float]


@dataclass(frozen=True)
class Layout:
    """Describe a model as far as the work of its candidates depends on it.

    Attributes:
        module_map: modules of the model.
        pruner: turns a candidate into masks.
        linear_inputs: tensors that each linear module reads.
        packed: returns True if a module under a config runs on a kernel that keeps weights packed.
        integer_form: form of a module's weights where its kernel multiplies integers.
        signatures: of each module's kernel (see `Kernel`).
        edges: (producer, consumer) of data that flows from module to module through other
            operators; the producer of a graph input is "".
        multiples: multiple of channels that kernels run fastest on, by kind of module.
        joined: modules that one kernel computes where all are packed in the same form.
        operators: hash of the operators of the model's graph, those around the modules too.
    """

    module_map: ModuleMap
    pruner: Pruner
    linear_inputs: Mapping[str, tuple[str, ...]]
    packed: Callable[[CompressibleModule, ModuleConfig], bool]
    integer_form: Callable[[CompressibleModule], IntegerForm]
    signatures: Mapping[str, str]
    edges: tuple[tuple[str, str], ...]
    multiples: Mapping[str, int] = field(default_factory=dict)
    joined: tuple[tuple[str, ...], ...] = ()
    operators: str = ""
    _forms: dict[tuple[str, ModuleConfig], str] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def digest(self) -> str:
        """Return a hash of the model's structure.

        It is of names, kernels, sizes, channel groups and operators.
        """
        content = [(m.name, self.signatures[m.name], m.positions, m.group) for m in self.module_map]
        parts = (content, self.joined, self.operators)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def kernel_signatures(self) -> frozenset[str]:
        """Return the signatures of all kernels, with those that compute several modules."""
        joined = (joined_signature([self.signatures[n] for n in names]) for names in self.joined)
        return frozenset(self.signatures.values()) | frozenset(joined)

    @cached_property
    def conv_edges(self) -> tuple[tuple[str, str], ...]:
        """Return the edges with a convolution at an end, which may carry integers."""
        kinds = {module.name: module.kind for module in self.module_map}
        return tuple(edge for edge in self.edges if "conv" in (kinds.get(name) for name in edge))

    @cached_property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """Return the linear modules that read each tensor."""
        readers: dict[str, tuple[str, ...]] = {}
        for name, tensors in self.linear_inputs.items():
            for tensor in dict.fromkeys(tensors):
                readers[tensor] = (*readers.get(tensor, ()), name)
        return readers

    @property
    def integer_forms(self) -> dict[str, str]:
        """Return the form of the integer weights of every module."""
        return {module.name: str(self.integer_form(module)) for module in self.module_map}

    def computes_integers(self, module: CompressibleModule, config: ModuleConfig) -> bool:
        """Return True if a module exchanges integers with its neighbours, or rounds its inputs.

        The first is so for static 8-bit convolutions, the second for 8-bit linear modules.

        Args:
            module: a compressible module.
            config: its config.
        """
        form = self.form(module, config)
        if module.kind == "conv":
            return form in INTEGER_CONVOLUTIONS
        return form.startswith("int8") and module.name in self.linear_inputs

    def form(self, module: CompressibleModule, config: ModuleConfig) -> str:
        """Return the form in which a module is executed.

        Args:
            module: a compressible module.
            config: its config.

        Returns:
            One of the names that `Kernel.form` lists.
        """
        key = (module.name, config)
        if key not in self._forms:
            self._forms[key] = self._form(module, config)
        return self._forms[key]

    def _form(self, module: CompressibleModule, config: ModuleConfig) -> str:
        config = config.executed(module.kind)
        if config.activation_bits == 8:
            usual = config.static(module.kind) == (module.kind == "conv")
            form = "int8" if usual else "int8-static" if module.kind == "linear" else "int8-dynamic"
            if form == "int8" and module.kind == "conv" and self.packed(module, config):
                form = f"int8-nbits{config.weight_bits}"
            form += "-unsigned" if self.integer_form(module) is IntegerForm.UNSIGNED else ""
        elif self.packed(module, config):
            zeros = "" if config.symmetric else "z"
            form = f"nbits{config.weight_bits}-{config.group_size}{zeros}"
        else:
            form = (
                "float"
                if config.activation_bits == 32 or module.kind not in ("linear", "conv")
                else "int16"
            )
        ratio = config.rank_ratio if module.factorisable else 1.0
        shapes = factor_shapes(module.weight_shape, ratio, config.decomposition)
        if len(shapes) == 1:
            return form
        both = len(shapes) == 2 and max(shapes[1][2:], default=1) > 1
        return f"{form}-{'tucker' if len(shapes) == 3 else 'spatial' if both else 'rank'}{ratio:g}"

    def kernel(
        self, module: CompressibleModule, config: ModuleConfig, kept_out: int, kept_in: int
    ) -> Kernel:
        """Return the kernel of one module.

        Args:
            module: a compressible module.
            config: its config.
            kept_out: output channels after pruning.
            kept_in: input channels after pruning.
        """
        ratio = config.rank_ratio if module.factorisable else 1.0
        multiple = self.multiples.get(module.kind, 1)
        rounded = min(module.weight_shape[0], -(-kept_out // multiple) * multiple)
        whole = (rounded, kept_in, *module.weight_shape[2:])
        shapes = factor_shapes(whole, ratio, config.decomposition)
        amount = float(sum(prod(shape) for shape in shapes))
        return Kernel(
            self.signatures[module.name],
            module.positions,
            self.form(module, config),
            kept_in,
            kept_out,
            amount,
        )

    def joined_kernel(self, kernels: Sequence[Kernel]) -> Kernel | None:
        """Return the kernel that computes several modules at once.

        Args:
            kernels: of modules that are `joined`.

        Returns:
            One with the outputs of all; None if they are not packed in the same form.
        """
        first = kernels[0]
        forms = {(kernel.form, kernel.rows, kernel.kept_in) for kernel in kernels}
        if len(forms) > 1 or not is_joinable(first.form):
            return None
        return first._replace(
            signature=joined_signature([kernel.signature for kernel in kernels]),
            kept_out=sum(kernel.kept_out for kernel in kernels),
            amount=sum(kernel.amount for kernel in kernels),
        )

    def divided(
        self, amounts: Mapping[str, float], kernels: Mapping[str, Kernel]
    ) -> dict[str, float]:
        """Divide what modules share by their weights, where one kernel computes several.

        Args:
            amounts: by module, such as bytes or microseconds.
            kernels: of a candidate, as `Work.kernels`.

        Returns:
            The amounts of all modules, with the same sum.
        """
        result = dict(amounts)
        for names in self.joined:
            if names[0] not in kernels or names[1] in kernels:
                continue
            weights = {name: prod(self.module_map[name].weight_shape) for name in names}
            share = sum(result.get(name, 0.0) for name in names) / sum(weights.values())
            result.update({name: share * weight for name, weight in weights.items()})
        return result

    def around(self, module: CompressibleModule, kernel: Kernel) -> dict[str, float]:
        """Return the features that a module adds to the surroundings, whatever its neighbours are.

        Args:
            module: a compressible module.
            kernel: its kernel.

        Returns:
            Count and number of elements of its outputs, by kind and arithmetic.
        """
        name = f"{module.kind} {arithmetic(kernel)}"
        return {
            f"after {name}": 1.0,
            f"elements after {name}": float(kernel.rows * kernel.kept_out),
        }

    def around_alike(self, module: CompressibleModule, kernel: Kernel) -> dict[str, float]:
        """Return the features that a module adds among modules that compute as it does.

        They sum up to the surroundings of a candidate whose modules all compute alike. An edge
        belongs to its producer, and a tensor that several modules round to all of them.

        Args:
            module: a compressible module.
            kernel: its kernel.

        Returns:
            Amount by feature: those of `around`, of edges, and of rounded tensors.
        """
        features: dict[str, float] = defaultdict(float, self.around(module, kernel))
        own, elements = is_integer(kernel), float(kernel.rows * kernel.kept_out)
        for producer, consumer in self.conv_edges:
            if producer == module.name:
                alike = own and self.module_map[consumer].kind == "conv"
                _add(features, passing(own, alike, elements))
            elif not producer and consumer == module.name:
                _add(features, passing(False, own, 0.0))
        if arithmetic(kernel) == "int8":
            for tensor in dict.fromkeys(self.linear_inputs.get(module.name, ())):
                share = 1 / len(self.readers[tensor])
                _add(features, rounding(share, share * kernel.rows * kernel.kept_in))
        return dict(features)


def arithmetic(kernel: Kernel) -> str:
    """Return the arithmetic of a kernel: "int8", "nbits" or "float".

    Args:
        kernel: its form begins with the arithmetic; int16 counts as float.
    """
    return next((name for name in ("int8", "nbits") if kernel.form.startswith(name)), "float")


def is_joinable(form: str) -> bool:
    """Return True if modules of a form may share one kernel: packed and not factorised.

    Args:
        form: as `Kernel.form`.
    """
    return form.startswith("nbits") and form.count("-") == 1


def joined_signature(signatures: Sequence[str]) -> str:
    """Return the signature of a kernel that computes several modules.

    Args:
        signatures: of the modules.
    """
    return " and ".join(signatures)


def workload(layout: Layout, candidate: Candidate) -> Work:
    """Return the work of a candidate.

    Args:
        layout: structure of the model.
        candidate: config of each module.

    Returns:
        Kernels of the modules that pruning leaves, and the amounts of all surrounding features.
    """
    masks = layout.pruner.masks(candidate)
    kernels: dict[str, Kernel] = {}
    around: dict[str, float] = defaultdict(float)
    around["model"] = 1.0
    rounded: dict[str, float] = {}
    for module in layout.module_map:
        if masks.dropped(module.name):
            continue
        out, into = masks.of(module.name, "out"), masks.of(module.name, "in")
        kept_out = module.weight_shape[0] if out is None else int(out.sum())
        kept_in = (*module.weight_shape, 1)[1] if into is None else int(into.sum())
        kernel = kernels[module.name] = layout.kernel(
            module, candidate.config(module.name), kept_out, kept_in
        )
        if arithmetic(kernel) == "int8":
            for tensor in layout.linear_inputs.get(module.name, ()):
                rounded[tensor] = float(kernel.rows * kept_in)
    for names in layout.joined:
        parts = [kernels[name] for name in names if name in kernels]
        whole = layout.joined_kernel(parts) if len(parts) == len(names) else None
        if whole is not None:
            kernels[names[0]] = whole
            for name in names[1:]:
                del kernels[name]
    for name, kernel in kernels.items():
        _add(around, layout.around(layout.module_map[name], kernel))
    _add(around, rounding(len(rounded), sum(rounded.values())))
    for producer, consumer in layout.conv_edges:
        source, sink = kernels.get(producer), kernels.get(consumer)
        elements = float(source.rows * source.kept_out) if source else 0.0
        _add(around, passing(is_integer(source), is_integer(sink), elements))
    return Work(kernels, dict(around))


def _add(total: dict[str, float], features: Mapping[str, float]) -> None:
    for feature, amount in features.items():
        total[feature] += amount


def rounding(tensors: float, elements: float) -> dict[str, float]:
    """Return the features of tensors that are rounded for linear modules.

    Args:
        tensors: their number. One that several modules read is rounded once.
        elements: of all of them.
    """
    return {
        "tensors rounded for linear": float(tensors),
        "elements rounded for linear": float(elements),
    }


def passing(from_integer: bool, to_integer: bool, elements: float) -> dict[str, float]:
    """Return the features of data that flows from one module to another.

    Args:
        from_integer: True if the producer writes integers.
        to_integer: True if the consumer reads them.
        elements: number of values that the producer writes; 0 for an input of the graph.
    """
    names = ["integers" if integer else "floats" for integer in (from_integer, to_integer)]
    ends = " to ".join(names)
    return {f"from {ends}": 1.0, f"elements from {ends}": elements}


def is_integer(kernel: Kernel | None) -> bool:
    """Return True for a kernel that reads and writes integers: a static 8-bit convolution.

    Args:
        kernel: None for an input of the graph, or a removed module.
    """
    if kernel is None:
        return False
    return kernel.signature.startswith("conv") and kernel.form in INTEGER_CONVOLUTIONS
