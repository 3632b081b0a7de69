"""What a benchmark keeps of single settings: read as written, refused or computed again otherwise."""

import math
from pathlib import Path
from typing import Any

import pytest

from bcnet.bench.kept import Kept, finite
from bcnet.errors import ArtifactError
from bcnet.sealed import SealedLines


def test_values_are_kept_for_the_same_inputs_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = Kept(path, "one", finite)
    for number, key in enumerate("ab"):
        first.add(key, number / 2)
    assert Kept(path, "one", finite).values == first.values == {"a": 0.0, "b": 0.5}
    assert Kept(path, "two", finite).values == {}


def test_a_changed_value_is_computed_again_with_all_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    kept = Kept(path, "one", finite)
    for key in "abc":
        kept.add(key, 0.25)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"0.25", b"0.95")
    path.write_bytes(b"".join(lines))
    assert Kept(path, "one", finite).values == {"a": 0.25}
    assert "a.jsonl: line 3 was changed; what is missing is computed again" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b'{"inputs": "one"}\n', b"\xff\n"])
def test_another_file_is_replaced(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    kept = Kept(path, "one", finite)
    assert kept.values == {}
    kept.add("a", 1.0)
    assert Kept(path, "one", finite).values == {"a": 1.0}


@pytest.mark.parametrize(
    "line", [[], None, {"a": 1}, ["a"], ["a", "x"], ["a", math.inf], ["a", None], [1, 1.0]]
)
def test_sealed_values_of_another_kind_are_refused_with_what_to_delete(line: Any, tmp_path: Path) -> None:
    lines = SealedLines(tmp_path / "a.jsonl", {"inputs": "one"})
    lines.append(line)
    with pytest.raises(ArtifactError, match=r"holds other values .*; run `rm .*a\.jsonl` to compute"):
        Kept(lines.path, "one", finite)
    with pytest.raises(ArtifactError, match=r"cannot be read \(a folder, not a file\); run `rm "):
        Kept(tmp_path, "one", finite)


def test_numbers_are_finite_and_within_bounds() -> None:
    found = [finite(value, most=1.0) for value in (0, 0.5, 1, 1.5, -0.1, math.nan, math.inf, "1", None, True)]
    assert found == [True, True, True, *[False] * 7]
