"""What pre-processing in the delivered file costs, and which stages depend on it.

In: a problem. Out: its milliseconds on the device, which are subtracted from the network's budget.
"""

from dataclasses import asdict

from bcnet.measure.network_latency import measure_network
from bcnet.pipeline.finished import Chosen
from bcnet.pipeline.further_devices import Held
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.repeated import measured_alternately
from bcnet.pipeline.results import VerifyReport
from bcnet.progress import working
from bcnet.runs import digest


def preprocessing_ms(problem: Problem) -> float:
    """The time that pre-processing adds to the original network's file; both are measured alternately."""
    files = {
        "with pre-processing": problem.delivered_original(),
        "without": problem.graph.variant(problem.space.original()),
    }
    with working(f"measuring what pre-processing adds to the original network{problem.on_device}"):
        found = measured_alternately(
            lambda name: measure_network(files[name], problem.profile, quiet=True), dict.fromkeys(files)
        )
    with_it, without = (own.fastest.median_ms for own in found.values())
    return round(max(with_it - without, 0.0), 5)


def preprocessing_input(problem: Problem) -> dict[str, str]:
    """What manifests record of it; nothing if there is none, so that results without it stay valid."""
    own = problem.preprocessing
    return {"pre-processing": digest(asdict(own))} if own else {}


def with_added(report: VerifyReport, chosen: Chosen | Held) -> VerifyReport:
    """A report of a file with pre-processing, with the time that the search subtracted from the budget."""
    if report.preprocess is None:
        return report
    added = report.preprocess.model_copy(update={"added_ms": chosen.budget.added_ms or None})
    return report.model_copy(update={"preprocess": added})
