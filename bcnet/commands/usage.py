"""Help and wrong usage in plain words. In: a command's options, what was typed. Out: help, or one line."""

import re
import shlex
from collections.abc import Callable
from functools import partial
from typing import Any

from typer.core import TyperCommand

from bcnet.errors import UsageError
from bcnet.plain import shown

TYPE = re.compile(r" <[^<>]+>$")  # which typer adds to what an argument is called
RANGE, LEAST = re.compile(r"([\d.]+)<=x<=([\d.]+)"), re.compile(r"x>=([\d.]+)")
Record = tuple[str, str]  # of the help: an option with what it takes, its text


class PlainCommand(TyperCommand):
    """A command with help in words; it says how to name a run where a name was typed without --run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for own in self.params:
            vars(own)["get_help_record"] = partial(in_words, own.get_help_record)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments that are left, which are none. Raises UsageError for others."""
        ctx.allow_extra_args = True  # they are refused here, and not without a hint by typer
        stray = super().parse_args(ctx, args)
        if stray and not ctx.resilient_parsing:
            named = any("--run" in option.opts for option in self.params)
            hint = f"; if that is the name of a run, type --run {shlex.quote(stray[0])}" if named else ""
            raise UsageError(f"unexpected argument {shown(stray[0])}{hint} (see {ctx.command_path} --help)")
        return stray


def in_words(record_of: Callable[[Any], Record | None], context: Any) -> Record | None:
    """An option's help without the name of a Python type, and with ranges as words."""
    record = record_of(context)
    if record is None:
        return None
    name, text = record
    return TYPE.sub("", name), LEAST.sub(r"at least \1", RANGE.sub(r"\1 to \2", text))
