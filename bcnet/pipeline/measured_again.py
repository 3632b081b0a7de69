"""What `build-lut --again` has measured so far. In: a run's stage. Out: which tables are still due.

A command that was stopped and is repeated measures none of its tables a second time.
"""

from dataclasses import dataclass

from bcnet.errors import ArtifactError
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.network_design import needed_layers
from bcnet.measure.network_latency import setting_of
from bcnet.pipeline.layer_forms import forms_of_layers
from bcnet.pipeline.problem import Problem
from bcnet.plain import counted
from bcnet.progress import say
from bcnet.runs import Stage
from bcnet.sealed import SealedLines

FILE = "again.jsonl"


@dataclass(frozen=True)
class MeasuredAgain:
    """The tables that are done, by device, setting and network; a finished stage has no such file."""

    lines: SealedLines

    @classmethod
    def of(cls, stage: Stage) -> "MeasuredAgain":
        """Those of a command that was stopped; none where none was. Raises ArtifactError."""
        path = stage.path(FILE)
        try:
            return cls(SealedLines(path, {}))
        except ValueError as cause:
            raise ArtifactError(f"{path} cannot be read ({cause}); delete it to measure all again") from None

    def due(self, problem: Problem) -> bool:
        """Whether a device's table is still to be measured again in this precision."""
        if _key(problem) not in self.lines.values:
            return True
        done = f"{problem.table.path} was measured again before the command was stopped"
        say(f"{done}; to repeat that, delete {self.lines.path}")
        return False

    def add(self, problem: Problem) -> None:
        """That table is done."""
        self.lines.append(_key(problem))


def _key(problem: Problem) -> list[str]:
    return [problem.table.device_key, problem.table.model_key]


def forget_forms(problem: Problem, table: LatencyTable) -> None:
    """Remove the rows of other forms of the network's layers, which `one-bit` then measures again."""
    setting = setting_of(problem.profile)
    others = forms_of_layers(problem) - needed_layers(problem.graph)
    count = sum(table.has(layer, setting) for layer in others)
    if count:
        table.forget(others, setting)
        rows = counted(count, "row")
        say(f"{rows} of the forms with binary layers removed: `bcnet one-bit` measures them again")
