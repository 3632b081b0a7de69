"""The trained network that small ones come from. In: a run. Out: its tensors, and it as a network.

Where no supernet is trained, the first stage leaves it in `train/original.safetensors`. Small networks are
compared with it.
"""

from torch import Tensor, nn

from bcnet.errors import ArtifactError
from bcnet.models.finite import not_finite
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import AccuracyLost
from bcnet.pipeline.route import on_trained_network
from bcnet.progress import working
from bcnet.runs import Run
from bcnet.sealed import unseal_tensors
from bcnet.space.extract import tensors_of, with_state
from bcnet.space.supernet import cut
from bcnet.width_search.scorer import evaluate_network

ORIGINAL_FILE = "original.safetensors"


def state_of_original(problem: Problem) -> str:
    """What the original's weights are: "given", "head trained" in the first stage, or all "trained" there."""
    if not on_trained_network(problem) or problem.narrow is not None or is_given(problem):
        return "given"
    return "head trained" if problem.trained else "trained"


def is_given(problem: Problem) -> bool:
    """Whether the network is given with all its weights; a wider one than the given is not trained yet."""
    return problem.trained and not problem.untrained_layers and problem.narrow is None


def trained_state(run: Run, problem: Problem) -> dict[str, Tensor]:
    """The tensors that the first stage left, as wide as the space. Raises ArtifactError."""
    stage = run.stage("train")
    stage.require(problem.inputs())
    path = stage.path(ORIGINAL_FILE)
    if not path.exists():
        raise ArtifactError(f"{stage.folder} holds a supernet, not the network; run `{stage.command}` again")
    try:
        tensors, _ = unseal_tensors(path)
    except ValueError as cause:
        raise ArtifactError(f"{path} cannot be read ({cause}); run `{stage.command}` again") from None
    own = tensors_of(problem.model)
    wrong = next(
        (n for n, t in own.items() if tensors.get(n) is None or tensors[n].shape != t.shape), None
    ) or not_finite(tensors, {name for name, _ in problem.model.named_parameters()})
    if wrong is not None:
        raise ArtifactError(f"{path}: '{wrong}' does not fit; run `{stage.command}` again")
    return tensors


def trained_network(run: Run, problem: Problem) -> nn.Module | None:
    """The network that a small one may learn from, in eval mode; None where no weights are trained."""
    space = problem.space.without_extra()
    if on_trained_network(problem):
        return with_state(problem.model, space, trained_state(run, problem)).eval()
    return given_network(problem)


def original_network(run: Run, problem: Problem) -> nn.Module | None:
    """The network that results are compared with: as it was given, or trained in the first stage."""
    return trained_network(run, problem) if problem.narrow is None else given_network(problem)


def accuracy_lost(run: Run, problem: Problem, accuracy: float) -> AccuracyLost | None:
    """What a small network of this accuracy on the test images loses; None without trained weights."""
    original = original_network(run, problem)
    if original is None:
        return None
    with working("counting the original network's accuracy on the test images"):
        own = evaluate_network(original, problem.data, problem.data.test, problem.task).accuracy
    return AccuracyLost(
        accuracy=round(own, 6), state=state_of_original(problem), accuracy_lost=round(own - accuracy, 6)
    )


def given_network(problem: Problem) -> nn.Module | None:
    """The network as it was given, in eval mode; None where its weights are not trained, or not all."""
    if not problem.trained or problem.untrained_layers:
        return None
    return cut(problem.model, problem.space, problem.space.original()).eval()
