"""Small networks that were made while training went on: group Fisher's, with weights of their own.

In: a project's trained network, limits. Out: for each limit a network, its tensors and score. Each is kept in
a sealed file as soon as it is finished, `pruned-N.safetensors`; the winner's becomes
`group-fisher.safetensors`, which later stages read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from bcnet.errors import ArtifactError
from bcnet.methods.group_fisher import FisherSettings, NormalisedBy, SteadyRecipe, prune_by_group_fisher
from bcnet.methods.limits import Limits
from bcnet.pipeline.problem import Project
from bcnet.pipeline.route import fine_tuning_rate
from bcnet.pipeline.teacher import objective_for
from bcnet.progress import announce, say
from bcnet.runs import MANIFEST, Run, write_file
from bcnet.sealed import seal_tensors, unseal_tensors
from bcnet.space.extract import tensors_of, with_state
from bcnet.space.subnet import State
from bcnet.space.width_space import Widths
from bcnet.training.loop import Recipe, seconds_to_fit, steps_an_epoch
from bcnet.width_search.inherit import Original
from bcnet.width_search.scorer import Score

PRUNED_FILE = "group-fisher.safetensors"
PRUNED = "pruned-*.safetensors"  # of a search that goes on
OWN_WEIGHTS = "group-fisher's own weights"
RATE = 0.1  # of fine-tuning's: published are 0.04 to 0.1 of the rate that a network was trained with
ROUNDS = 16  # of removals at least, where the training has as many steps
NEAR = 0.02  # a limit that is higher by so little needs no other network


@dataclass(frozen=True)
class PrunedNetwork:
    """A small network with its own batch-norm statistics, and the passes that went into it."""

    widths: Widths
    state: State
    score: Score
    passes: int
    limit_ms: float

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
    def unsealed(cls, path: Path, project: Project) -> "tuple[PrunedNetwork, Mapping[str, str]]":
        """It and its inputs from a file. Raises ValueError."""
        state, about = unseal_tensors(path)
        try:
            found = cls(
                project.space.check(Widths(about["widths"])),
                state,
                Score(float(about["accuracy"]), -float(about["loss"])),
                int(about["passes"]),
                float(about["limit_ms"]),
            )
            return found, dict(about["inputs"])
        except (KeyError, TypeError) as cause:
            raise ValueError(f"it is from another version: {cause}") from None


class PrunedNetworks:
    """The networks that were pruned from one trained network, each for a limit.

    `inputs` are all that they depend on; files of a stopped search are used again where these agree.
    """

    def __init__(
        self,
        project: Project,
        original: nn.Module,
        folder: Path,
        inputs: Mapping[str, str],
        by: NormalisedBy | None = None,
        *,
        distilled: bool = True,
    ) -> None:
        """`by` is what information is divided by, the configured where it is not given.

        With `distilled`, the networks learn from the configured teacher.
        """
        self._distilled = distilled
        self.project, self.original, self.folder = project, original, folder
        self.by: NormalisedBy = by or project.config.search.prune_by
        self.inputs = {**inputs, "pruning": f"{project.config.search.prune_epochs} {self.by}"}
        self.found: dict[Widths, PrunedNetwork] = {}
        for path in self.files:
            try:
                known, own = PrunedNetwork.unsealed(path, project)
            except ValueError as cause:
                say(f"{path}: {cause}; that network is pruned again")
                continue
            if own == self.inputs:
                self.found[known.widths] = known

    @property
    def files(self) -> list[Path]:
        """All that a stopped search continues from."""
        return sorted(self.folder.glob(PRUNED))

    @property
    def passes(self) -> int:
        """Over the training images, for all networks together."""
        return sum(own.passes for own in self.found.values())

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
        made = self._made(limits)
        self.found[made.widths] = made
        taken = {path.name for path in self.files}
        name = next(n for i in range(len(taken) + 1) if (n := f"pruned-{i}.safetensors") not in taken)
        write_file(self.folder / name, made.sealed(self.inputs))
        return made

    def _made(self, limits: Limits) -> PrunedNetwork:
        project, config = self.project, self.project.config
        model = with_state(project.model, limits.space, tensors_of(self.original))
        recipe = SteadyRecipe.of(config, config.search.prune_epochs, RATE * fine_tuning_rate(project))
        steps = recipe.epochs * steps_an_epoch(project.data, recipe)
        own = FisherSettings()
        settings = FisherSettings(max(1, min(own.interval, steps // ROUNDS)), self.by)
        objective = objective_for(project, self.original, model, recipe) if self._distilled else None
        what = f"removing channels while training, down to {limits.limit_ms:.4g} ms"
        announce(what, seconds_to_fit(model, project.data, recipe, objective))
        pruned = prune_by_group_fisher(model, limits, project.data, recipe, settings, objective)
        scored = self._original.scored(OWN_WEIGHTS, pruned.state)
        return PrunedNetwork(pruned.widths, scored.state, scored.score, pruned.passes, limits.limit_ms)

    @cached_property
    def _original(self) -> Original:
        config = self.project.config
        recipe = Recipe.of(config, epochs=1, learning_rate=1.0)
        images = config.search.recalibration_images
        return Original(self.original, self.project.space, self.project.data, recipe, images)


def pruned_by_search(run: Run, project: Project) -> dict[Widths, PrunedNetwork]:
    """The network that a finished search pruned, by its widths; none where it was found in another way."""
    stage = run.stage("search")
    if not stage.path(MANIFEST).exists():
        return {}
    outputs: dict[str, Any] = stage.manifest()["outputs"]
    if PRUNED_FILE not in outputs:
        return {}
    path = stage.path(PRUNED_FILE)
    try:
        found, _ = PrunedNetwork.unsealed(path, project)
    except ValueError as cause:
        raise ArtifactError(f"{path} cannot be read ({cause}); run `{stage.command}` again") from None
    return {found.widths: found}
