"""Files that a stopped command continues from: values are read as written, up to the first change."""

import gzip
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from conftest import LargestFile
from torch import Tensor

from bcnet import sealed
from bcnet.reading import parse_json, parse_toml, read_bytes, read_text
from bcnet.sealed import SealedLines, read_about, seal_tensors, unseal_tensors

OWN = {"seed": 1}
VALUES = [[1, 2.5, None], {"name": "ä"}, "text", 0.1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of four values."""
    return four_values(tmp_path / "new" / "state.jsonl")


def four_values(path: Path) -> Path:
    lines = SealedLines(path, OWN)
    for value in VALUES:
        lines.append(value)
    return lines.path


def test_values_come_back_and_others_are_added(path: Path) -> None:
    again = SealedLines(path, OWN)
    assert (again.values, again.dropped) == (VALUES, "")
    again.append([])
    assert SealedLines(path, OWN).values == [*VALUES, []]
    again.remove()
    assert SealedLines(path, OWN).values == []


@pytest.mark.parametrize(("last", "kept"), [(0, []), (2, VALUES[2:]), (3, VALUES[1:]), (9, VALUES)])
def test_only_the_last_values_are_kept_where_that_is_wanted(
    path: Path, last: int, kept: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SealedLines(path, OWN)
    monkeypatch.setattr(sealed, "LINES_BYTES", 10)  # of files whose values are all kept
    some = SealedLines(path, OWN, last=last)
    assert (some.values, some.count, some.seal, some.kept) == (kept, 4, whole.seal, whole.kept)
    for number in range(50):
        some.append(number)
    assert len(some.values) <= 2 * last
    assert (some.count, SealedLines(path, OWN, last=2).values) == (54, [48, 49])
    with pytest.raises(ValueError, match="at most 10 are read"):
        SealedLines(path, OWN)


def test_a_line_without_an_end_is_not_read_into_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "LINE_BYTES", 1 << 20)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        some = SealedLines(path, OWN, last=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert some.values == VALUES[2:]
    assert peak < 1 << 23


def test_a_file_cut_anywhere_holds_the_lines_that_are_whole(path: Path) -> None:
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        kept = SealedLines(path, OWN)
        count = max(0, content[:size].count(b"\n") - 1)
        assert (kept.values, kept.dropped) == (VALUES[:count], "")
    kept.append("after")
    assert SealedLines(path, OWN).values == [*VALUES[:3], "after"]


def test_a_compressed_file_cut_or_changed_anywhere_holds_the_lines_before(tmp_path: Path) -> None:
    path = four_values(tmp_path / "state.jsonl.gz")
    content, ends = path.read_bytes(), []
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        kept = SealedLines(path, OWN)
        assert (kept.values, kept.dropped) == (VALUES[: len(kept.values)], "")
        if len(kept.values) > len(ends):
            ends.append(size)
    assert len(ends) == 4
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        values = SealedLines(path, OWN).values
        assert values == VALUES[: len(values)]
    for junk in (b"junk", bytes(20)):
        path.write_bytes(content + junk)
        kept = SealedLines(path, OWN)
        assert (kept.values, kept.kept) == (VALUES, len(content))
        assert f"it is damaged from byte {len(content)} on" in kept.dropped
    kept.append("after")
    assert SealedLines(path, OWN).values == [*VALUES, "after"]


def test_several_values_are_added_at_once_and_read_up_to_a_number(path: Path) -> None:
    content = path.read_bytes()
    several = SealedLines(path.with_name("several"), OWN)
    several.extend(VALUES[:1])
    several.extend(VALUES[1:])
    assert several.path.read_bytes() == content
    assert sealed.sealed_lines(OWN, VALUES) == (content, several.seal)
    for most in range(len(VALUES) + 2):
        kept = SealedLines(path, OWN, most)
        assert (kept.values, kept.dropped) == (VALUES[:most], "")
    kept = SealedLines(path, OWN, 1)
    kept.extend(VALUES[1:])
    assert path.read_bytes() == content


def test_a_compressed_file_is_unpacked_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "LINES_BYTES", 2001)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(2001)))
    with pytest.raises(ValueError, match="it unpacks to more than 2,000 bytes"):
        SealedLines(path, OWN)


def test_another_file_without_a_line_end_is_not_one_that_was_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    assert SealedLines(tmp_path / "a", OWN).dropped == "line 1 was changed"


def test_no_changed_byte_is_taken_for_what_was_written(path: Path) -> None:
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        values = SealedLines(path, OWN).values
        assert values == VALUES[: len(values)]
        assert len(values) < len(VALUES)


def test_lines_that_were_moved_repeated_or_taken_out_end_what_is_read(path: Path) -> None:
    head, *lines = path.read_bytes().splitlines(keepends=True)
    for edited in ([lines[1], lines[0]], [lines[0], lines[0]], [lines[0], lines[2]]):
        path.write_bytes(head + b"".join(edited))
        kept = SealedLines(path, OWN)
        assert kept.values == (VALUES[:1] if edited[0] == lines[0] else [])
        assert "was changed" in kept.dropped
    path.write_bytes(b"".join(lines))
    assert SealedLines(path, OWN).values == []


def test_values_of_something_else_are_dropped_with_the_reason(path: Path) -> None:
    other = SealedLines(path, {"seed": 2})
    assert (other.values, other.dropped) == ([], "it was begun with other settings")
    assert SealedLines(path, OWN).values == VALUES  # until something is added
    other.append(5)
    assert SealedLines(path, {"seed": 2}).values == [5]


def test_a_full_disk_leaves_the_lines_that_were_there(path: Path, largest_file: LargestFile) -> None:
    content, lines = path.read_bytes(), SealedLines(path, OWN)
    with largest_file(len(content) + 100), pytest.raises(OSError, match=r"File too large: '.*state\.jsonl'"):
        lines.append("x" * 200)
    assert path.read_bytes() == content
    with largest_file(100), pytest.raises(OSError, match="File too large"):
        SealedLines(path.with_name("other"), OWN).append("x" * 200)
    assert [entry.name for entry in path.parent.iterdir()] == ["state.jsonl"]
    lines.append("room again")
    assert SealedLines(path, OWN).values == [*VALUES, "room again"]


TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 4),
}


def test_tensors_and_what_is_said_of_them_come_back(tmp_path: Path) -> None:
    about = {"epoch": 3, "curve": [0.25, 0.125]}
    (tmp_path / "t").write_bytes(seal_tensors(TENSORS, about))
    tensors, found = unseal_tensors(tmp_path / "t")
    assert found == about == read_about(tmp_path / "t")
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert seal_tensors(dict(reversed(TENSORS.items())), about) == (tmp_path / "t").read_bytes()


def test_a_changed_byte_of_tensors_or_of_what_is_said_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    content, same = seal_tensors(TENSORS, {"epoch": 3}), 0
    for place in range(len(content)):
        (tmp_path / "t").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            tensors, about = unseal_tensors(tmp_path / "t")
        except ValueError:
            continue
        same += 1  # the blanks after the header
        assert about == {"epoch": 3}
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert same < 8


def test_a_file_without_a_seal_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {"a": torch.zeros(1)}
    save_file(tensors, tmp_path / "t")
    with pytest.raises(ValueError, match="it has no seal"):
        unseal_tensors(tmp_path / "t")


def test_only_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 40)
    for path, reason in (
        (tmp_path / "pipe", "a named pipe, not a file"),
        (tmp_path, "a folder, not a file"),
        (Path("/dev/zero"), "a device, not a file"),
        (tmp_path / "large", "1,099,511,627,776 bytes long, but at most"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_bytes(path)
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa = 1")
    assert read_text(tmp_path / "text") == "a = 1"
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_text(tmp_path / "text")


@pytest.mark.parametrize("depth", [65, 100_000])
def test_values_that_are_too_deep_are_refused(depth: int) -> None:
    assert parse_json("[" * 64 + "]" * 64)
    with pytest.raises(ValueError, match="more than 64 levels of nested lists or tables"):
        parse_json("[" * depth + "]" * depth)
    with pytest.raises(ValueError, match="more than 64 levels of nested lists or tables"):
        parse_toml("a = " + "[" * depth + "]" * depth)


@pytest.mark.parametrize("digits", [20, 5000])
def test_integers_that_fit_no_machine_are_refused(digits: int) -> None:
    assert parse_json('{"a": -9223372036854775808}') == {"a": -(2**63)}
    with pytest.raises(ValueError, match="integer"):
        parse_json('{"a": [' + "9" * digits + "]}")
    with pytest.raises(ValueError, match="integer"):
        parse_toml("a = " + "9" * digits)
