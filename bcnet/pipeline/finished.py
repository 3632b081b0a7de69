"""What later stages take from finished ones: tensors, widths. Errors name the command to repeat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from bcnet.errors import ArtifactError, SpaceError
from bcnet.latency_tables.noise import refuse_noisy
from bcnet.models.finite import not_finite
from bcnet.pipeline.further_devices import Held, held_by_search, held_by_slice
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import EARLIER_RECORDS, SearchSummary, SliceSummary, training_steps
from bcnet.pipeline.training_file import Record, lines_beside, records_of
from bcnet.reading import opened
from bcnet.runs import Run, Stage
from bcnet.sealed import SealedLines
from bcnet.space.extract import with_state
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths
from bcnet.width_search.budget import Budget

WEIGHTS, PROGRAM = "model.safetensors", "model.pt2"  # of the small network


def supernet_file(number: int) -> str:
    """The name of the file that holds a run's supernet `number`, from 0."""
    return f"supernet-{number + 1}.safetensors" if number else "supernet.safetensors"


def trained_supernets(run: Run, problem: Problem) -> tuple[Supernet, ...]:
    """A run's trained supernets, one or more.

    Raises ArtifactError if they are missing, or were trained with another model, data or space.
    """
    stage = run.stage("train")
    stage.require(problem.inputs())
    inputs = stage.inputs()
    if "network" in inputs:
        raise ArtifactError(f"{stage.folder} holds the network, not a supernet; run `{stage.command}` again")
    paths = [stage.path(supernet_file(number)) for number in range(int(inputs.get("supernets", 1)))]
    return tuple(problem.supernet(load_tensors(path, stage.command, problem.model)) for path in paths)


def load_tensors(path: Path, command: str, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a safetensors file for `model`; `command` creates the file again.

    Raises ArtifactError if it cannot be read, or has values that are not finite.
    """
    from safetensors.torch import load_file

    try:
        opened(path).close()  # a file, and not a pipe
        tensors = dict(load_file(path))
    except Exception as cause:
        raise ArtifactError(f"{path} cannot be read ({cause}); run `{command}` again") from None
    broken = not_finite(tensors, {name for name, _ in model.named_parameters()})
    if broken is not None:
        raise ArtifactError(f"{path}: '{broken}' holds values that are not finite; run `{command}` again")
    return tensors


RECORDS = 1_000_000  # steps of a training from which a search begins, at most


def training_records(run: Run) -> tuple[Record, ...]:
    """Widths and loss of every step of a finished training; of several supernets, step by step.

    So the second half of the records is that of the training. Of longer ones than `RECORDS`, the last so many
    steps of each. Raises ArtifactError.
    """
    stage = run.stage("train")
    if stage.path(EARLIER_RECORDS).exists():
        return tuple((Widths(widths), loss) for widths, loss in training_steps(stage))
    inputs = stage.inputs()
    of_each = {key: value for key, value in inputs.items() if key != "supernets"}
    paths = [lines_beside(stage.path(supernet_file(n))) for n in range(int(inputs.get("supernets", 1)))]
    return tuple(chain.from_iterable(zip(*(_steps(path, stage, of_each) for path in paths), strict=True)))


def _steps(path: Path, stage: Stage, inputs: Mapping[str, str]) -> tuple[Record, ...]:
    if not path.exists():
        raise ArtifactError(f"{path} is missing; run `{stage.command}` again")
    try:
        lines = SealedLines(path, inputs, last=RECORDS)
    except ValueError as cause:
        raise ArtifactError(f"{path} cannot be read ({cause}); run `{stage.command}` again") from None
    if lines.dropped:
        raise ArtifactError(f"{path} is not what train wrote ({lines.dropped}); run `{stage.command}` again")
    return records_of(lines)


@dataclass(frozen=True)
class Chosen:
    """Widths for the next stage, and the budget that they are held to: its share is measured beside them."""

    widths: Widths
    predicted_ms: float
    budget: Budget
    further: tuple[Held, ...] = ()  # the same for further devices


def searched(run: Run, problem: Problem) -> Chosen:
    """The winner of a finished search."""
    stage = run.stage("search")
    found = SearchSummary.read(stage)
    refuse_noisy_search(found.noise, stage, problem)
    widths = _in_space(found.best.widths, stage, problem)
    return Chosen(widths, found.best.predicted_ms, _budget(found), held_by_search(found))


def as_searched(run: Run, problem: Problem) -> Problem:
    """The problem in the precision that won the search, if it compared several."""
    found = SearchSummary.checked(run.stage("search"))
    return problem.at(found.precision) if found.precision else problem


def refuse_noisy_search(noise: float | None, stage: Stage, problem: Problem) -> None:
    """Raises TableError if a search used a table of the device that is noisier than accepted."""
    again = f"run `bcnet build-lut --device {problem.profile.name} --again` and `{stage.command}`"
    refuse_noisy(noise or 0.0, problem.profile.table_noise, again)


def sliced(run: Run, problem: Problem) -> Chosen:
    """The widths of a finished slice stage: the search's winner, or another point of its front."""
    stage = run.stage("slice")
    found = SliceSummary.read(stage)
    widths = _in_space(found.widths, stage, problem)
    return Chosen(widths, found.predicted_ms, _budget(found), held_by_slice(found))


def _budget(found: SearchSummary | SliceSummary) -> Budget:
    return replace(Budget.of(found.budget), added_ms=found.preprocess_ms or 0.0)


def _in_space(widths: Sequence[int], stage: Stage, problem: Problem) -> Widths:
    try:
        return problem.space.check(Widths(widths))
    except SpaceError as cause:
        raise ArtifactError(f"{stage.path('result.json')}: {cause}; run `{stage.command}` again") from None


def sliced_model(run: Run, problem: Problem) -> nn.Module:
    """The small network of a finished slice stage, in eval mode.

    Raises ArtifactError where it is missing, or of another network than the problem's.
    """
    stage, widths = run.stage("slice"), sliced(run, problem).widths
    tensors = load_tensors(stage.path(WEIGHTS), stage.command, problem.model)
    shapes, persistent = problem.space.narrowed(widths).shapes, problem.model.state_dict().keys()
    buffers = {name for name in problem.space.dimensions if name not in persistent}
    if buffers:  # narrow buffers that a state does not have
        constants = torch.export.load(stage.path(PROGRAM)).constants
        tensors |= {name: constants[name] for name in buffers if name in constants}
    # A tensor that several modules share has its shape under one of their names.
    expected = {name: list(shapes[name]) for name in (*persistent, *buffers) if name in shapes}
    found = {
        name: list(own.shape) for name, own in tensors.items() if name in shapes or name not in persistent
    }
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            what = f"'{name}' is {found.get(name, 'missing')}, not {expected.get(name, 'there')}"
            raise ArtifactError(
                f"{stage.folder} holds another network than the configured one ({what}): restore its "
                f"bcnet.toml, or run `{stage.command}` again"
            )
    return with_state(problem.model, problem.space, tensors).eval()
