"""Train a binary network in two steps, from a teacher alone (ReActNet, arXiv 2003.03488).

In: a network with binary layers (`models/binary.py`), a teacher, training images. Out: the trained network.
In the first step only activations are binary; the second begins from its weights and makes these binary, too,
without weight decay. Layers that are real in the network stay real. The loss is the divergence of the class
probabilities from the teacher's; labels take no part. A training that was killed continues in either step.
"""

from dataclasses import replace
from hashlib import sha256

from torch import nn

from bcnet.data.image_data import ImageData
from bcnet.errors import TrainingError
from bcnet.models.binary import BinaryConv2d, set_binary
from bcnet.models.content import network_content
from bcnet.progress import part_of
from bcnet.runs import digest
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.distill import Distillation
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe

# Each step, on ImageNet. Published rates fall after each epoch, these after each batch.
PUBLISHED = Recipe(
    epochs=128,
    learning_rate=1.25e-3,
    optimizer="adam",
    rate_decay="linear",
    batch_size=256,
    weight_decay=1e-5,
    warmup_epochs=0.0,
)


def train_in_two_steps(
    model: nn.Module,
    teacher: nn.Module,
    data: ImageData,
    recipe: Recipe = PUBLISHED,
    *,
    checkpoint: CheckpointFile | None = None,
) -> tuple[list[float], list[float]]:
    """Train a network in place, for `recipe.epochs` in each step.

    Returns the mean losses of the epochs of each step that were run. Afterwards the network is binary, in
    eval mode, on the CPU.

    With a `checkpoint`, a training that was killed continues, as `fit_network` says, if it begins again with
    the same network, teacher, recipe and what the checkpoint is `made_from`, such as the data. Each step has
    a file of its own (see `of_step`); a log is not written.

    Raises TrainingError where the network has no binary layers, or its outputs do not fit the teacher's.
    """
    if not any(isinstance(module, BinaryConv2d) and not module.real for module in model.modules()):
        raise TrainingError(
            f"{type(model).__name__} has no binary layers (bcnet.models.binary) to train in two steps"
        )
    # The divergence at a temperature of one differs from the published cross entropy by the teacher's own
    # entropy.
    key = "" if checkpoint is None else _digest(teacher)
    distillation = Distillation(teacher, temperature=1.0, weight=1.0, key=key, setting="the teacher")
    curves = []
    for number, weights in enumerate((False, True), 1):
        set_binary(model, activations=True, weights=weights)
        own = replace(recipe, weight_decay=0.0) if weights else recipe
        objective = distillation.objective(model, own, data.example(2))
        what = f"step {number} of 2, {'binary' if weights else 'real'} weights"
        file = None if checkpoint is None else of_step(checkpoint, number, own, model)
        with part_of(number - 1, 2):
            curves.append(fit_network(model, data, own, what, objective=objective, checkpoint=file))
    return curves[0], curves[1]


def of_step(checkpoint: CheckpointFile, number: int, recipe: Recipe, begun: nn.Module) -> CheckpointFile:
    """The checkpoint of one of the steps, 1 or 2, which begins with this network: NAME-step-1.safetensors.

    A step that is done continues after its last epoch, and so gives the next one the same beginning.
    """
    path = checkpoint.path.with_stem(f"{checkpoint.path.stem}-step-{number}")
    settings = {name: own for name, own in vars(recipe).items() if name not in ("device", "task")}
    made_from = {**checkpoint.made_from, "recipe": digest(settings), "begun": _digest(begun)}
    return replace(checkpoint, path=path, made_from=made_from, log=None)


def _digest(network: nn.Module) -> str:
    found = sha256()
    for piece in network_content(network):
        found.update(piece)
    return found.hexdigest()[:16]
