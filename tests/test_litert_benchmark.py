"""Files of LiteRT's quantizer beside the points of a search: choice, figures, names of tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress import Candidate, Measurement, ParetoFront
from autocompress.results.front_point import FrontPoint

pytest.importorskip("ai_edge_litert")

from autocompress.targets.device.litert.flat_file import FlatFile, Rows
from autocompress.targets.device.litert.operators import flat_graph, read_flat
from benchmarks import litert
from benchmarks.bench import LITERT, open_session
from benchmarks.litert import File, checks_of, chosen, figures_of, record_of
from benchmarks.litert_networks import WORDS, Keywords, spoken
from benchmarks.litert_peers import DYNAMIC, INT8, SIGNATURE, bare, named, write
from benchmarks.output import write_figures

PEER = File(INT8, Path(), 1000, 0.9, 0.88, 0.8)


def ours(size: int, validation: float, time: float = 0.5, test: float = 0.87) -> File:
    return File("trial 1", Path(), size, validation, test, time)


def test_the_smallest_and_the_fastest_of_equal_accuracy_are_chosen() -> None:
    small, fast = ours(300, 0.9, 1.2), ours(700, 0.91, 0.4)
    others = [ours(100, 0.899), ours(1000, 0.95, 0.1), ours(1200, 0.99, 0.1)]
    assert chosen([*others, small, fast], PEER) == (small, fast)
    figures = figures_of("net", [*others, small, fast], {INT8: PEER})
    assert figures == pytest.approx(
        {
            "net_beaten_int8": 1.0,
            "net_bytes_ratio_int8": 0.3,
            "net_acc_gap_int8": 0.01,
            "net_time_ratio_int8": 1.5,
            "net_fastest_time_ratio_int8": 0.5,
        }
    )


def test_a_front_that_beats_nothing_says_so() -> None:
    nearest, large = ours(900, 0.85), ours(1500, 0.95)
    assert chosen([ours(100, 0.5), nearest, large], PEER) == (nearest, nearest)
    assert chosen([large, ours(2000, 0.99)], PEER) == (large, large)
    for points, ratio in (([ours(100, 0.5), nearest], 0.9), ([large], 1.5)):
        figures = figures_of("net", points, {INT8: PEER})
        assert figures["net_beaten_int8"] == 0
        assert figures["net_bytes_ratio_int8"] == ratio


def test_predictions_of_a_front_are_checked() -> None:
    def point(trial: int, size: int, latency: float, gap: float, planned: bool) -> FrontPoint:
        measured = Measurement(size, latency, 0.9, verified=True)
        predicted = Measurement(100, 2.0 + trial, 0.9)
        one = FrontPoint(trial, Candidate(), measured, predicted, "", gap)
        return FrontPoint(*(getattr(one, n) for n in one.__match_args__[:6]), was_predicted=planned)

    base = Measurement(1000, 9.0, 0.9, verified=True)
    points = (
        point(0, 100, 2.0, 0.001, True),
        point(1, 200, 4.0, -0.004, True),
        point(2, 100, 40.0, 0.0, False),
    )
    unseen = {"mape": 0.07, "kendall_tau": 0.9, "candidates": 24}
    figures = checks_of("net", ParetoFront(base, points[:1], points[1:]), unseen)
    assert figures == pytest.approx(
        {
            "net_files": 3,
            "net_points": 1,
            "net_verified": 1.0,
            "net_deployed_gap": 0.004,
            "net_size_error": 0.5,
            "net_latency_mape": 0.125,
            "net_latency_tau": 1.0,
            "net_unseen_mape": 0.07,
            "net_unseen_tau": 0.9,
        }
    )


def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    assert record_of(tmp_path / "none") == {}
    (tmp_path / "run.json").write_text('{"seed": 0}')
    assert record_of(tmp_path) == {}
    (tmp_path / "run.json").write_text('{"seed": 0, "seconds": 3.5}')
    assert record_of(tmp_path) == {"seed": 0, "seconds": 3.5}
    assert record_of(tmp_path, 2) == {}
    (tmp_path / "trials.csv").write_text("number,state\n0,COMPLETE\n")
    assert record_of(tmp_path, 2) == {}, "a search that is stopped writes its seconds too"
    (tmp_path / "trials.csv").write_text("number,state\n0,COMPLETE\n1,PRUNED\n")
    assert record_of(tmp_path, 2) == {"seed": 0, "seconds": 3.5}


def test_a_run_of_other_trials_is_another_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    def searched(*_: object, out: Path, n_trials: int, **__: object) -> None:
        out.mkdir()
        (out / "run.json").write_text('{"seconds": 1.0}')
        (out / "trials.csv").write_text("\n".join(["number", *map(str, range(n_trials))]))
        started.append(n_trials)

    def stopped(*_: object) -> None:
        raise StopError

    started: list[int] = []
    monkeypatch.setattr(litert, "NETWORKS", {"net": lambda: None})
    monkeypatch.setattr(litert, "search", searched)
    monkeypatch.setattr(litert, "read_front", stopped)
    for trials in (4, 20, 4, 20):
        with pytest.raises(StopError):
            litert.measure("net", tmp_path, trials, 1)
    assert started == [4, 20]


def test_the_version_of_litert_is_written(tmp_path: Path) -> None:
    write_figures(str(tmp_path / "figures.json"), {"a": 1.0}, settings=LITERT)
    assert "litert" in json.loads((tmp_path / "figures.json").read_text())["versions"]


def small_file() -> bytes:
    """Return a convolution, a mean and a linear layer, with names at the ends alone."""
    draw, file = np.random.default_rng(0), FlatFile()

    def constant(*shape: int) -> int:
        return file.constant(draw.standard_normal(shape).astype(np.float32))

    image = file.tensor((1, 8, 8, 3), "float32", "image")
    inside, mean = file.tensor((1, 6, 6, 16), "float32"), file.tensor((1, 16), "float32")
    logits = file.tensor((1, 10), "float32", "logits")
    strides = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    inputs = [image, constant(16, 3, 3, 3), constant(16)]
    file.add("CONV_2D", inputs, [inside], "Conv2DOptions", padding=1, **strides)
    axes = file.constant(np.array([1, 2], np.int32))
    file.add("MEAN", [inside, axes], [mean], "ReducerOptions", keepDims=False)
    inputs = [mean, constant(10, 16), constant(10)]
    file.add("FULLY_CONNECTED", inputs, [logits], "FullyConnectedOptions", keepNumDims=True)
    file.inputs, file.outputs = [image], [logits]
    return file.content()


def output(content: bytes | str, image: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(content, LITERT).run(None, {"image": image})[0])


def test_names_and_a_signature_change_nothing_that_is_computed() -> None:
    content, image = small_file(), np.ones((1, 8, 8, 3), np.float32)
    full = named(content)
    flat = read_flat(full)
    names = [tensor.name for tensor in flat.subgraphs[0].tensors]
    assert len(set(names)) == len(names), "the quantizer tells tensors apart by their names"
    (signature,) = flat.signatureDefs
    assert signature.signatureKey.decode() == SIGNATURE
    assert [end.name for end in (*signature.inputs, *signature.outputs)] == [b"image", b"logits"]
    less = bare(full)
    assert len(less) <= len(content) < len(full)
    for file in (full, less):
        np.testing.assert_array_equal(output(file, image), output(content, image))


def test_a_bare_file_keeps_its_scales() -> None:
    file = FlatFile()
    rows = Rows(np.array([0.5], np.float32), 0, 3)
    image = file.tensor((1, 4), "float32", "image")
    rounded, back = file.tensor((1, 4), "int8", "r", rows), file.tensor((1, 4), "float32", "back")
    file.add("QUANTIZE", [image], [rounded], "QuantizeOptions")
    file.add("DEQUANTIZE", [rounded], [back])
    file.inputs, file.outputs = [image], [back]
    values = np.array([[0.2, 0.3, 0.9, -7.0]], np.float32)
    expected = np.array([[0.0, 0.5, 1.0, -7.0]], np.float32)
    np.testing.assert_array_equal(output(bare(file.content()), values), expected)


def test_a_bare_file_writes_equal_zero_points_once_as_ours_do() -> None:
    channels, sizes = 64, []
    for layers in (1, 3):
        file = FlatFile()
        number = file.tensor((1, channels), "float32", "image")
        file.inputs = [number]
        for _ in range(layers):
            values = np.ones((channels, channels), np.int8)
            scale = np.linspace(0.1, 0.2, channels, dtype=np.float32)
            weight, after = (
                file.constant(values, "", Rows(scale)),
                file.tensor((1, channels), "float32"),
            )
            file.add("FULLY_CONNECTED", [number, weight, -1], [after], "FullyConnectedOptions")
            number = after
        file.tensors[number].name = "back"
        file.outputs = [number]
        content = file.content()
        assert len(bare(content)) == len(content)
        sizes.append(len(content))
    assert sizes[1] - sizes[0] < 2 * (channels * channels + 4 * channels) + 2 * 8 * channels


@pytest.mark.parametrize("method", [INT8, DYNAMIC])
def test_the_quantizer_makes_smaller_files_that_run(method: str, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_quantizer")
    path, draw = tmp_path / "float.tflite", np.random.default_rng(1)
    path.write_bytes(small_file())
    feeds = [{"image": draw.standard_normal((1, 8, 8, 3), dtype=np.float32)} for _ in range(4)]
    made = write(path, feeds, method, tmp_path / "made.tflite")
    assert made.stat().st_size < path.stat().st_size
    codes = [node.operator for node in flat_graph(str(made)).nodes]
    assert codes == ["CONV_2D", "MEAN", "FULLY_CONNECTED"], "no conversion between integers"
    expected = output(str(path), feeds[0]["image"])
    error = np.linalg.norm(output(str(made), feeds[0]["image"]) - expected)
    assert 0 < error < 0.05 * np.linalg.norm(expected)


def test_made_keywords_differ_between_splits_and_agree_between_calls() -> None:
    sounds, words = spoken(1, 64)
    assert sounds.shape == (64, 1, 49, 10)
    assert set(words.tolist()) <= set(range(WORDS))
    torch.testing.assert_close(spoken(1, 64)[0], sounds, rtol=0, atol=0)
    assert not torch.equal(spoken(2, 64)[0], sounds)
    assert Keywords().eval()(sounds).shape == (64, WORDS)
