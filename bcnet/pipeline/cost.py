"""What a configuration costs on this machine, stage by stage. In: short trials. Out: seconds, memory, why.

One function a stage, each a number of units of work times the seconds of one. A quiet machine is assumed: no
measurement is repeated because others disagreed, and no search needs a further round.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from bcnet.measure.table_build import PASSES
from bcnet.pipeline.alternating import ALTERNATIONS
from bcnet.pipeline.compare_further import SHARE_OF_A_ROUND
from bcnet.pipeline.compare_uniform import STEPS
from bcnet.pipeline.original import is_given
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.repeated import FEWEST
from bcnet.pipeline.route import allocations, on_trained_network
from bcnet.pipeline.search_inputs import SHARE_OF_SEARCH
from bcnet.pipeline.trained_scores import TABLE_CHOICES, TABLE_IMAGES, spread
from bcnet.pipeline.trial import Trial, Unit
from bcnet.pipeline.tuning import inherits
from bcnet.pipeline.verify import AT_LEAST
from bcnet.space.importance import CRITERIA
from bcnet.training.distributed import connected
from bcnet.training.iterative import BATCHES, ROUNDS
from bcnet.width_search.inherit import ITERATIVE

CONFIRMED = 2  # networks that are measured again: the winner of an evolution, beside the original
SOURCES = len(CRITERIA) + 1  # of what a small network inherits from a trained one


@dataclass(frozen=True)
class Part:
    """`count` units of work, called `what`; `unit` tries one, unless there are none."""

    count: float
    what: str
    unit: Callable[[], Unit]


@dataclass(frozen=True)
class Cost:
    """A stage's estimated seconds, and bytes of memory at its peak, on a GPU separately.

    None of them is known where the stage needs a device that is not here. `basis` is what the estimate is of.
    """

    stage: str
    seconds: float | None
    memory: int | None
    gpu_memory: int | None
    basis: str

    @classmethod
    def of(cls, stage: str, *parts: Part) -> "Cost":
        """The cost of all parts, one after the other."""
        tried = [(part, part.unit()) for part in parts if part.count]
        return cls(
            stage,
            round(sum(part.count * unit.seconds for part, unit in tried), 3),
            max((unit.memory for _, unit in tried), default=0),
            max((unit.gpu_memory for _, unit in tried), default=0),
            ", ".join(f"{part.count:,.0f} {part.what} of {_each(unit)}" for part, unit in tried)
            or "nothing to do",
        )


def _each(unit: Unit) -> str:
    return f"{unit.seconds:.2g} s" if unit.seconds >= 0.1 else f"{1e3 * unit.seconds:.2g} ms"


def train(trial: Trial) -> Cost:
    """Stage 1: supernets, or the network itself."""
    problem, config = trial.problem, trial.problem.config.train
    if not on_trained_network(problem):
        steps = config.supernets * config.epochs * trial.steps
        return Cost.of("train", Part(steps, "steps", lambda: trial.supernet_step))
    return Cost.of(
        "train",
        Part(0 if is_given(problem) else config.epochs, "epochs", lambda: trial.full_epoch),
        Part(1, "evaluation", lambda: trial.test),
    )


def build_lut(trial: Trial) -> Cost:
    """Stage 2: the layers that the table lacks."""
    parts = []
    for own in trial.devices:
        networks, subnets = own.missing
        parts += [
            Part(PASSES * networks, f"profiles{own.on}", own.profiling),
            Part(PASSES * subnets, f"whole networks{own.on}", own.timing(0.1)),
        ]
    return Cost.of("build-lut", *parts)


def search(trial: Trial) -> Cost:
    """Stage 3: scores, measurements of whole networks, and on a trained network the trials of candidates."""
    problem, config = trial.problem, trial.problem.config.search
    methods = allocations(problem)
    scores, networks = config.population * (config.generations + 1), config.measured + CONFIRMED
    begun = epochs = 0
    if methods:
        few, statistics = min(TABLE_IMAGES, len(trial.data.val)), config.recalibration_images
        narrowed = sum(len(spread(group.choices, TABLE_CHOICES)) - 1 for group in trial.space.groups)
        share = (statistics + few) / (statistics + len(trial.data.val))
        scores = round(narrowed * share) + len(CRITERIA) + len(methods)
        networks = config.measured + len(methods)
        if config.trials and not problem.config.slice.from_scratch:
            begun = config.trials + len(methods) - 1
            scores += begun * SOURCES
            epochs = (config.trials + 1) * config.trial_epochs
    several = len(problem.precisions)  # they share the scores of networks that methods propose
    scores, epochs = scores if methods else several * scores, several * epochs
    measured = several * ALTERNATIONS * (networks + 1)
    return Cost.of(
        "search",
        Part(scores, "scores", lambda: trial.score),
        *_measurements(trial, measured, SHARE_OF_SEARCH),
        Part(begun * _rounds(problem), "batches of importance", lambda: trial.importance),
        Part(epochs, "epochs of trials", lambda: trial.tuned_epoch),
    )


def slice(trial: Trial) -> Cost:
    """Stage 4: fine-tuning."""
    config, trained = trial.problem.config.slice, on_trained_network(trial.problem)
    return Cost.of(
        "slice",
        Part(SOURCES if trained else 1, "scores", lambda: trial.score),
        Part(_rounds(trial.problem) if trained else 0, "batches of importance", lambda: trial.importance),
        Part(
            config.epochs,
            "epochs",
            lambda: trial.small_epoch if config.from_scratch else trial.tuned_epoch,
        ),
        Part(2, "evaluations", lambda: trial.test),
    )


def export(trial: Trial) -> Cost:
    """Stage 5: the ONNX file."""
    return Cost.of("export", *(Part(1, f"export{own.on}", own.exporting) for own in trial.devices))


def verification(trial: Trial) -> Cost:
    """What follows in the same stage: the file on all test images, beside PyTorch, and timed."""
    return Cost.of(
        "verify",
        *(Part(1, f"evaluation of the file{own.on}", own.testing_file) for own in trial.devices),
        Part(2, "evaluations", lambda: trial.test),
        *_measurements(trial, 2 * AT_LEAST, 1.0),
    )


def comparison(trial: Trial) -> Cost:
    """The comparison: networks that are trained beside the found one, and all of them timed."""
    problem, config = trial.problem, trial.problem.config.slice
    full, small, networks, at_once = 0, 0, 1, 1
    if inherits(problem):
        small, networks = config.epochs, 3 if is_given(problem) else 2
    elif problem.fresh.from_scratch:
        full, networks = problem.winner_passes, 3 if config.from_scratch else 4
        small = (networks - 2) * full
        at_once = min(networks - 1, connected().size)
    return Cost.of(
        "compare",
        Part(full / at_once, "epochs of the full network", lambda: trial.full_epoch),
        Part(
            small / at_once,
            "epochs of small networks",
            lambda: trial.tuned_epoch if inherits(problem) else trial.small_epoch,
        ),
        Part(_rounds(problem) if inherits(problem) else 0, "batches of importance", lambda: trial.importance),
        *_measurements(trial, 2 * math.ceil(math.log2(STEPS)), 0.1, "measurements of uniform networks"),
        *_measurements(trial, FEWEST * networks, SHARE_OF_A_ROUND),
        *(Part(networks, f"exports{own.on}", own.exporting) for own in trial.measured_on),
        Part(networks, "evaluations of files", lambda: trial.test_of_file),
    )


def _measurements(trial: Trial, count: float, share: float, what: str = "measurements") -> list[Part]:
    """Measurements of `count` whole networks on each device where they can be measured."""
    return [Part(count, f"{what}{own.on}", own.timing(share)) for own in trial.measured_on]


def _rounds(problem: Problem) -> int:
    """Batches of the importance that is calculated again while channels are removed, for one network."""
    return ROUNDS * BATCHES if problem.config.slice.inherit in ("auto", ITERATIVE) else 0


def _nothing(trial: Trial) -> None:
    """Needs no device."""


def _any_away(trial: Trial) -> str | None:
    return next((own.away for own in trial.devices if own.away), None)


def _first_away(trial: Trial) -> str | None:
    return trial.away


# The cost of each stage, and why that cannot be known: it needs a device that is not here.
STAGES: dict[str, tuple[Callable[[Trial], Cost], Callable[[Trial], str | None]]] = {
    "train": (train, _nothing),
    "build-lut": (build_lut, _any_away),
    "search": (search, _nothing),
    "slice": (slice, _nothing),
    "export": (export, _nothing),
    "verify": (verification, _nothing),
    "compare": (comparison, _first_away),
}


def costs(problem: Problem) -> list[Cost]:
    """The cost of every stage, by one set of trials."""
    trial = Trial(problem)
    return [
        Cost(name, None, None, None, reason) if (reason := unknown(trial)) else function(trial)
        for name, (function, unknown) in STAGES.items()
    ]
