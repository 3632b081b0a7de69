"""Every error has its place in one tree, and an exit code."""

import errno
import inspect
import os
import re
from pathlib import Path

import pytest

from bcnet import errors

ALL = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
}


def test_every_error_descends_from_one_base() -> None:
    assert all(issubclass(kind, errors.BcnetError) for kind in ALL.values())


@pytest.mark.parametrize("name", ALL)
def test_the_exit_code_is_1_but_for_usage_and_failed_checks(name: str) -> None:
    assert ALL[name].exit_code == {"UsageError": 2, "CheckFailed": 3, "NotVerified": 4}.get(name, 1)


@pytest.mark.parametrize("name", ALL)
def test_the_tree_in_the_docstring_lists_every_error(name: str) -> None:
    assert f"{name} " in (errors.__doc__ or "")


def test_the_message_is_what_was_given() -> None:
    with pytest.raises(errors.BcnetError, match=r"^run `bcnet train` first$"):
        raise errors.ArtifactError("run `bcnet train` first")


@pytest.mark.parametrize(
    ("number", "file", "remedy"),
    [
        (errno.EROFS, "runs/.default.lock", "; run in a folder that you can write to"),
        (
            errno.EACCES,
            "latency_tables/cpu.json",
            "; change the permissions of latency_tables, or run in a folder that you can write to",
        ),
        (
            errno.EACCES,
            "runs/default/.train.lock",
            "; change the permissions of this folder, or run in a folder that you can write to",
        ),
        (errno.ENOSPC, "latency_tables/cpu.json", "; free some space"),
        (errno.EIO, "latency_tables/cpu.json", ""),
    ],
)
def test_a_file_that_cannot_be_written_is_named_with_what_to_do(
    folder: Path, number: int, file: str, remedy: str
) -> None:
    Path("latency_tables").mkdir()
    wrong = os.strerror(number)
    assert errors.message_of(OSError(number, wrong, file)) == f"cannot write or read {file}: {wrong}{remedy}"


class Wrapped(Exception):
    pass


Wrapped.__module__ = "torch.onnx._internal.exporter._errors"


def test_a_wrapper_of_an_exporter_gives_way_to_its_cause() -> None:
    raised = Wrapped("Failed to convert. \x1b[96mThis is step 3/3\x1b[0m. Next steps:\n- debug")
    raised.__cause__ = Wrapped("No ONNX function found for <OpOverload(op='aten.fancy')>. Message: none")
    assert errors.one_line(raised) == (
        "Wrapped: No ONNX function found for <OpOverload(op='aten.fancy')>. Message: none"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "ValueError"),
        ("wrong shape\nfor more see", "ValueError: wrong shape"),
        ("\x1b[1;31mred\x1b[0m \x1b]0;title\x07text", "ValueError: red text"),
        ("a\x00b\u202ec", "ValueError: a\\x00b\\u202ec"),
        ("Error(s) in loading A:\n\tno key b", "ValueError: Error(s) in loading A: no key b"),
        ("In worker 0.\nTraceback (most recent call last):\n  File x\nKeyError: 'a'", "KeyError: 'a'"),
        ("it failed\nsee below\nrunning aten::fancy", "ValueError: it failed running aten::fancy"),
    ],
)
def test_the_sentence_that_is_the_cause_is_kept_and_can_be_printed(text: str, line: str) -> None:
    assert errors.one_line(ValueError(text)) == line


def test_where_a_users_code_fails_is_found_and_a_fault_of_bcnets_own_is_not_one() -> None:
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("x")
    place = errors.raised_by_user(caught.value)
    assert re.fullmatch(r"test_where_\w+\(\) in test_errors\.py, line \d+,", str(place))
    with pytest.raises(AttributeError) as caught_inside:
        errors.raised_by_user(3)  # type: ignore[arg-type]
    assert errors.raised_by_user(caught_inside.value) is None


def test_a_long_text_is_cut() -> None:
    assert len(errors.one_line(ValueError("x" * 100_000))) < 600


def test_what_a_block_raises_is_explained_and_errors_on_purpose_pass() -> None:
    with (
        pytest.raises(errors.ModelError, match=r"^it fails \(KeyError: 'a'\); try b$"),
        errors.explaining(errors.ModelError, "it fails", "try b"),
    ):
        raise KeyError("a")
    with (
        pytest.raises(errors.DataError, match=r"^gone$"),
        errors.explaining(errors.ModelError, "it fails"),
    ):
        raise errors.DataError("gone")
