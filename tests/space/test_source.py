from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.errors import SpaceError
from autocompress.export.module_kernels import WEIGHT_ONLY_BITS
from autocompress.space.search_space import SearchSpace
from autocompress.space.source import (
    SHIPPED,
    default_space,
    fits_any_model,
    read_space,
    shipped_spaces,
)

TOP = Path(__file__).parents[2] / "search_spaces"


def test_the_copies_at_the_top_are_the_shipped_spaces() -> None:
    assert sorted(path.stem for path in TOP.glob("*.yaml")) == list(shipped_spaces())
    for name in shipped_spaces():
        assert (TOP / f"{name}.yaml").read_bytes() == (SHIPPED / f"{name}.yaml").read_bytes()


@pytest.mark.parametrize("name", shipped_spaces())
def test_a_shipped_space_is_found_by_its_bare_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named, file = SearchSpace.load(name), SearchSpace.load(TOP / f"{name}.yaml")
    assert (named.rules, named.distillation) == (file.rules, file.distillation)
    assert named.where == name


def test_a_file_wins_over_a_shipped_space_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_space("default")[1] == read_space(None)[1]
    assert fits_any_model("default")
    assert fits_any_model("multimodal"), "a shipped space is for many models"
    (tmp_path / "default").write_text("modules: [{match: '*', weight_bits: [8]}]")
    assert SearchSpace.load("default").rules == ({"match": "*", "weight_bits": [8]},)
    assert not fits_any_model("default"), "a user's rule must match a module"


def test_the_error_names_the_nearest_file_and_the_shipped_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("modules: []")
    with pytest.raises(SpaceError) as caught:
        read_space("mine.yml")
    assert str(caught.value) == (
        "mine.yml: no such file; nearest: mine.yaml; "
        "shipped spaces: cnn, default, generation, language, multimodal, pruning, transformer, "
        "weight_only"
    )
    with pytest.raises(SpaceError, match=r"^transfomer: no such file; nearest: transformer;"):
        read_space("transfomer")
    with pytest.raises(SpaceError, match=r"^zzz: no such file; nearest: none;"):
        read_space("zzz")
    with pytest.raises(SpaceError, match=r"^space: expected a file, the name of a .*, got 5; "):
        read_space(5)


def test_models_that_write_text_have_a_default_space_of_their_own() -> None:
    language = SearchSpace.load(None, "text-generation")
    assert language.where == "space language"
    assert language.rules == SearchSpace.load("language").rules
    assert not language.every_rule_must_match
    recovered = SearchSpace.load({"distillation": {"steps": 0}}, "text-generation")
    assert recovered.rules == language.rules, "a space without modules takes the default rules"
    for pipeline in (None, "text-classification"):
        assert SearchSpace.load(None, pipeline).rules == SearchSpace.load("default").rules
    own = {"modules": [{"match": "*", "weight_bits": [8]}]}
    assert SearchSpace.load(own, "text-generation").rules == tuple(own["modules"])


def test_packages_have_a_default_space_of_their_own_where_a_token_decides() -> None:
    task = "text-generation"
    assert default_space(task) == default_space(task, "prefill") == "language"
    assert default_space(task, "decode") == "generation"
    speech = "automatic-speech-recognition"
    assert default_space(speech, "mix:0.5") == "language" != default_space(speech)
    wanted = read_space("generation")[1]
    assert read_space(None, task, "decode") == ("space generation", wanted)
    limits = {"constraints": {"max_size": "20%"}}
    assert SearchSpace.load(limits, task, "decode").rules == SearchSpace.load("generation").rules
    assert SearchSpace.load(limits, task).rules == SearchSpace.load("language").rules


def test_its_choices_all_stay_packed() -> None:
    """A width without a packed kernel, or 8-bit inputs, would be unpacked in memory."""
    for rule in read_space("generation")[1]["modules"]:
        assert "activation_bits" not in rule
        assert set(rule["weight_bits"]) <= set(WEIGHT_ONLY_BITS)
        assert min(rule["group_size"]) > 0
