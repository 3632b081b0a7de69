"""How the networks to compare with are trained from fresh weights. In: widths, a recipe. Out: a network.

Until a comparison is finished, its folder has a checkpoint for each network, and the uniform one's widths.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bcnet.pipeline.problem import Problem
from bcnet.pipeline.quantisation import QuantisationAware, through_integers
from bcnet.progress import say
from bcnet.sealed import SealedLines
from bcnet.space.supernet import cut
from bcnet.space.width_space import Widths
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe

UNIFORM_FILE = "uniform.jsonl"  # its widths depend on measurements: a continued run must not choose others


@dataclass(frozen=True)
class Kept:
    """What a comparison keeps in its folder until it is finished."""

    folder: Path
    made_from: Mapping[str, str]

    def checkpoint(self, name: str) -> CheckpointFile:
        """The file that the training of a network continues from."""
        file = f"checkpoint-{name.replace(',', '').replace(' ', '-')}.safetensors"
        return CheckpointFile(self.folder / file, {**self.made_from, "network": name})

    def uniform(self, problem: Problem) -> Widths | None:
        """The uniform network that was chosen before; None where there is none, or not for this."""
        found = self._uniform()
        if found.dropped:
            say(f"{found.path}: {found.dropped}; the uniform network is chosen again")
        return problem.space.check(Widths(found.values[-1])) if found.values else None

    def keep_uniform(self, widths: Widths) -> None:
        """Remember the uniform network."""
        self._uniform().append(list(widths))

    def _uniform(self) -> SealedLines:
        return SealedLines(self.folder / UNIFORM_FILE, self.made_from)

    @property
    def files(self) -> list[Path]:
        """All files that are obsolete once the comparison is finished."""
        return [*self.folder.glob("checkpoint-*.safetensors"), self.folder / UNIFORM_FILE]


@dataclass(frozen=True)
class FromScratch:
    """How networks are trained from fresh weights; with `kept`, an interrupted training continues.

    At INT8, `integers` passes through integers follow.
    """

    problem: Problem
    recipe: Recipe
    kept: Kept | None
    integers: int = 0

    def fresh(self, widths: Widths) -> nn.Module:
        """The network of these widths, not trained yet."""
        return cut(self.problem.fresh_model(), self.problem.space, widths)

    def __call__(self, name: str, widths: Widths) -> nn.Module:
        """The network of these widths, trained."""
        network, checkpoint = self.fresh(widths), self.kept.checkpoint(name) if self.kept else None
        fit_network(network, self.problem.data, self.recipe, f"training: {name}", checkpoint=checkpoint)
        if not self.integers:
            return network
        aware, what = QuantisationAware(self.problem), f"training through integers: {name}"
        return aware(network, what, self.integers, checkpoint and through_integers(checkpoint)).network

    def to_its_end(self, named: tuple[str, Widths]) -> None:
        """Train a network, so that its checkpoint holds it."""
        self(*named)
