from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.errors import SpaceError
from autocompress.space.search_space import SearchSpace
from autocompress.space.source import SHIPPED, fits_any_model, read_space, shipped_spaces

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
        "shipped spaces: cnn, default, language, multimodal, pruning, transformer, weight_only"
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
