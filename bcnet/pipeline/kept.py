"""Results that runs have already: verified exports that are replaced, supernets shared by several runs.

In: a run. Out: a line for the user, and files that are kept.
"""

import os
import shutil
from collections.abc import Callable, Mapping

from bcnet.config import Config
from bcnet.errors import ArtifactError
from bcnet.hw_profiles.target import further_profiles, target_of
from bcnet.pipeline.answers import FILE as ANSWERS
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import ExportSummary, SearchSummary
from bcnet.progress import say, working
from bcnet.runs import MANIFEST, Run, Stage, bytes_digest

MADE = {"train": "supernet", "search": "search", "slice": "network"}


def is_verified(run: Run) -> bool:
    """Whether the run has a finished export that passed on its device."""
    stage = run.stage("export")
    if not stage.path(MANIFEST).exists():
        return False
    try:
        return ExportSummary.read(stage).verified
    except (OSError, ArtifactError):
        return False


def announce_replacement(run: Run, config: Config, stage: str) -> None:
    """Say in which run and for which device a stage begins, and warn of a verified export it affects."""
    further = "".join(f" and {profile.name}" for profile in further_profiles(config))
    say(f"{stage}: {run.folder}, for {target_of(config)}{further}")
    warn_of_verified(run, stage)


def say_replaced_search(run: Run, inputs: Mapping[str, str]) -> None:
    """Say before a search which one of other settings it replaces."""
    stage, changed = run.stage("search"), "search settings"
    if not stage.path(MANIFEST).exists():
        return
    try:
        before, found = stage.inputs(), SearchSummary.read(stage)
    except (OSError, ArtifactError):
        return
    if before.get(changed) == inputs[changed]:
        return
    if found.budget is not None:
        asked = f" ({found.budget.explained})"
    else:
        asked = f" (accuracy {found.min_accuracy:.4g})" if found.min_accuracy is not None else ""
    say(f"{stage.folder}: this replaces the search{asked}; keep both with --run NAME")


def warn_of_verified(run: Run, stage: str) -> None:
    """Warn before a stage replaces something that a verified export is based on."""
    if not is_verified(run):
        return
    export = run.stage("export")
    if stage == "export":
        say(f"{export.folder} is verified: it is kept as {export.previous} if this export succeeds")
    else:
        say(
            f"{export.folder} is verified, and based on the {MADE[stage]} that is replaced now: it stays, "
            f"and the next export keeps it as {export.previous}"
        )


def finish_export(run: Run, inputs: Mapping[str, str], files: Mapping[str, bytes]) -> None:
    """Finish the export; the earlier one, if it is verified and differs from this one, is kept as a whole."""
    stage = run.stage("export")
    if not is_verified(run) or _same_delivery(stage, inputs, files):
        stage.finish(inputs, files)
        return
    stage.finish_beside(inputs, files)
    say(f"the earlier export is kept as {stage.previous}")


def _same_delivery(stage: Stage, inputs: Mapping[str, str], files: Mapping[str, bytes]) -> bool:
    """Whether the export has the same network, for the same device, in files with the same content."""
    try:
        found = stage.manifest()
    except ArtifactError:
        return False
    outputs = {name: bytes_digest(content) for name, content in files.items()}
    return found["inputs"] == inputs and all(
        found["outputs"].get(name) == outputs.get(name)
        for name in {*outputs, *found["outputs"]}
        if name not in (ExportSummary.FILE, ANSWERS)
    )


def reuse_supernet(run: Run, opened: Callable[[], Problem], origin: Run) -> None:
    """Give a run without a supernet the finished one of another run, if that is of the same network.

    `opened` is called only where there is such a supernet. Its files are linked, or copied where the file
    system has no links.
    """
    own, found = run.stage("train"), origin.stage("train")
    if own.folder.exists() or not found.path(MANIFEST).exists():
        return
    try:
        found.require(opened().inputs())
    except ArtifactError as reason:
        say(f"the supernet of {origin.folder} does not fit {run.folder}: {reason}")
        return
    with own.at_work(), working(f"taking the supernet of {origin.folder}"):
        fresh = Stage(own.folder.with_name(".train.new"), own.name, found.command)
        fresh.folder.mkdir(parents=True)
        try:
            for name in [*found.manifest()["outputs"], MANIFEST]:
                fresh.path(name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(found.path(name), fresh.path(name))
                except OSError:
                    shutil.copy2(found.path(name), fresh.path(name))
            fresh.manifest()  # raises if one of them was replaced meanwhile
            fresh.folder.rename(own.folder)
        except BaseException:
            shutil.rmtree(fresh.folder, ignore_errors=True)
            raise
    say(f"{run.folder} uses the supernet of {origin.folder}, which is of the same network and data")
