"""Which integers a kernel may hold follows from what the processor computes, and a file says for
which processors it was made.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from arithmetic import EmulatedSession, Formed, products
from fixture import Fixture
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import autocompress
from autocompress import Task
from autocompress.export import arithmetic
from autocompress.export.arithmetic import (
    FULL_RANGE,
    PORTABLE,
    saturation_warning,
    wide_integer_weights,
)
from autocompress.export.artifact import read_recipe
from autocompress.integer_form import IntegerForm
from autocompress.search.problem import problem
from autocompress.targets import kernel_arithmetic, kernel_timing, kernels
from autocompress.targets.device.sessions import DEFAULT, SessionSettings
from autocompress.targets.kernel_arithmetic import products_saturate
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.latency_model import stored_tables
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.run import Run
from autocompress.targets.latency_model.stored_tables import table_forms
from autocompress.targets.target import find_target
from autocompress.targets.workload import Work


def test_the_reference_product_saturates_as_pmaddubsw_does() -> None:
    a, weight = np.full((1, 3), 255, np.uint8), np.full((3, 1), 127, np.int8)
    assert products(a, weight, saturates=False).item() == 3 * 255 * 127
    assert products(a, weight, saturates=True).item() == 32767 + 255 * 127
    assert products(a, -weight, saturates=True).item() == -32768 - 255 * 127
    assert products(a, np.full((3, 1), -64, np.int8), saturates=True).item() == -3 * 255 * 64
    assert products(a, np.full((3, 1), 255, np.uint8), saturates=True).item() == 3 * 255 * 255, (
        "unsigned weights are widened first"
    )


@pytest.mark.parametrize("saturates", [True, False])
def test_the_probe_sees_both_kinds_of_processor(
    monkeypatch: pytest.MonkeyPatch, saturates: bool
) -> None:
    monkeypatch.setattr(
        kernel_arithmetic, "open_session", lambda model, settings: EmulatedSession(model, saturates)
    )
    assert products_saturate.__wrapped__(DEFAULT) == saturates


@pytest.mark.parametrize("operator", ["MatMulInteger", "QLinearConv"])
def test_the_probe_sees_products_and_convolutions(
    monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    """A processor whose only wrong kernel is one of them; of products the one for a single row."""

    class Session:
        def __init__(self, model: bytes, settings: SessionSettings) -> None:
            self.exact, self.wrong = (
                EmulatedSession(model, saturates) for saturates in (False, True)
            )
            self.concerned = operator in {
                node.op_type for node in self.exact.evaluator.proto_.graph.node
            }

        def run(self, names: None, feed: dict) -> list:
            wrong = self.concerned and (operator == "QLinearConv" or len(feed["x"]) == 1)
            return (self.wrong if wrong else self.exact).run(names, feed)

    monkeypatch.setattr(kernel_arithmetic, "open_session", Session)
    assert products_saturate.__wrapped__(DEFAULT)


SHAPE = (64, 32, 16)


@pytest.mark.parametrize(
    ("portable", "saturates", "free", "linear", "conv"),
    [
        (False, False, True, IntegerForm.SIGNED, IntegerForm.SIGNED),
        (False, True, True, IntegerForm.UNSIGNED, IntegerForm.REDUCED),
        (False, True, False, IntegerForm.REDUCED, IntegerForm.REDUCED),
        (True, False, True, IntegerForm.UNSIGNED, IntegerForm.REDUCED),
        (True, False, False, IntegerForm.REDUCED, IntegerForm.REDUCED),
    ],
)
def test_the_form_is_the_fastest_exact_one(
    monkeypatch: pytest.MonkeyPatch,
    portable: bool,
    saturates: bool,
    free: bool,
    linear: IntegerForm,
    conv: IntegerForm,
) -> None:
    monkeypatch.setattr(kernels, "products_saturate", lambda settings: saturates)
    monkeypatch.setattr(kernels, "unsigned_is_free", lambda *arguments: free)
    choice = KernelChoice(portable=portable)
    assert (choice.integer_form(SHAPE), choice.integer_form(None)) == (linear, conv)
    if portable or saturates:
        assert (
            KernelChoice(portable=portable, present=False).integer_form(SHAPE)
            is IntegerForm.REDUCED
        ), "nothing can be timed"


def test_the_choice_is_timed_once_and_is_a_row_of_the_kernel_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kernels.json"
    first = KernelChoice(path=path).integer_form(SHAPE)
    assert "unsigned MatMulInteger 64x32x16" in path.read_text()
    monkeypatch.setattr(kernels, "unsigned_is_free", lambda *arguments: pytest.fail("timed again"))
    assert KernelChoice(path=path).integer_form(SHAPE) is first


def test_unsigned_weights_that_are_not_exact_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(EmulatedSession):
        def run(self, names: None, feed: dict) -> list:
            return [output + 1 for output in super().run(names, feed)]

    monkeypatch.setattr(kernel_timing, "open_session", lambda model, settings: Wrong(model, False))
    monkeypatch.setattr(
        kernel_timing,
        "interleaved_timing",
        lambda *arguments: pytest.fail("timed although it is wrong"),
    )
    assert not kernel_timing.unsigned_is_free(DEFAULT, 4, 32, 16)


def file_of(form: IntegerForm, folder: Path) -> Path:
    torch.manual_seed(0)
    x = torch.randn(4, 40)
    model = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 5)).eval()
    fixture = Fixture(
        Task("two", model, x, [(x, torch.zeros(4, dtype=torch.int64))], lambda o, t: 0.0),
        Formed(form),
    )
    path = folder / f"{form}.onnx"
    onnx.save(fixture.build(fixture.uniform(weight_bits=8, activation_bits=8)), path)
    return path


@pytest.mark.parametrize("form", list(IntegerForm))
def test_a_file_without_a_recipe_is_judged_by_its_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: IntegerForm
) -> None:
    path = file_of(form, tmp_path)
    assert len(wide_integer_weights(path)) == (0 if form.portable else 2)
    for saturates in (True, False):
        monkeypatch.setattr(
            arithmetic, "products_saturate", lambda settings, saturates=saturates: saturates
        )
        said = saturation_warning(path, DEFAULT, None)
        assert bool(said) == (saturates and not form.portable)
        assert "\n" not in said


def test_a_file_of_another_tool_is_judged_too(tmp_path: Path) -> None:
    """A statically quantised convolution as onnxruntime.quantization writes it."""
    weight = np.random.default_rng(0).integers(-128, 128, (8, 4, 3, 3)).astype(np.int8)
    tensors = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(0.1), "s")]
    tensors += [numpy_helper.from_array(np.uint8(0), "z"), numpy_helper.from_array(np.int8(0), "i")]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "i", "s", "z"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", c, 9, 9])
        for name, c in (("x", 4), ("y", None))
    ]
    values[1] = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], tensors),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "other.onnx")
    assert len(wide_integer_weights(tmp_path / "other.onnx")) == 1


SPACE = {
    "modules": [{"match": "*", "weight_bits": [4, 8], "activation_bits": 8, "group_size": [0, 32]}],
    "distillation": {"steps": 0},
}


def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor whose products are exact.

    Where this one's are not, files of all 8 bits really differ from their simulation.
    """
    for module in (kernels, arithmetic, stored_tables):
        monkeypatch.setattr(module, "products_saturate", lambda settings: False)
    monkeypatch.setattr(problem, "check_identity", lambda *arguments: None)


@pytest.mark.slow
def test_recipe_readme_and_sessions_say_for_which_arithmetic_a_file_was_made(
    cnn_task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from autocompress.cli.main import main

    exact_products(monkeypatch)
    for portable in (True, False):
        out, to = tmp_path / f"run{portable}", tmp_path / f"best{portable}"
        result = autocompress.search(
            cnn_task, SPACE, n_trials=2, out=out, portable=portable, quiet=True
        )
        autocompress.export(result, result.front.smallest(), to)
        recipe = read_recipe(to)
        assert recipe["portable"] == portable
        forms = {IntegerForm(form) for form in recipe["kernels"]["integer_forms"].values()}
        assert forms
        assert all(form.portable for form in forms) == portable
        assert (PORTABLE if portable else FULL_RANGE) in (to / "README.md").read_text()
        autocompress.open_session(to)
    with pytest.raises(
        autocompress.AutocompressError, match="was searched with --no-portable, not with --portable"
    ):
        autocompress.search(
            cnn_task, SPACE, n_trials=2, out=tmp_path / "runFalse", portable=True, quiet=True
        )
    monkeypatch.setattr(arithmetic, "products_saturate", lambda settings: True)
    autocompress.open_session(tmp_path / "bestTrue")
    with pytest.warns(UserWarning, match="was made for exact 8-bit products"):
        autocompress.open_session(tmp_path / "bestFalse")
    for name, warns in (("bestTrue", False), ("bestFalse", True)):
        with pytest.raises(SystemExit):
            main(["bench", str(tmp_path / name / "model.onnx"), "--rounds", "2"])
        assert ("was made for exact 8-bit products" in capsys.readouterr().out) == warns


@pytest.mark.slow
def test_a_recipe_made_elsewhere_is_reproduced_as_it_was_made(
    cnn_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_products(monkeypatch)
    result = autocompress.search(
        cnn_task, SPACE, n_trials=2, out=tmp_path / "run", portable=False, quiet=True
    )
    autocompress.export(result, result.front.smallest(), tmp_path / "best")
    monkeypatch.setattr(kernels, "products_saturate", lambda settings: True)
    autocompress.reproduce(tmp_path / "best", tmp_path / "again", cnn_task)


@pytest.mark.slow
def test_a_run_that_is_resumed_elsewhere_keeps_its_forms(
    cnn_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were trained as unsigned integers stay unsigned where this process would choose
    otherwise.
    """
    space = {
        **SPACE,
        "modules": [{**SPACE["modules"][0], "weight_bits": 8, "group_size": 0}],
        "distillation": {"steps": [0, 4]},
    }
    forms = {}
    for free in (True, False):
        monkeypatch.setattr(kernels, "unsigned_is_free", lambda *arguments, free=free: free)
        monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / f"cache{free}"))
        result = autocompress.search(
            cnn_task, space, n_trials=2, out=tmp_path / "run", quiet=True, finalize_steps=4
        )
        for path in sorted((tmp_path / "run" / "models").glob("0*/model.onnx")):
            assert wide_integer_weights(path) == [], path
        recipes = [read_recipe(result.folder / point.artifact) for point in result.front]
        forms[free] = [recipe["kernels"]["integer_forms"] for recipe in recipes]
    assert forms[False] == forms[True]
    assert "unsigned" in forms[True][0].values()


def test_trained_integers_decide_what_a_file_says_of_itself(cnn_task: Task) -> None:
    fixture = Fixture(cnn_task, Formed(IntegerForm.UNSIGNED))
    candidate = fixture.uniform(weight_bits=8, activation_bits=8)
    variants = fixture.compressor.variants(candidate)
    reduced = dataclasses.replace(fixture.builder, kernels=Formed(IntegerForm.REDUCED))
    recipe = reduced.recipe(candidate, variants)
    assert recipe.forms["fc"] is IntegerForm.UNSIGNED, "its integers leave [-64, 63]"
    assert recipe.portable
    signed = fixture.formed(IntegerForm.SIGNED)
    recipe = reduced.recipe(candidate, signed.compressor.variants(candidate))
    assert not recipe.portable, "a convolution of all 8 bits"


def test_processes_that_share_a_cache_keep_each_others_answers(tmp_path: Path) -> None:
    first, second = (KernelChoice(path=tmp_path / "kernels.json") for _ in range(2))
    first.integer_form((1, 8, 8))
    second.integer_form((2, 8, 8))
    assert set(json.loads((tmp_path / "kernels.json").read_text())) >= {
        "unsigned MatMulInteger 1x8x8",
        "unsigned MatMulInteger 2x8x8",
    }


def test_weights_inside_a_branch_are_seen(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.full((4, 4), 127, np.int8), "w")
    output = helper.make_tensor_value_info("inner", TensorProto.INT32, None)
    product = helper.make_node("MatMulInteger", ["x", "w"], ["inner"])
    branch = helper.make_graph([product], "branch", [], [output], [weight])
    node = helper.make_node("If", ["choice"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [
        helper.make_tensor_value_info("choice", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 4]),
    ]
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.INT32, None)]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "if.onnx",
    )
    assert wide_integer_weights(tmp_path / "if.onnx")


def test_tables_are_used_for_the_forms_that_they_were_measured_with(
    cnn_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = {"fc": "unsigned", "stem.0": "reduced"}
    table = tmp_path / "table.json"
    LatencyTable(
        "onnxruntime-cpu",
        {},
        DEFAULT,
        {},
        1.0,
        (Run("profiled", Work({}, {}), 1.0, (1.0, 1.0), {"rest": (1.0, 1)}),),
        integer_forms=forms,
    ).save(table)
    assert table_forms(table, find_target("onnxruntime-cpu")) == forms
    LatencyTable.load(table)
    table.write_text(table.read_text().replace("reduced", "signed"))
    with pytest.raises(
        autocompress.AutocompressError,
        match="was measured with --no-portable; give --no-portable too",
    ):
        table_forms(table, find_target("onnxruntime-cpu"))
    for saturates in (True, False):
        monkeypatch.setattr(
            stored_tables, "products_saturate", lambda settings, saturates=saturates: saturates
        )
        target = find_target("onnxruntime-cpu", portable=False)
        if saturates:
            with pytest.raises(
                autocompress.AutocompressError, match="which this processor does not compute"
            ):
                table_forms(table, target)
        else:
            assert table_forms(table, target)["stem.0"] is IntegerForm.SIGNED


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_named(cnn_task: Task, tmp_path: Path) -> None:
    autocompress.search(cnn_task, SPACE, n_trials=1, out=tmp_path, quiet=True)
    run = json.loads((tmp_path / "run.json").read_text())
    del run["portable"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(autocompress.AutocompressError, match="was searched by an earlier version"):
        autocompress.search(cnn_task, SPACE, n_trials=1, out=tmp_path, quiet=True)
