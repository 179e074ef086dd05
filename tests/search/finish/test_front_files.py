"""Keep the files of a front while a search goes on: made-up files and times."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from autocompress import Candidate, Distillation, Measurement, ModuleConfig
from autocompress.errors import NotComputableError
from autocompress.export.artifact import RECIPE_FORMAT
from autocompress.measure.tally import Scores
from autocompress.results.front import read_front
from autocompress.results.limits import Limits
from autocompress.search.evaluate.recovery import Recovered
from autocompress.search.finish import float_file, front_files, points
from autocompress.search.finish.finalists import Finalist
from autocompress.search.finish.front_files import FrontFiles
from autocompress.search.finish.measured_file import MeasuredFile, OtherScores
from autocompress.search.finish.timing import BRIEF, ROUNDS, FrontTiming
from autocompress.targets.device.sessions import SessionSettings

BASE = Measurement(1000, 4.0, 0.9, verified=True)
TASK = SimpleNamespace(
    test=[1], validation=[(torch.zeros(2, 3), None)], batch_first=False, typos=None
)
PROBLEM = SimpleNamespace(
    baseline=BASE,
    settings=SessionSettings(),
    float_path=Path("baseline/model.onnx"),
    latency_source="measured",
    table=SimpleNamespace(runs=(1,)),
    stitcher=SimpleNamespace(apply=lambda candidate: None),
    latency_ms=lambda candidate: 3.9,
    task=TASK,
    space=SimpleNamespace(objectives=()),
    target=SimpleNamespace(phase=""),
    file_activations=lambda path, is_limited: 7 * Path(path).stat().st_size if is_limited else None,
)


def finalist(number: int, bits: int, steps: int = 0) -> Finalist:
    candidate = Candidate.of({"a": ModuleConfig(weight_bits=bits)}, Distillation(steps=steps))
    return Finalist(number, candidate, 100 * bits, 2.0, (0.88,))


def uniform(number: int, bits: int) -> Finalist:
    nan = math.nan
    return replace(finalist(number, bits), latency_ms=nan, qualities=(nan,), is_uniform=True)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Files of 100 bytes per bit and a quarter of the float time per two bits.

    `ran` and `timed` keep what was run and in how many rounds it was timed.
    """
    ran: list[tuple[int, int]] = []
    timed: list[tuple[list[str], int]] = []
    tested: list[str] = []

    def run_file(
        one: Finalist, problem, place: Path, folder: Path, is_limited: bool
    ) -> MeasuredFile:
        bits = one.candidate.config("a").weight_bits
        if bits == 2:
            raise NotComputableError("outputs are not finite")
        ran.append((one.number, bits))
        place.mkdir(parents=True, exist_ok=True)
        content = str(bits).rjust(100 * bits)
        (place / "model.onnx").write_text(content)
        (place / "model.safetensors").touch()
        recipe = {
            "format": RECIPE_FORMAT,
            "candidate": one.candidate.to_json(),
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
        }
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return MeasuredFile(
            one,
            place,
            100 * bits,
            Scores(0.8 + bits / 100, {}),
            None,
            None,
            1.5,
            not one.is_uniform,
        )

    def other_scores(problem, path: str, share: float, known=None) -> OtherScores:
        tested.append(Path(path).parent.name)
        return OtherScores(0.8, {"accuracy_contrast": 0.7}, {}, share)

    def time_front(problem, baseline, paths, report, rounds, left_s) -> FrontTiming:
        bits = [int(path.read_text()) for path in paths]
        timed.append(([path.parent.name for path in paths], rounds))
        ratios = tuple(b / 8 for b in bits)
        return FrontTiming(ratios, (SessionSettings(),) * len(bits), {}, 4.0, "")

    monkeypatch.setattr(front_files, "run_file", run_file)
    for module in (front_files, float_file):
        monkeypatch.setattr(module, "other_scores", other_scores)
    monkeypatch.setattr(float_file, "bytes_in_memory", lambda path, settings: 10)
    monkeypatch.setattr(front_files, "time_front", time_front)
    monkeypatch.setattr(front_files, "time_elsewhere", lambda p, b, paths, *_, **__: [{}] * 9)
    monkeypatch.setattr(front_files, "write_papers", lambda *_: None)
    made = FrontFiles(tmp_path, Limits(max_accuracy_drop=0.05), lambda what, share: None)
    return SimpleNamespace(made=made, ran=ran, timed=timed, tested=tested, folder=tmp_path)


def test_without_a_file_the_front_is_the_float_file_alone(files) -> None:
    files.made.write_float_alone(PROBLEM)
    assert read_front(files.folder).points == ()
    assert read_front(files.folder).baseline.size_bytes == PROBLEM.baseline.size_bytes
    files.made.add(uniform(0, 8), PROBLEM, {})
    files.made.write_float_alone(PROBLEM)
    assert len(read_front(files.folder).points) == 1, "what is there stays"


def test_timing_ends_with_the_search_while_nothing_was_divided_yet(files) -> None:
    assert files.made._left_s() == math.inf
    files.made.end = time.monotonic() - 5
    assert files.made._left_s() < -5


def test_each_file_is_on_the_front_at_once(files) -> None:
    files.made.add(uniform(0, 8), PROBLEM, {})
    (first,) = read_front(files.folder).points
    assert first.measured.latency_ms == 4.0
    assert first.predicted.latency_ms == 4.0, "nothing was predicted of the first files"
    assert first.deployed_gap == 0
    files.made.add(finalist(3, 6), PROBLEM, {})
    front = read_front(files.folder)
    assert [point.trial for point in front.points] == [3, 0]
    assert front.points[0].artifact == "models/0003"
    assert (files.folder / "models/0003/model.onnx").read_text().strip() == "6"
    assert front.baseline.test_accuracy is None
    assert files.tested == [], "the test split waits for the end of the search"
    late = ["accuracy (test)", "accuracy (gaussian noise)"]
    assert list(front.points[0].measured.left_out) == late
    assert {rounds for _, rounds in files.timed} == {BRIEF}


def test_the_end_runs_the_others_and_times_all_in_turn(files) -> None:
    files.made.add(uniform(0, 8), PROBLEM, {})
    files.made.add(finalist(3, 6), PROBLEM, {})
    front, check = files.made.finish([finalist(3, 6), finalist(7, 7)], PROBLEM, {})
    assert files.ran == [(0, 8), (3, 6), (7, 7)], "each is run once"
    assert files.timed[-1] == (["0003", "0007.new", "0000"], ROUNDS)
    assert [point.trial for point in front.points] == [3, 7, 0]
    assert check["candidates"] == 2, "the first file was not predicted"
    assert not list((files.folder / "models").glob("*.new"))
    assert files.tested == ["baseline", "0003", "0000", "0007.new"]
    assert [point.measured.test_accuracy for point in front.points] == [0.8] * 3
    assert front.baseline.metrics["accuracy_contrast"] == 0.7
    assert front.points[0].measured.left_out == {}
    files.made.finish([finalist(3, 6)], PROBLEM, {})
    assert len(files.tested) == 4, "each is tested once"


def test_new_weights_replace_a_file_only_when_the_front_is_written(files) -> None:
    files.made.add(finalist(3, 6), PROBLEM, {})
    (files.folder / "models/0009.new").mkdir()  # of a process that was killed
    recovered = finalist(3, 7)
    assert files.made.has(finalist(3, 6))
    assert not files.made.has(recovered)
    files.made._run(recovered, PROBLEM)
    assert (files.folder / "models/0003/model.onnx").read_text().strip() == "6", (
        "as front.json says"
    )
    files.made.finish([recovered], PROBLEM, {})
    assert (files.folder / "models/0003/model.onnx").read_text().strip() == "7"
    assert not list((files.folder / "models").glob("*.new"))


def test_uniform_candidates_that_miss_the_limits_go_as_soon_as_another_keeps_them(files) -> None:
    files.made.limits = Limits(max_size_bytes=450)
    files.made.add(uniform(0, 8), PROBLEM, {})
    files.made.add(uniform(1, 6), PROBLEM, {})
    assert [p.trial for p in read_front(files.folder).points] == [1], "the nearest to the limits"
    files.made.add(finalist(5, 4), PROBLEM, {})
    assert [p.trial for p in read_front(files.folder).points] == [5]
    files.made.add(finalist(6, 5), PROBLEM, {})
    assert [p.trial for p in read_front(files.folder).points] == [5, 6], "a finalist stays"


def test_first_files_that_take_too_much_memory_go_as_well(files) -> None:
    files.made.limits = Limits(max_memory_bytes=7 * 450)
    files.made.add(uniform(0, 8), PROBLEM, {})
    files.made.add(finalist(5, 4), PROBLEM, {})
    (point,) = read_front(files.folder).points
    assert (point.trial, point.measured.activation_bytes) == (5, 7 * 400)


def test_a_limit_that_comes_later_is_judged_by_the_files_that_are_there(files) -> None:
    files.made.add(uniform(0, 8), PROBLEM, {})
    files.made.add(finalist(5, 4), PROBLEM, {})
    assert [p.measured.activation_bytes for p in read_front(files.folder).points] == [None, None]
    again = FrontFiles.resumed(files.folder, Limits(max_memory_bytes=7 * 450), lambda *_: None)
    front, _ = again.finish([finalist(5, 4)], PROBLEM, {})
    assert [p.measured.activation_bytes for p in front.points] == [7 * 400]


@pytest.mark.parametrize("objectives", [(), ("f1",)])
def test_a_point_that_misses_a_floor_hides_none_that_keeps_it(
    files, monkeypatch, objectives: tuple[str, ...]
) -> None:
    run, recalls = front_files.run_file, {4: 0.7, 5: 0.92, 6: 0.93}

    def run_file(one: Finalist, *rest) -> MeasuredFile:
        bits = one.candidate.config("a").weight_bits
        return replace(run(one, *rest), scores=Scores(0.9 - bits / 100, {"f1": recalls[bits]}))

    monkeypatch.setattr(front_files, "run_file", run_file)
    space = SimpleNamespace(objectives=objectives)
    problem = SimpleNamespace(**{**vars(PROBLEM), "space": space})
    problem.baseline = replace(BASE, metrics={"f1": 0.95})
    everyone = [finalist(3, 4), finalist(4, 5), finalist(5, 6)]
    for one in everyone:
        files.made.add(one, problem, {})
    assert [p.trial for p in read_front(files.folder).points] == ([3, 4, 5] if objectives else [3])
    again = FrontFiles.resumed(files.folder, Limits(floors={"f1": 0.9}), lambda *_: None)
    front, _ = again.finish(everyone, problem, {})
    assert [p.trial for p in front.points] == ([3, 4, 5] if objectives else [4])
    assert front.pick("smallest", floors={"f1": 0.9}).point.trial == 4
    none = FrontFiles.resumed(files.folder, Limits(floors={"f1": 0.99}), lambda *_: None)
    front, _ = none.finish(everyone, problem, {})
    assert [p.trial for p in front.points] == ([3, 4, 5] if objectives else [3])


def test_a_file_without_finite_outputs_is_left_out(files) -> None:
    with pytest.raises(NotComputableError):
        files.made.add(finalist(0, 2), PROBLEM, {})
    front, _ = files.made.finish([finalist(1, 2), finalist(2, 4)], PROBLEM, {})
    assert [point.trial for point in front.points] == [2]
    assert files.made.refused == {1: "outputs are not finite"}
    with pytest.raises(NotComputableError):
        FrontFiles(files.folder, Limits(), lambda *_: None).finish([finalist(1, 2)], PROBLEM, {})


def test_without_room_only_known_files_are_timed(files) -> None:
    files.made.add(finalist(3, 6), PROBLEM, {})
    clock = SimpleNamespace(
        next_file_s=5.0,
        rest_s=lambda pass_s: 5.0,
        float_pass_s=5.0,
        test_share=1.0,
        rest_took=lambda *_: None,
        has_room=lambda count, seconds: seconds == 0,
        file_took=lambda seconds: None,
    )
    late = replace(files.made, clock=clock)
    front, _ = late.finish([finalist(7, 7), finalist(3, 6), finalist(8, 5)], PROBLEM, {})
    assert files.ran == [(3, 6)]
    assert [point.trial for point in front.points] == [3]
    (files.folder / "other").mkdir()
    other = FrontFiles(files.folder / "other", Limits(), lambda *_: None, clock)
    front, _ = other.finish([finalist(7, 7), finalist(8, 5)], PROBLEM, {})
    assert [point.trial for point in front.points] == [7], "the first one is made in any case"
    assert files.tested == []
    assert front.points[0].measured.test_accuracy is None


def test_a_resumed_run_keeps_its_files_and_runs_what_it_lacks(files) -> None:
    files.made.finish([finalist(3, 6)], PROBLEM, {})
    files.made.add(finalist(4, 5), PROBLEM, {})
    resumed = FrontFiles.resumed(files.folder, Limits(), lambda *_: None)
    assert resumed.has(finalist(3, 6))
    assert not resumed.has(finalist(3, 6, steps=9)), "recovery has changed its weights"
    ran, tested = list(files.ran), list(files.tested)
    resumed.add(finalist(9, 4), PROBLEM, {})
    front = read_front(files.folder)
    assert [point.trial for point in front.points] == [9, 4, 3]
    assert front.points[2].measured.test_accuracy == 0.8
    front, _ = resumed.finish([finalist(4, 5), finalist(3, 6)], PROBLEM, {})
    assert files.ran == [*ran, (9, 4)]
    assert files.tested == [*tested, "baseline", "0009", "0004"]
    assert [point.trial for point in front.points] == [9, 4, 3]


def test_without_a_test_split_disturbed_inputs_are_run_by_a_resumed_run(files) -> None:
    untested = SimpleNamespace(**{**vars(TASK), "test": None})
    problem = SimpleNamespace(**{**vars(PROBLEM), "task": untested})
    files.made.add(finalist(3, 6), problem, {})
    (point,) = read_front(files.folder).points
    assert list(point.measured.left_out) == ["accuracy (gaussian noise)"]
    part_of(files).finish([finalist(3, 6)], problem, {})
    assert files.tested == ["baseline", "0003"]
    (point,) = read_front(files.folder).points
    assert point.measured.left_out == {}
    part_of(files).finish([finalist(3, 6)], problem, {})
    assert files.tested == ["baseline", "0003", "baseline"]


def test_a_test_split_that_comes_later_is_run_by_a_resumed_run(files) -> None:
    without = SimpleNamespace(**{**vars(PROBLEM), "task": SimpleNamespace(**vars(TASK))})
    without.task.test = None
    real = front_files.other_scores
    with pytest.MonkeyPatch.context() as patch:
        for module in (front_files, float_file):
            patch.setattr(module, "other_scores", lambda *given: replace(real(*given), test=None))
        files.made.finish([finalist(3, 6)], without, {})
    assert read_front(files.folder).points[0].measured.test_accuracy is None
    files.tested.clear()
    front, _ = part_of(files).finish([finalist(3, 6)], PROBLEM, {})
    assert front.points[0].measured.test_accuracy == front.baseline.test_accuracy == 0.8
    files.tested.clear()
    part_of(files).finish([finalist(3, 6)], PROBLEM, {})
    assert "0003" not in files.tested


@pytest.mark.parametrize("is_trained", [False, True])
def test_recipes_say_of_which_run_a_file_and_its_training_are(
    files, monkeypatch, is_trained: bool
) -> None:
    """A search may go on with another seed, and export what an earlier one has trained."""
    written = []
    for name in ("write_package", "write_notes"):
        monkeypatch.setattr(points, name, lambda *_: None)
    kept = Recovered(None, Distillation(steps=9), Scores(0.9, {}), {"seed": 0})
    monkeypatch.setattr(points, "recovered_of", lambda *_: kept)
    monkeypatch.setattr(points, "write_recipe", lambda *given: written.append(given[-2]))
    monkeypatch.setattr(points, "renew_recipe", lambda *given: written.append(given[-2]))
    one = finalist(3, 6, steps=9 if is_trained else 0)
    lowered = SimpleNamespace(papers=None, input_names=())
    problem = SimpleNamespace(
        builder=SimpleNamespace(lowered=lowered),
        task=SimpleNamespace(pretrained=None, example_inputs=None),
        target=SimpleNamespace(name="t"),
        compressor=None,
    )
    places = {"task": "t", "source": None, "pretrained": None}
    origin = {**places, "seed": 1, "threads": 2}
    parts = (one, files.folder, 600, Scores(0.9, {}), None, None)
    rest = (None, problem, files.folder, origin, BASE, SessionSettings())
    points.write_papers(MeasuredFile(*parts, 1.5, True), *rest)
    points.write_papers(MeasuredFile(*parts, None, True), *rest)
    assert written == [{**origin, "seed": 0 if is_trained else 1}, places]


def test_what_was_measured_stays_on_another_processor(files) -> None:
    files.made.add(uniform(0, 8), PROBLEM, {})
    files.made.finish([finalist(3, 6)], PROBLEM, {})
    earlier = {p.trial: p.measured.latency_ms for p in read_front(files.folder).points}
    assert earlier == {3: 3.0, 0: 4.0}
    timing = FrontTiming((), (SessionSettings(),) * 9, {}, 4.0, "")
    elsewhere = SimpleNamespace(
        **{**vars(PROBLEM), "latency_source": "table", "baseline": replace(BASE, latency_ms=7.0)}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front_files, "time_front", lambda *_: timing)
        resumed = part_of(files)
        front, _ = resumed.finish([finalist(3, 6), finalist(4, 5)], elsewhere, {})
    latencies = {p.trial: (p.measured.latency_ms, p.measured.latency_source) for p in front.points}
    assert latencies == {4: (2.0, "table"), 3: (3.0, "measured"), 0: (4.0, "measured")}
    assert (front.baseline.latency_ms, front.baseline.latency_source) == (4.0, "measured")
    front, _ = part_of(files).finish([finalist(4, 5)], PROBLEM, {})
    (point,) = (point for point in front.points if point.trial == 4)
    assert (point.measured.latency_ms, point.measured.latency_source) == (2.5, "measured")


def test_files_that_are_gone_or_of_other_candidates_are_forgotten(files) -> None:
    files.made.add(finalist(3, 6), PROBLEM, {})
    files.made.add(finalist(4, 5), PROBLEM, {})
    (files.folder / "models/0003/model.onnx").unlink()
    resumed = FrontFiles.resumed(files.folder, Limits(), lambda *_: None)
    assert [point.trial for point in resumed.points] == [4]
    resumed.forget_others({4: [finalist(4, 8).candidate, finalist(4, 5).candidate], 5: []})
    assert [point.trial for point in resumed.points] == [4], "of the same candidate"
    resumed.forget_others({4: [finalist(4, 8).candidate]})
    assert resumed.points == []
    resumed.time_again(PROBLEM, {})
    assert len(read_front(files.folder).points) == 2, "nothing is written without files"


def test_numbers_beside_another_file_are_forgotten(files) -> None:
    """A kill between the move of a file and the writing of front.json leaves them."""
    files.made.add(finalist(3, 6), PROBLEM, {})
    front = files.folder / "front.json"
    before = front.read_bytes()
    files.made.finish([finalist(3, 6, steps=9)], PROBLEM, {})
    assert [point.trial for point in part_of(files).points] == [3]
    after = front.read_bytes()
    front.write_bytes(before)
    assert part_of(files).points == [], "of the same size, with other weights"
    front.write_bytes(after)
    place = files.folder / "models/0003"
    for name in ("model.onnx", "recipe.yaml", "model.safetensors"):
        content = (place / name).read_bytes()
        (place / name).unlink()
        assert part_of(files).points == [], name
        (place / name).write_bytes(content)
    (place / "model.onnx").write_text("7".rjust(600))
    assert part_of(files).points == [], "of the same size"


def test_a_file_whose_trial_has_better_weights_is_made_again_or_stays(files, monkeypatch) -> None:
    files.made.add(uniform(0, 6), PROBLEM, {})
    files.made.add(finalist(3, 5), PROBLEM, {})
    better = replace(finalist(0, 6, steps=9), qualities=(0.9,))
    monkeypatch.setattr(
        front_files, "with_kept_weights", lambda folder, one: better if one.number == 0 else one
    )
    none = SimpleNamespace(
        next_file_s=5.0, rest_s=lambda pass_s: 5.0, float_pass_s=5.0, test_share=1.0
    )
    none.has_room = lambda count, seconds: seconds == 0
    front, _ = replace(files.made, clock=none).finish([finalist(3, 5)], PROBLEM, {})
    assert [point.trial for point in front.points] == [3, 0]
    assert files.ran == [(0, 6), (3, 5)]
    front, _ = files.made.finish([finalist(3, 5)], PROBLEM, {})
    assert files.ran == [(0, 6), (3, 5), (0, 6)]
    assert front.points[1].candidate.distillation.steps == 9


def test_a_file_that_took_the_last_of_the_time_keeps_its_own_numbers(files, monkeypatch) -> None:
    files.made.add(finalist(0, 6), PROBLEM, {})
    files.made.add(finalist(3, 5), PROBLEM, {})
    better = finalist(0, 7, steps=9)
    monkeypatch.setattr(
        front_files, "with_kept_weights", lambda folder, one: better if one.number == 0 else one
    )
    left = [5.0]
    short = SimpleNamespace(
        next_file_s=5.0, rest_s=lambda pass_s: 99.0, float_pass_s=99.0, test_share=1.0
    )
    short.has_room = lambda count, seconds: seconds <= left[0]
    short.file_took = lambda seconds: left.__setitem__(0, -1.0)
    front, _ = replace(files.made, clock=short).finish([finalist(3, 5)], PROBLEM, {})
    assert files.ran[-1] == (0, 7)
    (point,) = (point for point in front.points if point.trial == 0)
    assert point.measured.size_bytes == 700, "the file that lies there now"
    assert (files.folder / "models/0000/model.onnx").stat().st_size == 700
    assert point.candidate.distillation.steps == 9


def test_better_weights_without_finite_outputs_leave_the_earlier_file(files, monkeypatch) -> None:
    files.made.add(finalist(0, 6), PROBLEM, {})
    files.made.add(finalist(3, 5), PROBLEM, {})
    worse = finalist(0, 2, steps=9)
    monkeypatch.setattr(
        front_files, "with_kept_weights", lambda folder, one: worse if one.number == 0 else one
    )
    front, _ = files.made.finish([finalist(3, 5)], PROBLEM, {})
    assert [(p.trial, p.measured.size_bytes) for p in front.points] == [(3, 500), (0, 600)]
    assert (files.folder / "models/0000/model.onnx").stat().st_size == 600


def test_a_resumed_run_knows_what_was_predicted_and_which_files_were_the_first(files) -> None:
    files.made.add(uniform(0, 8), PROBLEM, {})
    files.made.add(uniform(1, 7), PROBLEM, {})
    files.made.add(finalist(3, 6), PROBLEM, {})
    files.made.add(finalist(4, 5), PROBLEM, {})
    whole = files.made.finish([finalist(3, 6), finalist(4, 5)], PROBLEM, {})[1]
    resumed = FrontFiles.resumed(files.folder, Limits(max_size_bytes=650), lambda *_: None)
    front, check = resumed.finish([finalist(3, 6), finalist(4, 5)], PROBLEM, {})
    assert whole["candidates"] == check["candidates"] == 2
    assert check["mape"] == pytest.approx(whole["mape"])
    assert [point.trial for point in front.points] == [4, 3], "uniform ones miss the limit"


def test_the_float_file_keeps_what_an_earlier_run_measured(files) -> None:
    files.made.finish([finalist(3, 6)], PROBLEM, {})
    over = SimpleNamespace(
        next_file_s=5.0, rest_s=lambda pass_s: 5.0, float_pass_s=5.0, test_share=1.0
    )
    over.has_room = lambda count, seconds: seconds == 0
    resumed = replace(part_of(files), clock=over)
    front, _ = resumed.finish([finalist(3, 6)], PROBLEM, {})
    assert front.baseline.metrics["accuracy_contrast"] == 0.7
    assert front.baseline.test_accuracy == 0.8


def test_all_files_are_run_on_the_same_part_of_the_test_split(files) -> None:
    part = SimpleNamespace(
        next_file_s=1.0, float_pass_s=1.0, test_share=0.25, rest_took=lambda *_: None
    )
    part.has_room = lambda count, seconds: True
    part.file_took = lambda seconds: None
    part.rest_s = lambda pass_s: pass_s
    front, _ = replace(files.made, clock=part).finish([finalist(3, 6)], PROBLEM, {})
    measured = (front.baseline, *(point.measured for point in front.points))
    assert [one.test_share for one in measured] == [0.25, 0.25]
    assert front.left_out() == ["accuracy (test) is of 25% of the test split, as the time allowed"]
    less = replace(part_of(files), clock=SimpleNamespace(**{**vars(part), "test_share": 0.1}))
    front, _ = less.finish([finalist(3, 6), finalist(4, 5)], PROBLEM, {})
    assert [point.measured.test_share for point in front.points] == [0.25, 0.25]
    front, _ = part_of(files).finish([finalist(3, 6), finalist(4, 5)], PROBLEM, {})
    assert [point.measured.test_share for point in front.points] == [1.0, 1.0]
    assert front.baseline.test_share == 1.0
    assert front.left_out() == []


def test_time_that_is_short_goes_to_the_points_that_a_user_would_take(files) -> None:
    """The first files are slow, and stay only until there are better ones."""
    for number, bits in enumerate((8, 7)):
        files.made.add(uniform(number, bits), PROBLEM, {})
    left = [4.0]

    def has_room(count: int, seconds: float) -> bool:
        left[0] -= seconds
        return left[0] >= 0

    short = SimpleNamespace(
        next_file_s=0.0,
        float_pass_s=0.0,
        test_share=1.0,
        has_room=has_room,
        rest_took=lambda *_: None,
    )
    short.file_took = lambda seconds: None
    short.rest_s = lambda pass_s: pass_s
    chosen = [uniform(0, 8), uniform(1, 7), finalist(3, 5), finalist(4, 4)]
    chosen.append(replace(finalist(5, 6), latency_ms=1.0))
    front, _ = replace(files.made, clock=short).finish(chosen, PROBLEM, {})
    tested = [point.trial for point in front.points if point.measured.test_accuracy is not None]
    assert tested == [4, 5], "1.5 s each: the smallest and the fastest one"


def part_of(files) -> FrontFiles:
    """Return the files of a resumed run."""
    return FrontFiles.resumed(files.folder, Limits(), lambda *_: None)


def test_without_any_time_the_points_stay(files) -> None:
    files.made.add(finalist(3, 6), PROBLEM, {})
    over = SimpleNamespace(
        next_file_s=5.0, rest_s=lambda pass_s: 5.0, float_pass_s=5.0, test_share=1.0
    )
    over.has_room = lambda count, seconds: False
    front, check = replace(files.made, clock=over).finish([finalist(7, 7)], PROBLEM, {})
    assert [point.trial for point in front.points] == [3]
    assert check == {"warning": ""}


def test_the_first_prediction_of_a_file_stays(files) -> None:
    files.made.add(finalist(3, 6), PROBLEM, {})
    learned = replace(finalist(3, 6), latency_ms=2.9)
    front, _ = files.made.finish([learned], PROBLEM, {})
    assert front.points[0].predicted.latency_ms == 2.0


def test_numbers_never_stand_beside_another_file(files, monkeypatch) -> None:
    files.made.add(finalist(3, 6), PROBLEM, {})
    files.made.add(finalist(4, 5), PROBLEM, {})
    seen = []
    real = front_files._moved

    def moved(file: MeasuredFile, models: Path) -> MeasuredFile:
        seen.append([point.trial for point in read_front(files.folder).points])
        return real(file, models)

    monkeypatch.setattr(front_files, "_moved", moved)
    files.made.finish([finalist(3, 4, steps=9)], PROBLEM, {})
    assert seen == [[4], [4]], "a kill now leaves what is right"


def test_milliseconds_are_of_the_settings_under_which_the_float_file_is_fastest(
    files, monkeypatch
) -> None:
    real = front_files.time_front
    monkeypatch.setattr(
        front_files, "time_front", lambda *parts: replace(real(*parts), float_share=0.5)
    )
    front, _ = files.made.finish([finalist(3, 6)], PROBLEM, {})
    assert front.baseline.latency_ms == 2.0, "half of what it takes under the settings of the run"
    assert front.points[0].measured.latency_ms == pytest.approx(1.5)


def test_a_relative_limit_is_of_the_latency_that_is_shown_of_the_float_file(
    files, monkeypatch
) -> None:
    real = front_files.time_front
    monkeypatch.setattr(
        front_files, "time_front", lambda *parts: replace(real(*parts), float_share=0.5)
    )
    for share, trials in ((None, [5, 0]), (0.5, [5])):
        files.made.limits = Limits(max_latency_ms=2.0, latency_share=share)
        files.made.add(uniform(0, 6), PROBLEM, {})
        front, _ = files.made.finish([finalist(5, 4)], PROBLEM, {})
        assert [p.trial for p in front.points] == trials, "1.5 ms of 2, or of half of 2"


def test_files_are_timed_again_under_other_settings(files) -> None:
    files.made.add(finalist(3, 6), PROBLEM, {})
    faster = SimpleNamespace(**{**vars(PROBLEM), "baseline": replace(BASE, latency_ms=2.0)})
    files.made.time_again(faster, {})
    front = read_front(files.folder)
    assert front.baseline.latency_ms == 2.0
    assert front.points[0].measured.latency_ms == pytest.approx(1.5)


def test_a_disturbed_timing_is_said_where_no_time_is_left_to_time_all(files, monkeypatch) -> None:
    real = front_files.time_front
    monkeypatch.setattr(
        front_files, "time_front", lambda *parts: replace(real(*parts), warning="it was busy")
    )
    files.made.add(finalist(3, 6), PROBLEM, {})
    files.made.clock = SimpleNamespace(
        next_file_s=5.0,
        rest_s=lambda pass_s: 5.0,
        float_pass_s=5.0,
        test_share=1.0,
        has_room=lambda count, seconds: False,
    )
    assert files.made.finish([finalist(7, 7)], PROBLEM, {})[1] == {"warning": "it was busy"}
