"""What a supernet begins with. In: a network, trained or not. Out: its tensors, important channels first."""

from collections.abc import Sequence

from torch import Tensor, nn

from bcnet.pipeline.problem import Problem
from bcnet.progress import say
from bcnet.space.importance import channel_order
from bcnet.space.subnet import State
from bcnet.space.widen import supernet_state
from bcnet.training.gradient_importance import measured_importances
from bcnet.training.recipe import Recipe
from bcnet.width_search.inherit import Original, inherited
from bcnet.width_search.scorer import loss_of


def first_state(problem: Problem, model: nn.Module, recipe: Recipe) -> State:
    """The tensors of `model`, ordered as `train.channel_order` says; trained ones by the best criterion."""
    space, by = problem.space, problem.config.train.channel_order
    measured = order_is_measured(problem)
    if by == "as-is" and not measured:
        return supernet_state(model, space, recipe.seed)
    kept = [group.name for group in space.groups if group.ordered]
    if kept:
        say(f"channels keep their order in {', '.join(kept)}: a layer depends on their positions")
    if measured or by == "as-is":
        importance = best_importance(problem, model, recipe)
    else:
        importance = measured_importances(model, space, problem.data, recipe, (by,))[by]
    return supernet_state(model, space, recipe.seed, order=channel_order(space, importance), copies=True)


def order_is_measured(problem: Problem) -> bool:
    """Whether the criterion that orders channels is chosen by measuring: of trained weights, unless named."""
    named = "channel_order" in problem.config.train.model_fields_set
    return not named and problem.trained and not problem.untrained_layers


def best_importance(problem: Problem, model: nn.Module, recipe: Recipe) -> Sequence[Tensor]:
    """The importance of channels (channels,) by the criterion of the lowest loss at half of all widths."""
    images = problem.config.search.recalibration_images
    original = Original(model, problem.space, problem.data, recipe, images)
    importances = original.importances()
    found = inherited(original, problem.space.uniform(0.5), importances)
    losses = ", ".join(f"{own.source} {loss_of(own.score):.3f}" for own in found)
    say(
        f"paths begin with the most important channels by {found[0].source}, the best of {len(found)} "
        f"criteria at half of all widths: {losses}"
    )
    return next(own for by, own in importances.items() if by == found[0].source)
