"""Choose the run and the device of a command. In: flags, a configuration, the existing runs.

Out: a run and its configuration. A run belongs to one device and setting, those of its table; another device
gets another run, unless the user replaces this one.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bcnet.config import Config
from bcnet.errors import ArtifactError, DeviceError, TableError, UsageError
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.hw_profiles.target import Target, target_of, target_profile
from bcnet.run_target import SETTING, Bound, all_of, bound_to, completed_from
from bcnet.runs import RUNS, Run

DEFAULT = "default"
TABLES = Path("latency_tables")
Does = Literal["begin", "continue", "read"]  # what a command does: build a table, use one, only read


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
            settings = completed_from(settings, bound, notes)
            wanted = target_of(settings)
    if bound is not None and wanted != bound.target and does != "read":
        if not replace:
            raise UsageError(_belongs_to_another(run, bound, settings, continues))
        now = all_of(wanted, settings.device)
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


def _belongs_to_another(run: Run, bound: Bound, settings: Config, continues: bool) -> str:
    wanted = target_of(settings)
    other, now = _other_name(bound.target, wanted), all_of(wanted, settings.device)
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
