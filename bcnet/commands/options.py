"""Options made from the settings of bcnet.toml, and those that most commands have.

In: what was typed. Out: `Given`, which makes a `Config` of it. Help imports neither torch nor a runtime.
"""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from bcnet.commands.completion import device_names, one_of, run_names, setting_names
from bcnet.config import BUDGETS, LATENCY_BUDGETS, Config, assigned, load_config, settings, toml
from bcnet.errors import ConfigError, DeviceError, UsageError

Returned = TypeVar("Returned")

BUDGET = tuple(f"search.{key}" for key in BUDGETS)
TARGET = ("device", "batch", "threads", "precision", "host")
METAVARS = {
    "host": "USER@NAME",
    "space.freeze": "PATTERN",
    "search.max_size_mb": "MEGABYTES",
    "search.latency_ms": "[DEVICE=]MS",
    "search.p90_ms": "[DEVICE=]MS",
    "search.fps": "[DEVICE=]NUMBER",
    "search.latency": "[DEVICE=]PERCENT",
    "slice.latency_ms": "MS",
    "slice.latency": "PERCENT",
}
KINDS = {int: "N", float: "NUMBER", str: "NAME", list[str]: "NAME"}
SEVERAL_DEVICES = ("with a list of several", "with several devices")
OF_RUN = "that of the run's last table, else cpu"
BY_DEVICE = {f"search.{key}": str if key == "latency" else float for key in LATENCY_BUDGETS}

RunName = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="NAME",
        help="Name of the run, whose files are in runs/NAME/ (default: `default`, or the device's name if "
        "`default` belongs to another device).",
        autocompletion=run_names,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file (default: bcnet.toml if it is there)."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting of bcnet.toml (e.g. train.batch_size=32); may be repeated. Takes precedence over "
        "the file; other options take precedence over it.",
        autocompletion=setting_names,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        help="Print a line on stderr for everything that is written to runs/NAME/log.jsonl: every epoch, "
        "generation and measured network.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Reassign a run of another device or setting to this one.")
]


@dataclass(frozen=True)
class Given:
    """What was typed about settings: the file, the options (by section and key), the values of --set."""

    file: Path | None
    flags: Mapping[str, Mapping[str, Any]]
    assigned: Mapping[str, Any]
    verbose: bool = False

    def with_flags(self, section: str, **values: Any) -> "Given":
        """The same with further values of a section ("" for the top level); None for those not given."""
        return replace(self, flags={**self.flags, section: {**self.flags.get(section, {}), **values}})

    def names(self, key: str) -> bool:
        """Whether this setting of the top level was typed."""
        return self.flags.get("", {}).get(key) is not None or key in self.assigned

    @property
    def budgets(self) -> tuple[str, ...]:
        """The keys of the latency budgets that were typed."""
        given = [values.get("search", {}) for values in (self.flags, self.assigned)]
        return tuple(key for own in given for key in LATENCY_BUDGETS if own.get(key) is not None)

    def config(self) -> Config:
        """The configuration. Raises ConfigError for the file, UsageError for what was typed.

        Where devices were typed and budgets were not, those of the file for other devices are left out.
        """
        from bcnet.hw_profiles import profile_file
        from bcnet.hw_profiles.target import for_targets

        config = load_config(self.file, self.flags, self.assigned)
        if self.names("device"):
            try:
                for device in config.device:
                    profile_file(device)
            except DeviceError as reason:
                raise UsageError(str(reason)) from None
            config = config if self.budgets else for_targets(config)
        typed = {"train", "preset"} & self.assigned.keys() or "settings" in self.assigned.get("search", {})
        if typed:
            from bcnet.pipeline.configured_methods import check_method

            try:
                check_method(config)
            except ConfigError as reason:
                raise UsageError(str(reason)) from None
        return config

    def check_devices(self, config: Config) -> None:
        """Check that the devices and budgets of a command's configuration fit.

        Raises UsageError where they do not and devices or budgets were typed, else ConfigError.
        """
        from bcnet.hw_profiles.target import each_device

        typed = self.budgets or self.names("device")
        try:
            each_device(config)
        except ConfigError as reason:
            raise UsageError(str(reason)) if typed else reason from None


def with_settings(
    *keys: str, several: bool = False, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., Returned]], Callable[..., Returned]]:
    """Give a command the options of these settings, --config and --set, all in its parameter `given`.

    A command that works in a run also has --verbose. With `several`, --device may be repeated; the help of
    other commands leaves out what is said of several devices. Clauses that begin with a text of `without`
    do not hold for the command, and are left out, too.
    """

    def decorated(command: Callable[..., Returned]) -> Callable[..., Returned]:
        signature = inspect.signature(command)
        in_run = "run" in signature.parameters
        left_out = without if several else (*without, *SEVERAL_DEVICES)
        options = {_name(key): _option(key, left_out, in_run) for key in keys}
        common: dict[str, Any] = {"config": ConfigFile, "assignments": Assignments}
        if in_run:
            common["verbose"] = Verbose
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in signature.parameters.items()
            if name != "given"
        ]

        @functools.wraps(command)
        def with_given(**typed: Any) -> Returned:
            flags: dict[str, dict[str, Any]] = {}
            for key in keys:
                value = _typed(typed.pop(_name(key)))
                if key in BY_DEVICE and value is not None:
                    value = by_device(key, value)
                if key == "device" and value is not None and len(value) > 1 and not several:
                    raise UsageError("--device: this command is for one device")
                flags.setdefault(key.rpartition(".")[0], {})[_name(key)] = value
            values = assigned(typed.pop("assignments") or ())
            given = Given(typed.pop("config"), flags, values, typed.pop("verbose", False))
            return command(given=given, **typed)

        parameters = [*_parameters(options), *own, *_parameters(common)]
        with_given.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_given.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_given

    return decorated


def help_without_command(context: typer.Context) -> None:
    """The callback of a group of commands: typed alone, it is wrong usage, answered with its help."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(UsageError.exit_code)


def _typed(value: Any) -> Any:
    """An option's value; None for a switch that is off and a list without entries: they were not typed."""
    return None if value is False or value in ([], ()) else value


def by_device(key: str, texts: Sequence[str]) -> Any:
    """One budget for all devices, or a table of budgets typed as DEVICE=VALUE. Raises UsageError."""
    flag = f"--{_name(key).replace('_', '-')}"
    pairs = [text.partition("=") for text in texts]
    if len(pairs) == 1 and not pairs[0][1]:
        return _budget(key, texts[0])
    if not all(name and equals for name, equals, _ in pairs):
        raise UsageError(f"{flag} takes one value for all devices, or DEVICE=VALUE for each of them")
    if len({name for name, *_ in pairs}) < len(pairs):
        raise UsageError(f"{flag}: a device is named twice")
    return {name.strip(): _budget(key, value) for name, _, value in pairs}


def _budget(key: str, text: str) -> Any:
    """The text as a number if it is one; otherwise the settings' own check explains what is wrong."""
    try:
        return BY_DEVICE[key](text)
    except ValueError:
        return text


def _name(key: str) -> str:
    return key.rpartition(".")[2]


def _parameters(options: Mapping[str, Any]) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if get_args(option)[0] is bool else None,
            annotation=option,
        )
        for name, option in options.items()
    ]


def _option(key: str, left_out: tuple[str, ...], in_run: bool) -> Any:
    """The option of a setting: its type, help, default and example are those of its field."""
    field = settings()[key]
    kind, choices = _kind(field)
    option = typer.Option(
        f"--{_name(key).replace('_', '-')}",
        metavar=METAVARS.get(key) or KINDS.get(kind),
        help=_help(field, left_out, in_run),
        autocompletion=device_names if key == "device" else one_of(choices) if choices else None,
    )
    return Annotated[kind if kind is bool else kind | None, option]


def _kind(field: FieldInfo) -> tuple[Any, tuple[str, ...]]:
    """A field's type on the command line, and the values that it takes where these are few."""
    kinds = [field.annotation]
    if get_origin(field.annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    if any(get_origin(kind) is dict for kind in kinds) and len(kinds) > 1:
        return list[str], ()  # a value for all devices, or one for each
    (kind,) = kinds
    if get_origin(kind) is Literal:
        return str, get_args(kind)
    return (list[str] if get_origin(kind) is tuple else kind), ()


def sentence(text: str | None) -> str:
    """A description of a setting, as `settings()[key].description`, as a sentence of a command's help."""
    text = text or ""
    return f"{text[:1].upper()}{text[1:]}."


def _help(field: FieldInfo, left_out: tuple[str, ...], in_run: bool) -> str:
    clauses = (field.description or "").split("; ")
    text = "; ".join(clause for clause in clauses if not clause.startswith(left_out))
    if not in_run:
        text = text.replace(OF_RUN, "that of bcnet.toml, else cpu")
    default = field.get_default(call_default_factory=True)
    if field.examples:
        example = field.examples[0]
        if isinstance(example, list):
            text, example = f"{text}; may be repeated", example[0]
        text += f" (e.g. {example})"
    elif not isinstance(default, bool):
        text += f" (default: {toml(default).strip(chr(34))})"
    return sentence(text)


def percentage(flag: str, text: str) -> float:
    """ "5%" as 0.05. Raises UsageError. Minimum 4: two sessions on one machine differ by 2 %."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if match is None or not 4 <= float(match[1]) <= 100:
        raise UsageError(f"{flag} takes a percentage from 4 to 100, e.g. \"5%\", not '{text}'")
    return float(match[1]) / 100
