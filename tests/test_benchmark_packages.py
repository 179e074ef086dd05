"""Packages of a search beside those of others: perplexity, bytes, and the points that count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper, save

from benchmarks import packages
from benchmarks.packages import FLOAT, INT4, OURS, Package, bytes_of, figures_of, perplexity_of


def package(size: int, perplexity: float, decode: float) -> Package:
    return Package(Path("models/0001/model.onnx"), size, perplexity, 2 * perplexity, decode)


OTHERS = {FLOAT: package(1000, 50.0, 10.0), INT4: package(200, 60.0, 5.0)}


def test_points_are_chosen_by_validation_size_and_time() -> None:
    ours = {
        f"{OURS}1": package(190, 58.0, 4.0),
        f"{OURS}2": package(195, 55.0, 6.0),  # more accurate, but slower
        f"{OURS}3": package(120, 59.0, 7.0),
        f"{OURS}4": package(100, 70.0, 3.0),
        f"{OURS}5": package(300, 51.0, 4.0),  # larger
    }
    assert figures_of({**OTHERS, **ours}) == pytest.approx(
        {
            "ours_vs_int4_ppl": 58 / 60,
            "decode_ratio_float": 0.4,
            "decode_ratio_int4": 0.8,
            "ours_vs_int4_bytes": 0.6,
        }
    )


def test_a_slower_point_counts_where_none_is_as_fast() -> None:
    figures = figures_of({**OTHERS, f"{OURS}2": package(195, 55.0, 6.0)})
    assert figures["decode_ratio_int4"] == pytest.approx(1.2)


def test_figures_without_a_point_are_left_out() -> None:
    assert figures_of({**OTHERS, f"{OURS}1": package(300, 61.0, 4.0)}) == {}


def test_the_loss_of_int4_is_a_share_of_the_float_perplexity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(folder: Path, out: Path, precision: str) -> Path:
        out.mkdir(parents=True)
        config = {"model": {"decoder": {"head_size": 16}}}
        (out / "genai_config.json").write_text(json.dumps(config))
        return out / precision

    measured = {"fp32": 50.0, "int4": 60.0}
    asked = []

    def perplexity(path: Path, windows: object, head: int) -> float:
        asked.append((windows, head))
        return measured[path.name]

    monkeypatch.setattr(packages, "built", built)
    monkeypatch.setattr(packages, "windows_of", lambda folder, text, length: (text, length))
    monkeypatch.setattr(packages, "perplexity_of", perplexity)
    lost = packages.lost_by_int4(tmp_path, "a text", 8, tmp_path / "others")
    assert lost == pytest.approx(0.2)
    assert asked == [(("a text", 8), 16)] * 2


def test_perplexity_is_that_of_the_tokens_behind_the_first(tmp_path: Path) -> None:
    """Each token has the row of a table as logits."""
    table = np.random.default_rng(0).standard_normal((5, 5), dtype=np.float32)
    node = helper.make_node("Gather", ["table", "input_ids"], ["logits"])
    ids, mask = (
        helper.make_tensor_value_info(name, TensorProto.INT64, [1, "n"])
        for name in ("input_ids", "attention_mask")
    )
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "n", 5])
    keep = helper.make_node("Identity", ["attention_mask"], ["mask"])
    seen = helper.make_tensor_value_info("mask", TensorProto.INT64, [1, "n"])
    tensor = numpy_helper.from_array(table, "table")
    graph = helper.make_graph([node, keep], "g", [ids, mask], [logits, seen], [tensor])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path / "model.onnx"
    save(proto, path)
    windows = [np.array([[0, 3, 1]]), np.array([[2, 2, 4]])]
    shares = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    losses = [-np.log(shares[a, b]) for a, b in ((0, 3), (3, 1), (2, 2), (2, 4))]
    assert perplexity_of(path, windows, 0) == pytest.approx(float(np.exp(np.mean(losses))), 1e-5)
    assert bytes_of(path) == path.stat().st_size
    external_data_helper.convert_model_to_external_data(proto, location="weights", size_threshold=0)
    save(proto, path)
    assert bytes_of(path) == path.stat().st_size + (tmp_path / "weights").stat().st_size


@pytest.mark.slow
def test_a_quantizer_that_fails_or_takes_too_long_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "float.onnx"
    source.write_bytes(b"no graph")
    monkeypatch.setattr(packages, "QUANTIZERS", ("rtn",))
    assert packages.quantized(source, tmp_path / "out", []) == {}
    assert "onnxruntime, rtn: " in capsys.readouterr().out
    assert not (tmp_path / "out" / "rtn").exists()
    (tmp_path / "out" / "rtn").mkdir(parents=True)  # of one that was interrupted
    assert packages.quantized(source, tmp_path / "out", []) == {}
    assert "its process ended" not in capsys.readouterr().out
    words = packages._quantize_in_time("rtn", source, tmp_path / "late" / "model.onnx", [], 0.001)
    assert words == "no file after 0.001 minutes"
