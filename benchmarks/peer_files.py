"""Write the files of other tools for one model.

Each function takes a subject and a path, and writes one ONNX file as the documentation of the tool
says, with its defaults where it has some. What fails raises; `benchmarks.peers` makes a row of it.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper, version_converter
from torch import nn

from autocompress import Task
from benchmarks.against_onnxruntime import prepared, quantize_dynamic, quantize_static
from benchmarks.bench import Bench, compressor_of, feed_of, open_session
from benchmarks.pruning import torch_pruned

CALIBRATION = 128  # samples
BLOCK = 32  # weights that share a scale, in 4-bit files of ONNX Runtime
CLIPPED = 1.0  # largest norm of a gradient
OPSET = 20  # NNCF 3.4 writes quantizers of two types where it is 21
UNSCALED = ["Conv", "Gemm"]  # NNCF 3.4 scales their weights along axes that do not fit
WARM_UP = 0.1  # of fine-tuning


@dataclass(frozen=True)
class Subject:
    """Hold what the tools are given.

    Attributes:
        task: the model and its data.
        float_file: path of the float file that all are compared with.
        minutes: of fine-tuning.
        rate: largest learning rate of it.
        is_transformer: told to the tools that ask.
    """

    task: Task
    float_file: Path
    minutes: float
    rate: float
    is_transformer: bool = False

    @property
    def batches(self) -> list[tuple[Any, Any]]:
        """Return the calibration batches."""
        return self.task.first_samples(self.task.calibration_batches(), CALIBRATION)

    @property
    def feeds(self) -> Iterator[Mapping[str, Any]]:
        """Yield calibration inputs by the names of the file."""
        names = tuple(value.name for value in open_session(str(self.float_file)).get_inputs())
        for inputs, _ in self.batches:
            yield feed_of(inputs, names)


def onnxruntime_dynamic(subject: Subject, path: Path) -> None:
    """Write ONNX Runtime's dynamic int8 quantization of all that it takes, per channel."""
    quantize_dynamic(subject.float_file, path, None)


def onnxruntime_products(subject: Subject, path: Path) -> None:
    """Write ONNX Runtime's dynamic int8 quantization of MatMul and Gemm alone, per channel."""
    quantize_dynamic(subject.float_file, path)


def onnxruntime_static(subject: Subject, path: Path) -> None:
    """Write ONNX Runtime's static int8 quantization, QDQ and per channel."""
    quantize_static(subject.float_file, path, subject.feeds)


def onnxruntime_4bit(subject: Subject, path: Path) -> None:
    """Write ONNX Runtime's 4-bit weights in blocks; inputs stay floats."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    proto = onnx.load(str(prepared(subject.float_file, path)))
    quantizer = MatMulNBitsQuantizer(proto, block_size=BLOCK, is_symmetric=False)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))


def for_nncf(subject: Subject, path: Path) -> onnx.ModelProto:
    """Return the prepared file as NNCF 3.4 takes it.

    It stops at casts of constants, which are folded.
    """
    proto = onnx.load(str(prepared(subject.float_file, path)))
    constants = {one.name: one for one in proto.graph.initializer}
    for node in list(proto.graph.node):
        if node.op_type == "Cast" and node.input[0] in constants:
            (to,) = (one.i for one in node.attribute if one.name == "to")
            value = numpy_helper.to_array(constants[node.input[0]])
            value = value.astype(onnx.helper.tensor_dtype_to_np_dtype(to))
            proto.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
            proto.graph.node.remove(node)
    return proto


def nncf_int8(subject: Subject, path: Path) -> None:
    """Write NNCF's post-training int8 quantization."""
    import nncf

    feeds = [dict(feed) for feed in subject.feeds]
    kind = nncf.ModelType.TRANSFORMER if subject.is_transformer else None
    proto = version_converter.convert_version(for_nncf(subject, path), OPSET)
    dataset = nncf.Dataset(feeds)
    onnx.save(nncf.quantize(proto, dataset, subset_size=len(feeds), model_type=kind), str(path))


def nncf_weights(mode: str, subject: Subject, path: Path) -> None:
    """Write NNCF's compressed weights of MatMul and Gather in a mode; inputs stay floats."""
    import nncf

    proto = for_nncf(subject, path)
    given: dict[str, Any] = {"ignored_scope": nncf.IgnoredScope(types=UNSCALED, validate=False)}
    if "int4" in mode:  # its error for channels that its groups of 128 do not divide advises it
        adjust = nncf.GroupSizeFallbackMode.ADJUST
        given["advanced_parameters"] = nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=adjust
        )
    onnx.save(nncf.compress_weights(proto, mode=nncf.CompressWeightsMode(mode), **given), str(path))


def called(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Return (positional, keyword arguments, free batches) of a batch, for torch.export."""
    free = {0: torch.export.Dim.AUTO}
    if isinstance(inputs, Mapping):
        return (), dict(inputs), dict.fromkeys(inputs, free)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    return given, {}, tuple(free for _ in given)


def exported(model: nn.Module, inputs: Any, path: Path) -> None:
    """Write a model with torch.onnx.export, with any batch size."""
    positional, keywords, shapes = called(inputs)
    program = torch.onnx.export(
        model, positional, kwargs=keywords, dynamic_shapes=shapes, dynamo=True, verbose=False
    )
    assert program is not None
    program.save(str(path))


def torchao_weights(subject: Subject, path: Path) -> None:
    """Export a model whose weights torchao holds as int8."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(subject.task.model).eval()
    quantize_(model, Int8WeightOnlyConfig())
    exported(model, subject.batches[0][0], path)


def torchao_static(subject: Subject, path: Path) -> None:
    """Export a program that torchao has calibrated and converted, for x86."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batches = subject.batches
    positional, keywords, shapes = called(batches[0][0])
    model = copy.deepcopy(subject.task.model).eval()
    program = torch.export.export(model, positional, keywords, dynamic_shapes=shapes)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(), quantizer)
    for inputs, _ in batches:
        positional, keywords, _ = called(inputs)
        prepared(*positional, **keywords)
    exported(convert_pt2e(prepared), batches[0][0], path)


def pruned(ratio: float, subject: Subject, path: Path) -> None:
    """Write a model that torch-pruning has pruned, after fine-tuning with labels."""
    task = subject.task
    model = torch_pruned(Bench(compressor_of(task), task), ratio)
    fine_tune(task, model, subject.minutes, subject.rate)
    path.write_bytes(compressor_of(replace(task, model=model)).builder.baseline)


def fine_tune(task: Task, model: nn.Module, minutes: float, rate: float) -> int:
    """Train a model in place on the task's own loss with AdamW and one cycle; return its steps.

    Its time is that of the process on all processors, so that other programs take none of it.
    """
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    given_s = 60 * minutes * (os.cpu_count() or 1)
    started, steps, done = time.process_time(), 0, 0.0
    model.train()
    while done < 1:
        for inputs, target in task.training_batches():
            done = (time.process_time() - started) / given_s
            if done >= 1:
                break
            falling = 0.5 * (1 + math.cos(math.pi * done))
            optimizer.param_groups[0]["lr"] = rate * min(1.0, done / WARM_UP) * falling
            view = inputs if task.augment is None else task.augment(inputs)
            loss = task.training_loss(task.outputs_of(model, view), target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIPPED)
            optimizer.step()
            steps += 1
    model.eval()
    print(f"    fine-tuning: {steps} steps", flush=True)
    return steps


def olive(subject: Subject, path: Path) -> None:
    """Write what Olive's dynamic quantization gives."""
    from olive.workflows import run

    out = path.with_suffix("")
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": str(subject.float_file)},
            "passes": {"quantize": {"type": "OnnxDynamicQuantization"}},
            "output_dir": str(out),
            "cache_dir": str(out / "cache"),
            "evaluate_input_model": False,
        }
    )
    (found,) = (file for file in out.glob("**/*.onnx") if "cache" not in file.parts)
    found.replace(path)


def optimum(subject: Subject, path: Path) -> None:
    """Write what Optimum's dynamic quantization gives, with its settings for AVX-512 VNNI."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    out = path.with_suffix("")
    ORTQuantizer(prepared(subject.float_file, path)).quantize(
        save_dir=out, quantization_config=settings
    )
    (found,) = out.glob("*.onnx")
    found.replace(path)


Write = Callable[[Subject, Path], None]
# By library, and in it by the name of the row.
PEERS: dict[str, dict[str, Write]] = {
    "onnxruntime": {
        "onnxruntime dynamic int8": onnxruntime_dynamic,
        "onnxruntime dynamic, MatMul": onnxruntime_products,
        "onnxruntime static int8": onnxruntime_static,
        "onnxruntime 4-bit weights": onnxruntime_4bit,
    },
    "nncf": {
        "NNCF int8": nncf_int8,
        "NNCF int8 weights": partial(nncf_weights, "int8_asym"),
        "NNCF int4 weights": partial(nncf_weights, "int4_asym"),
    },
    "torchao": {
        "torchao int8 weights": torchao_weights,
        "torchao static int8": torchao_static,
    },
    "torch-pruning": {"torch-pruning 0.5, fine-tuned": partial(pruned, 0.5)},
    "olive": {"Olive dynamic int8": olive},
    "optimum": {"Optimum dynamic int8": optimum},
}
