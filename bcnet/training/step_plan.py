"""Which paths each training step of a supernet trains.

In: `train.step`, and the settings beside it. Out: a `StepPlan`.
"""

from dataclasses import dataclass, replace

from bcnet.config import TrainConfig
from bcnet.errors import ConfigError
from bcnet.registry import SUPERNETS

FEWEST = 2  # images of a subnet's part of a batch: of one, batch norms have no variance


@dataclass(frozen=True)
class StepPlan:
    """Which paths a step trains beside those of the drawn widths, and whether it distils in place.

    The sandwich rule and in-place distillation of US-Nets (ICCV 2019, sections 3.3 and 3.5): the widest path
    comes first and learns from the labels, all others learn from its outputs (`distilled`). With
    `alternating`, drawn widths run on one side only, left and right step by step: twice the steps for as many
    passes. `draws` widths are drawn for each step; with
    `complementary`, widths are followed by their complements. With `interleaved`, every second step, or with
    `complementary` every third one, trains the widest path alone, as BCNet's released trainer does. With
    `parallel`, all paths of a step share the batch: each has its part of it (PSE-Net). With `cuda_graph`, a
    GPU trains by a recorded graph where that is right and faster.
    """

    alternating: bool = False
    widest: bool = False
    narrowest: bool = False
    distilled: bool = False
    interleaved: bool = False
    draws: int = 1
    complementary: bool = False
    parallel: bool = False
    cuda_graph: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> "StepPlan":
        """That of the configuration. Raises ConfigError where the method cannot be trained by such steps."""
        plan = replace(
            STEPS[config.step],
            draws=config.draws,
            complementary=config.complementary,
            cuda_graph=config.cuda_graph,
        )
        rule = SUPERNETS[config.method]
        if config.complementary and not rule.complements:
            having = " or ".join(name for name in SUPERNETS.own() if SUPERNETS[name].complements)
            raise ConfigError(
                f"train.complementary trains the complements of widths, which {config.method} does not have: "
                f"leave it out, or set train.method to {having}"
            )
        if not rule.parallel:
            return plan
        if plan.distilled:
            raise ConfigError(
                f'train.step = "{config.step}" needs the outputs of the widest path for the whole batch, but '
                f"with {config.method} each path has a part of its own: use plain or sandwich"
            )
        plan = replace(plan, parallel=True, draws=config.parallel)
        plan.check_batch(config.batch_size, len(rule.sides))
        return plan

    def check_batch(self, size: int, sides: int, images: int | None = None, processes: int = 1) -> None:
        """Raises ConfigError where the paths of a step cannot share a batch of this size.

        There may be fewer `images` to train on, and each of several processes has a part of the batch.
        """
        parts, all_images = self.paths(sides), size if images is None else min(size, images)
        if not self.parallel or all_images // processes >= FEWEST * parts:
            return
        batch = f"a batch of {all_images} images" if all_images == size else f"{all_images} training images"
        each = f" in each of {processes} processes" if processes > 1 else ""
        remedy = " or raise train.batch_size" if all_images == size else ""
        raise ConfigError(
            f"{batch} cannot be shared by {parts} subnets{each}, each of which needs at least {FEWEST}: "
            f"lower train.parallel{remedy}"
        )

    def paths(self, sides: int, draws: int | None = None) -> int:
        """Paths of a step that draws so many widths, the plan's own number if not given."""
        drawn = self.draws if draws is None else draws
        return drawn * (1 if self.alternating else sides) + self.widest + self.narrowest

    def passes(self, sides: int) -> float:
        """Forward and backward passes over the batch of a step, on average over all steps."""
        if self.parallel:
            return 1.0
        return (self._drawing * self.paths(sides) + 1) / self.cycle if self.interleaved else self.paths(sides)

    def drawing(self, number: int) -> int | None:
        """Which of the steps that draw widths step `number` is; None if it trains the widest path alone."""
        if not self.interleaved:
            return number
        cycle, place = divmod(number, self.cycle)
        return cycle * self._drawing + place if place < self._drawing else None

    @property
    def _drawing(self) -> int:
        """The number of consecutive steps that draw widths: a width and its complement are not separated."""
        return 2 if self.complementary and self.draws == 1 else 1

    @property
    def cycle(self) -> int:
        """The number of steps after which an interleaved training begins again with steps that draw."""
        return self._drawing + 1


STEPS = {
    "plain": StepPlan(),
    "alternating": StepPlan(alternating=True),
    "sandwich": StepPlan(widest=True, narrowest=True),
    "distilled": StepPlan(widest=True, distilled=True),
    "us-nets": StepPlan(widest=True, narrowest=True, distilled=True),
    "interleaved": StepPlan(interleaved=True),
}
