"""A stopped search continues from its scores, line by line; from a changed line on it scores again."""

from pathlib import Path

import pytest

from bcnet.errors import ArtifactError
from bcnet.pipeline.search_state import OLD_STATE, SearchState
from bcnet.runs import Stage
from bcnet.space.width_space import WidthGroup, Widths, WidthSpace
from bcnet.width_search.evolution import Candidate
from bcnet.width_search.scorer import Score

SPACE = WidthSpace("bcnet", (WidthGroup("g", 32, (8, 16, 32), ("g",)),), {}, {}, (), (), (), ())
INPUTS = {"supernet": "s1"}
FOUND = [Candidate(Widths((width,)), width / 7, Score(1 / width, -0.1), width // 16) for width in (8, 16, 32)]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A search that was stopped after two generations, of one candidate and of two."""
    stage = Stage(tmp_path / "search", "search", "bcnet search")
    state = SearchState(stage, INPUTS, SPACE)
    state.keep(FOUND[:1])
    state.keep(FOUND)
    return stage


def test_candidates_come_back_as_they_were_and_are_appended(stage: Stage) -> None:
    text = stage.path("state.jsonl").read_bytes()
    state = SearchState(stage, INPUTS, SPACE)
    assert state.candidates == tuple(FOUND)
    more = Candidate(Widths((24,)), 3.5, Score(0.5), 2)
    state.keep([*FOUND, more])
    assert stage.path("state.jsonl").read_bytes().startswith(text)
    assert len(stage.path("state.jsonl").read_bytes()[len(text) :].splitlines()) == 1


def test_only_whole_generations_before_a_change_are_continued(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stage.path("state.jsonl")
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-10], encoding="utf-8")
    assert SearchState(stage, INPUTS, SPACE).candidates == tuple(FOUND[:1])
    assert "scored again" not in capsys.readouterr().err
    path.write_text(text.replace('"accuracy": 0.0625', '"accuracy": 0.9'), encoding="utf-8")
    assert SearchState(stage, INPUTS, SPACE).candidates == tuple(FOUND[:1])
    said = capsys.readouterr().err
    assert "state.jsonl: line 3 was changed; what was scored from there on is" in said
    assert "continuing a search with 1 candidate scored" in said


def test_a_search_with_other_settings_or_of_an_earlier_version_starts_again(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert SearchState(stage, {"supernet": "s2"}, SPACE).candidates == ()
    assert "it was begun with other settings" in capsys.readouterr().err
    stage.path("state.jsonl").rename(stage.path(OLD_STATE))
    state = SearchState(stage, INPUTS, SPACE)
    assert state.candidates == ()
    assert (
        "state.json is from an earlier version of bcnet: the search starts again" in capsys.readouterr().err
    )
    stage.finish(INPUTS, {}, state.files)
    assert [entry.name for entry in stage.folder.iterdir()] == ["manifest.json"]


def test_what_is_no_file_is_refused(stage: Stage) -> None:
    stage.path("state.jsonl").unlink()
    stage.path("state.jsonl").mkdir()
    with pytest.raises(ArtifactError, match=r"state\.jsonl cannot be read \(a folder, not a file\)"):
        SearchState(stage, INPUTS, SPACE)
