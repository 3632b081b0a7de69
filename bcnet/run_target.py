"""The device and setting that a run belongs to: those of its table. In: a run. Out: its target.

A configuration that names no device, or only a part of the setting, is completed from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from bcnet.config import Config
from bcnet.errors import ArtifactError
from bcnet.hw_profiles.target import Target, target_of
from bcnet.pipeline.results import SearchSummary, TableSummary, target_named
from bcnet.runs import Run

SETTING = ("batch", "threads", "precision")


@dataclass(frozen=True)
class Bound:
    """What a run belongs to, as its configuration names it, and when its table was built (Unix time)."""

    target: Target
    named: Mapping[str, Any]  # device, batch, threads, precision, host
    built: float

    def __str__(self) -> str:
        devices = self.named.get("device")
        return all_of(self.target, devices if isinstance(devices, list) else ())


def all_of(target: Target, devices: Sequence[str]) -> str:
    """A target with its setting, and the names of further `devices` behind its own."""
    return " and ".join([str(target), *devices[1:]])


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


def completed_from(settings: Config, bound: Bound, notes: list[str]) -> Config:
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
