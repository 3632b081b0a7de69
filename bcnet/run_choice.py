"""Choose the run and the device of a command. In: flags, a configuration, the existing runs.

Out: a run and its configuration. A run belongs to one device and setting, those of its table; another device
gets another run, unless the user replaces this one.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from bcnet.config import Config, is_example
from bcnet.errors import ArtifactError, ConfigError, DeviceError, TableError, UsageError
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.hw_profiles.target import Target, target_of, target_profile
from bcnet.pipeline.results import SearchSummary, TableSummary, target_named
from bcnet.progress import say
from bcnet.runs import MANIFEST, RUNS, Run

if TYPE_CHECKING:
    from bcnet.pipeline.problem import Problem

DEFAULT = "default"
TABLES = Path("latency_tables")
CHECKPOINTS = "checkpoint*.safetensors"  # of a training that is not finished
SETTING = ("batch", "threads", "precision")
Does = Literal["begin", "continue", "read"]  # what a command does: build a table, use one, only read


@dataclass(frozen=True)
class Bound:
    """What a run belongs to, as its configuration names it, and when its table was built (Unix time)."""

    target: Target
    named: Mapping[str, Any]  # device, batch, threads, precision, host
    built: float

    def __str__(self) -> str:
        devices = self.named.get("device")
        return _all_of(self.target, devices if isinstance(devices, list) else ())


@dataclass(frozen=True)
class Choice:
    """A command's run and configuration, and notes for the user on how they were chosen.

    `automatic` is true where the user did not name the run.
    """

    run: Run
    config: Config
    automatic: bool
    notes: tuple[str, ...]


def checked_name(name: str) -> str:
    """The name of a run. Raises UsageError where its folder would lie outside runs/."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(
            "the name of a run consists of letters, digits, '.', '_' and '-', and begins with a letter or a "
            f"digit, not '{name}'"
        )
    return name


def run_holding(file: Path) -> str | None:
    """The name of the run whose export contains a file; None where the file lies elsewhere."""
    export = file.resolve().parent
    runs = RUNS.resolve()
    return export.parent.name if export.name.startswith("export") and export.parent.parent == runs else None


def bound_to(run: Run) -> Bound | None:
    """The target of a run: that of its table, else of its search; None where it has neither.

    Raises ArtifactError where that file cannot be read.
    """
    for name, file in (("build-lut", TableSummary.FILE), ("search", SearchSummary.FILE)):
        stage = run.stage(name)
        path = stage.path(file)
        named = target_named(path, stage.command)
        if named is not None:
            named = _with_searched(named, run)
            try:
                config = Config.model_validate(named)
            except ValidationError:
                raise ArtifactError(f"{path} names no device; run `{stage.command}` again") from None
            if None in (config.batch, config.threads, config.precision):
                target = target_of(config)
            else:  # even if its profile has changed or is gone
                target = Target(config.device[0], *(getattr(config, key) for key in SETTING))
            return Bound(target, named, path.stat().st_mtime)
    return None


def _with_searched(named: Mapping[str, Any], run: Run) -> Mapping[str, Any]:
    """The target of a run's table, with the further devices of its search.

    A result that cannot be read names none; the stage that needs it refuses it.
    """
    stage = run.stage("search")
    try:
        searched = target_named(stage.path(SearchSummary.FILE), stage.command) or {}
    except ArtifactError:
        return named
    devices = searched.get("device")
    several = isinstance(devices, list) and devices and named.get("device") in (devices[0], devices)
    return {**named, "device": devices} if several else named


def choose(
    settings: Config, name: str | None, config: Path | None, does: Does, *, replace: bool = False
) -> Choice:
    """The run of a command, and its configuration, completed from the run where the user names nothing.

    Without a name it is `default`, or the run of the device's name where `default` belongs to another device;
    where no device is named either, and the command does not begin a run, the one whose table was built last.
    Raises UsageError where the run belongs to another device or setting, unless
    `replace` is set, or the command only reads.
    """
    continues = does != "begin"
    notes: list[str] = []
    named = "device" in settings.model_fields_set
    if name is not None:
        run = Run.named(checked_name(name), config)
    elif continues and not named:
        run = _built_last(config, notes)
    else:
        run = _run_of(load_profile(settings.device[0]).name, config, notes)
    bound = bound_to(run)
    wanted = target_of(settings)
    if bound is not None:
        unnamed = not named and (continues or name is not None)
        if unnamed or wanted.device == bound.target.device:
            settings = _as_in(settings, bound, notes)
            wanted = target_of(settings)
    if bound is not None and wanted != bound.target and does != "read":
        if not replace:
            raise UsageError(_belongs_to_another(run, bound, settings, continues))
        now = _all_of(wanted, settings.device)
        notes.append(f"{run.folder} belonged to {bound}, and now belongs to {now}")
    return Choice(run, settings, name is None, tuple(notes))


def require_table(choice: Choice, *, searched: bool) -> None:
    """Raise TableError where the named device has no measurements yet; the message names the command.

    `searched`: the command needs a search on it, too.
    """
    if "device" not in choice.config.model_fields_set or bound_to(choice.run) is not None:
        return
    profile = target_profile(choice.config)
    if searched or not (TABLES / f"{profile.name}.json").exists():
        what = f"{choice.run.folder} has no latency table for {profile.name}"
        if not choice.run.folder.exists():
            run = "run" if choice.automatic else f"run named {choice.run.folder.name}"
            what = f"there is no {run} for {profile.name} yet"
        raise TableError(f"{what}: measure its latency table first, with `{_build(choice, profile)}`")


def require_configured(
    command: str, config: Path | None, run: Run | None, settings: Config
) -> "Problem | None":
    """Report that the built-in example is used where nothing is configured; `settings` are the example's.

    Returns the example's problem where it was opened for that. Raises ConfigError where a stage other than
    `bcnet run` would begin a run of the example, and where the existing run is of another network or other
    data: its configuration is missing then.
    """
    if not is_example(config):
        return None
    if run is not None and command not in ("inspect", "check-lut"):
        begun = next((own for own in (run, Run.named(DEFAULT)) if _has_begun(own)), None)
        if begun is not None and (begun == run or command != "run"):
            problem = _example_of(begun, settings)
            say(f"no bcnet.toml here: {run.folder} continues the built-in example, handwritten digits")
            return problem
        if command != "run":
            raise ConfigError(
                "there is no bcnet.toml here: write one with `bcnet init`, name one with --config, or try "
                "the built-in example with `bcnet run`"
            )
    say("no bcnet.toml here: this is the built-in example, handwritten digits (`bcnet init` writes one)")
    return None


def _has_begun(run: Run) -> bool:
    """Whether a run has a supernet, a part of one, or a table."""
    train = run.stage("train")
    finished = (train.path(MANIFEST), run.stage("build-lut").path(MANIFEST))
    return any(path.exists() for path in finished) or any(train.folder.glob(CHECKPOINTS))


def _example_of(run: Run, settings: Config) -> "Problem":
    """The example's problem.

    Raises ConfigError where a run's supernet, or its table where it has none, is of another one.
    """
    from bcnet.pipeline.open_problem import open_problem
    from bcnet.pipeline.training_file import inputs_of  # torch with it

    problem = open_problem(settings)
    train, table = run.stage("train"), run.stage("build-lut")
    if train.path(MANIFEST).exists():
        found = train.inputs()
    elif checkpoints := sorted(train.folder.glob(CHECKPOINTS)):
        found = inputs_of(checkpoints[0]) or {}
    else:
        bound = bound_to(run)
        own = settings if bound is None else _as_in(settings, bound, [])
        measured = problem if own == settings else open_problem(own)
        if table.inputs().get("model") == measured.table.model_key:
            return problem
        found = {}

    def is_of(other: "Problem") -> bool:
        wanted = other.inputs()  # not the space: that of another device may differ
        return all(found.get(key) == wanted[key] for key in ("model", "data"))

    if is_of(problem):
        return problem
    if found and is_of(open_problem(Config(seed=settings.seed))):  # all defaults, which were the example
        raise ConfigError(
            f"there is no bcnet.toml here, and {run.folder} is of an earlier version's built-in example: "
            "to continue it, write an empty bcnet.toml; for today's example, use another folder"
        )
    raise ConfigError(
        f"there is no bcnet.toml here, and {run.folder} does not belong to the built-in example with seed "
        f"{settings.seed}: restore its bcnet.toml, name one with --config, or use another folder"
    )


def _run_of(device: str, config: Path | None, notes: list[str]) -> Run:
    """The run of a device where the user names no run."""
    default = Run.named(DEFAULT, config)
    bound = bound_to(default)
    if bound is None or bound.target.device == device:
        return default
    run = Run.named(re.sub(r"[^A-Za-z0-9._-]", "-", device), config)
    if bound_to(run) is None:
        notes.append(f"{default.folder} belongs to {bound}: {device} uses {run.folder}")
    return run


def _built_last(config: Path | None, notes: list[str]) -> Run:
    """Of `default` and the runs named after their devices, the one whose table was built last."""
    found: list[tuple[float, str]] = []
    for folder in RUNS.iterdir() if RUNS.is_dir() else ():
        try:
            bound = bound_to(Run(folder, config))
        except (ArtifactError, DeviceError):
            if folder.name == DEFAULT:
                raise
            continue
        if bound is not None and folder.name in (DEFAULT, bound.target.device):
            found.append((bound.built, folder.name))
    run = Run.named(max(found)[1] if found else DEFAULT, config)
    if len(found) > 1:
        notes.append(f"continuing in {run.folder}, whose table was built last of all runs")
    return run


def _as_in(settings: Config, bound: Bound, notes: list[str]) -> Config:
    """The configuration, with the run's device and its setting where the configuration names nothing else."""
    own = settings.model_copy(update={"device": (bound.target.device,)})
    profile = target_of(own)
    taken: dict[str, Any] = {}
    for key, value in bound.named.items():
        now = getattr(profile, key) if key in SETTING else getattr(settings, key)
        value = (value,) if key == "device" and isinstance(value, str) else value
        value = tuple(value) if isinstance(value, list) else value
        if key not in settings.model_fields_set and now != value:
            taken[key] = value
    if taken:
        words = (f"{key} {' '.join(v) if isinstance(v, tuple) else v}" for key, v in taken.items())
        notes.append(f"{', '.join(words)}: as in the table that was built last in this run")
    return settings.model_copy(update=taken)


def _all_of(target: Target, devices: Sequence[str]) -> str:
    """A target with its setting, and the names of further `devices` behind its own."""
    return " and ".join([str(target), *devices[1:]])


def _belongs_to_another(run: Run, bound: Bound, settings: Config, continues: bool) -> str:
    wanted = target_of(settings)
    other, now = _other_name(bound.target, wanted), _all_of(wanted, settings.device)
    devices = [wanted.device, *settings.device[1:]]
    flags = [f"--device {name}" for name in devices]
    flags += [
        f"--{key} {getattr(wanted, key)}"
        for key in SETTING
        if getattr(wanted, key) != getattr(bound.target, key)
    ]
    if not continues:
        return (
            f"{run.folder} belongs to {bound}, not to {now}: choose another run with --run {other}, or "
            f"reassign {run.folder} to {' and '.join(devices)} with --replace"
        )
    build = f"bcnet build-lut {' '.join(flags)} --run"
    return (
        f"{run.folder} belongs to {bound}, not to {now}: measure the latter in a run of its own, `{build} "
        f"{other}`, or in this one, `{build} {run.folder.name} --replace`"
    )


def _other_name(bound: Target, wanted: Target) -> str:
    """A name for the run of another target: its device, and what differs from the run with that name."""
    if bound.device != wanted.device:
        return wanted.device
    words = {"batch": f"batch{wanted.batch}", "threads": f"threads{wanted.threads}"}
    changed = [key for key in SETTING if getattr(bound, key) != getattr(wanted, key)]
    return "-".join([wanted.device, *(words.get(key, wanted.precision) for key in changed)])


def _build(choice: Choice, profile: HwProfile) -> str:
    """The command that measures the table of a device that has none yet."""
    from bcnet.measure.network_latency import why_not_here  # its runtimes with it

    flags = f"--device {profile.name}"
    if "host" in choice.config.model_fields_set:
        flags += "".join(f" --host {shlex.quote(host)}" for host in profile.host)
    elif why_not_here(profile) is not None:
        flags += " --host user@name"
    run = Run.named(DEFAULT, choice.run.config) if choice.automatic else choice.run
    return run.stage("build-lut").command.replace("bcnet build-lut", f"bcnet build-lut {flags}", 1)
