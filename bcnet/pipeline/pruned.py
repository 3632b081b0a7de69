"""Small networks of a method that trains while it removes channels, with weights of their own.

In: a problem's trained network, limits. Out: for each limit a network, its tensors and score. Each is kept in
a sealed file as soon as it is finished, `pruned-N.safetensors`; the winner's becomes `METHOD.safetensors`,
which later stages read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from bcnet.allocation.limits import Limits
from bcnet.allocation.problem import PruningProblem, TrainedNetwork
from bcnet.errors import ArtifactError
from bcnet.pipeline.configured_methods import (
    called,
    check_within,
    settings_for,
    settings_recorded,
    wrong_result,
)
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.route import fine_tuning_rate
from bcnet.pipeline.teacher import objective_for
from bcnet.plain import milliseconds
from bcnet.progress import announce, say
from bcnet.registry import Method
from bcnet.runs import MANIFEST, Run, write_file
from bcnet.sealed import seal_tensors, unseal_tensors
from bcnet.space.extract import tensors_of, with_state
from bcnet.space.subnet import State
from bcnet.space.width_space import Widths
from bcnet.training.durations import seconds_to_fit
from bcnet.training.recipe import Recipe
from bcnet.width_search.inherit import Original
from bcnet.width_search.scorer import Score

PRUNED = "pruned-*.safetensors"  # of a search that goes on
RATE = 0.1  # of fine-tuning's: published are 0.04 to 0.1 of the rate that a network was trained with
NEAR = 0.02  # a limit that is higher by so little needs no other network


@dataclass(frozen=True)
class PrunedNetwork:
    """A method's small network with its own batch-norm statistics, and the passes that went into it."""

    method: str
    widths: Widths
    state: State
    score: Score
    passes: int
    limit_ms: float

    @property
    def source(self) -> str:
        """What its weights are called."""
        return own_weights(self.method)

    def sealed(self, inputs: Mapping[str, str]) -> bytes:
        """It as a file."""
        about = {
            "inputs": dict(inputs),
            "widths": list(self.widths),
            "accuracy": self.score.accuracy,
            "loss": self.score.loss,
            "passes": self.passes,
            "limit_ms": self.limit_ms,
        }
        return seal_tensors({name: t.contiguous() for name, t in self.state.items()}, about)

    @classmethod
    def unsealed(cls, path: Path, problem: Problem, method: str) -> "tuple[PrunedNetwork, Mapping[str, str]]":
        """A method's network and its inputs from a file. Raises ValueError."""
        state, about = unseal_tensors(path)
        try:
            found = cls(
                method,
                problem.space.check(Widths(about["widths"])),
                state,
                Score(float(about["accuracy"]), -float(about["loss"])),
                int(about["passes"]),
                float(about["limit_ms"]),
            )
            return found, dict(about["inputs"])
        except (KeyError, TypeError) as cause:
            raise ValueError(f"it is from another version: {cause}") from None


def own_weights(method: str) -> str:
    """What the weights are called that a method gives its networks."""
    return f"{method}'s own weights"


class PrunedNetworks:
    """The networks that a method pruned from one trained network, each for a limit.

    `inputs` are all that they depend on; files of a stopped search are used again where these agree.
    """

    def __init__(
        self,
        method: Method,
        problem: Problem,
        original: nn.Module,
        folder: Path,
        inputs: Mapping[str, str],
        *,
        distilled: bool = True,
    ) -> None:
        """With `distilled`, the networks learn from the configured teacher."""
        self._distilled = distilled
        self.method, self.problem, self.original, self.folder = method, problem, original, folder
        recorded = settings_recorded(method, problem.config.search)
        self.inputs = {**inputs, "pruning": " ".join(map(str, recorded))}
        self.found: dict[Widths, PrunedNetwork] = {}
        self.passes = 0  # over the training images, for all networks together
        for path in self.files:
            try:
                known, own = PrunedNetwork.unsealed(path, problem, method.name)
            except ValueError as cause:
                say(f"{path}: {cause}; that network is pruned again")
                continue
            if own == self.inputs:
                self._add(known)

    @property
    def files(self) -> list[Path]:
        """All that a stopped search continues from."""
        return sorted(self.folder.glob(PRUNED))

    def within(self, limits: Limits) -> PrunedNetwork:
        """The network for these limits: one that was made for about the same, else made now.

        For each limit the original is pruned from the start: what was removed does not come back. Raises
        BudgetError where no network meets the limits.
        """
        limits.fastest()
        for known in self.found.values():
            fits = bool(limits.fit(limits.index(known.widths)[None])[0])
            if fits and limits.limit_ms <= known.limit_ms * (1 + NEAR):
                return known
        made = self._add(self._made(limits))
        taken = {path.name for path in self.files}
        name = next(n for i in range(len(taken) + 1) if (n := f"pruned-{i}.safetensors") not in taken)
        write_file(self.folder / name, made.sealed(self.inputs))
        return made

    def _add(self, made: PrunedNetwork) -> PrunedNetwork:
        """Count a network's passes; of several with the same widths the first stays: its score is in use."""
        self.passes += made.passes
        first = self.found.get(made.widths, made)
        self.found[made.widths] = replace(first, limit_ms=max(first.limit_ms, made.limit_ms))
        return self.found[made.widths]

    def _made(self, limits: Limits) -> PrunedNetwork:
        problem, config = self.problem, self.problem.config
        model = with_state(problem.model, limits.space, tensors_of(self.original))
        recipe = Recipe.of(config, config.search.prune_epochs, RATE * fine_tuning_rate(problem))
        objective = objective_for(problem, self.original, model, recipe) if self._distilled else None
        what = f"removing channels while training, down to {milliseconds(limits.limit_ms)} ms"
        announce(what, seconds_to_fit(model, problem.data, recipe, objective))
        settings = settings_for(self.method, config.search)
        asked = PruningProblem(model, limits, problem.data, recipe, objective, settings)

        def checked(found: Any) -> TrainedNetwork:
            if not isinstance(found, TrainedNetwork):
                raise wrong_result(self.method, f"a {type(found).__name__}, not a TrainedNetwork")
            check_within(self.method, limits.space.check(found.widths), limits)
            return found

        pruned: TrainedNetwork = called(self.method, asked, checked)
        name = self.method.name
        scored = self._original.scored(own_weights(name), pruned.state)
        return PrunedNetwork(name, pruned.widths, scored.state, scored.score, pruned.passes, limits.limit_ms)

    @cached_property
    def _original(self) -> Original:
        config = self.problem.config
        recipe = Recipe.of(config, epochs=1, learning_rate=1.0)
        images = config.search.recalibration_images
        return Original(self.original, self.problem.space, self.problem.data, recipe, images)


def pruned_by_search(run: Run, problem: Problem) -> dict[Widths, PrunedNetwork]:
    """The network that a finished search pruned, by its widths; none where it was found in another way."""
    stage = run.stage("search")
    if not stage.path(MANIFEST).exists():
        return {}
    outputs: dict[str, Any] = stage.manifest()["outputs"]
    name = next((name for name in outputs if name.endswith(".safetensors")), None)
    if name is None:
        return {}
    path = stage.path(name)
    try:
        found, _ = PrunedNetwork.unsealed(path, problem, path.stem)
    except ValueError as cause:
        raise ArtifactError(f"{path} cannot be read ({cause}); run `{stage.command}` again") from None
    return {found.widths: found}
