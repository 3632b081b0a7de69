"""Every error has its place in one tree, and an exit code."""

import inspect

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
