"""Score settings of a benchmark in trained supernets. In: supernets, a table, settings. Out: scores by side.

The settings are distributed over the processes.
"""

import time
from dataclasses import dataclass
from typing import Any

from bcnet.bench.channel_bench_macro import BenchTable
from bcnet.bench.kept import Kept, finite
from bcnet.pipeline.finished import trained_supernets
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.search_inputs import scoring
from bcnet.plain import counted
from bcnet.progress import announce, progress_bar, say
from bcnet.runs import Run
from bcnet.space.width_space import Widths
from bcnet.training.distributed import connected
from bcnet.training.shared_work import Shared
from bcnet.width_search.scorer import Scorer, SupernetSide, score_of

SideScores = dict[str, list[float]]  # for each side its accuracy, loss and calibrated loss


@dataclass(frozen=True)
class Settings:
    """How settings are scored in a run's supernets."""

    scorer: Scorer

    @property
    def names(self) -> list[str]:
        """The names of the sides; "left 2" is that of a second supernet."""
        sides = len(self.scorer.space.rule.sides)
        return [
            f"{side.name} {n // sides + 1}" if n >= sides else side.name
            for n, side in enumerate(self.scorer.sides)
        ]

    def scores(self, widths: Widths) -> SideScores:
        """A setting's scores."""
        sides = zip(self.names, self.scorer.sides, strict=True)
        return {name: self._scores(side, widths) for name, side in sides}

    def _scores(self, side: SupernetSide, widths: Widths) -> list[float]:
        predictions = list(self.scorer.predictions(side, widths))
        plain, own = (
            score_of(predictions, self.scorer.task, calibrate=calibrate) for calibrate in (False, True)
        )
        return [plain.accuracy, round(plain.loss, 5), round(own.loss, 5)]

    def valid(self, value: Any) -> bool:
        """Whether a value read from a file has a setting's scores by all sides."""
        return isinstance(value, dict) and list(value) == self.names and all(map(_is_score, value.values()))


def settings_of_run(run: Run, problem: Problem, shared: bool) -> Settings:
    """How settings are scored in a run's supernets, in a process that helps the first one."""
    return Settings(scoring(problem, trained_supernets(run, problem), shared=shared))


def scores_of(
    kept: Kept, share: Shared[Settings, Widths, SideScores], table: BenchTable, index: list[int]
) -> dict[str, SideScores]:
    """Each setting's scores; those that a stopped run has found are reused."""
    maxima = share.own.scorer.space.largest()
    waiting = [i for i in index if table.key(i) not in kept.values]
    if kept.values and waiting:
        say(f"continuing with {counted(len(index) - len(waiting), 'setting')} scored")
    start = time.perf_counter()
    with progress_bar("scoring settings", len(waiting)) as advance:
        found = share.each(Widths(table.widths(i, maxima)) for i in waiting)
        for number, (i, scores) in enumerate(zip(waiting, found, strict=True), 1):
            kept.add(table.key(i), scores)
            if number == 1:
                each_s = (time.perf_counter() - start) / connected().size
                announce("scoring settings", each_s * len(waiting))
            advance("")
    return kept.values


def _is_score(value: Any) -> bool:
    match value:
        case [accuracy, loss, calibrated]:
            return finite(accuracy, most=1.0) and finite(loss) and finite(calibrated)
    return False
