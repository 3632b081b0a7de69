"""Stage 1 without a supernet: the network itself, trained as far as its weights are not.

In: a problem. Out: `train/original.safetensors`, from which widths are found, weights inherited and small
networks distilled. Given weights are taken as they are; a network with a new head, or without weights, is
trained first.
"""

import time

from torch import nn

from bcnet.models.weights import listed
from bcnet.pipeline.accuracy import accuracy_interval
from bcnet.pipeline.inherit import check_inheritance
from bcnet.pipeline.kept import warn_of_verified
from bcnet.pipeline.original import ORIGINAL_FILE, is_given
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import NetworkSummary
from bcnet.pipeline.teacher import objective_for
from bcnet.pipeline.training_precision import announced
from bcnet.plain import counted
from bcnet.progress import say, working
from bcnet.runs import Run
from bcnet.sealed import seal_tensors
from bcnet.space.extract import tensors_of, with_state
from bcnet.space.supernet import cut
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.durations import seconds_to_fit
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe, training_digest
from bcnet.width_search.scorer import evaluate_network

CHECKPOINT = "checkpoint-original.safetensors"
KNOWN = 0.1  # by which the accuracy on images of the training exceeds that on others
FINE_TUNING_RATE = 0.01  # of a network whose weights are trained, unless train.learning_rate is given


def network_inputs(problem: Problem) -> dict[str, str]:
    """What this stage's manifest records in place of a supernet's training settings."""
    given = "given" if is_given(problem) else training_digest(problem.config)
    return {**problem.inputs(), "network": given}


def train_network(run: Run, problem: Problem) -> NetworkSummary:
    """Train the network itself, if it has to be, and save it."""
    config, stage, inputs = problem.config, run.stage("train"), network_inputs(problem)
    given = is_given(problem)
    model = with_state(problem.model, problem.space.without_extra(), tensors_of(problem.model))
    recipe = Recipe.of(config, config.train.epochs, first_rate(problem))
    checkpoint = CheckpointFile(stage.path(CHECKPOINT), inputs)
    say(f"data: {problem.data}")
    _check_later_stages(problem, model)
    warn_of_verified(run, "train")
    start = time.perf_counter()
    if given:
        say("the network's weights are given: they are evaluated and kept, nothing has to be trained")
    else:
        why = "it has no trained weights" if problem.narrow is None else "it is wider than the given one"
        if problem.untrained_layers:
            why = f"its layers {listed(list(problem.untrained_layers))} are new"
        say(f"the network itself is trained first, because {why}")
        what = "training the network"
        recipe = announced(
            run,
            problem,
            what,
            recipe,
            lambda own: seconds_to_fit(model, problem.data, own),
            begun=checkpoint.path.exists(),
        )
        fit_network(model, problem.data, recipe, what, checkpoint=checkpoint)
    with working("evaluating the network on the test images"):
        reached = evaluate_network(model.eval(), problem.data, problem.data.test, problem.task).accuracy
    say_reached(problem, "the network as it was given" if given else "the trained network", reached)
    if given:
        _warn_of_known_images(problem, model, reached)
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors_of(model).items()}
    files = {
        ORIGINAL_FILE: seal_tensors(tensors, {"inputs": inputs}),
        "space.json": problem.space.to_json().encode(),
    }
    stage.finish(inputs, files, [checkpoint.path])
    return NetworkSummary(
        folder=str(stage.folder),
        network="given" if given else "trained",
        metric=config.task.metric,
        groups=len(problem.space.groups),
        epochs=0 if given else recipe.epochs,
        test_accuracy=round(reached, 6),
        seconds=round(time.perf_counter() - start, 1),
    )


def _check_later_stages(problem: Problem, model: nn.Module) -> None:
    """Raises now what fine-tuning would find wrong with its settings after a search."""
    check_inheritance(problem)
    smallest = cut(problem.model, problem.space, problem.space.smallest())
    recipe = Recipe.of(problem.config, epochs=1, learning_rate=1.0)
    with working("trying the teacher"):
        objective_for(problem, model, smallest, recipe)


def _warn_of_known_images(problem: Problem, model: nn.Module, reached: float) -> None:
    """Warn where the network was probably trained on the images by which candidates are compared."""
    if problem.config.task.metric != "accuracy":
        return
    with working("evaluating the network on the validation images"):
        held_out = evaluate_network(model, problem.data, problem.data.val, problem.task).accuracy
    if held_out - reached > KNOWN:
        say(
            f"it reaches {held_out:.2%} on the validation images: it was probably trained on them, so that "
            "they show less of what a smaller network loses; put images that it has not seen into val/, and "
            "keep test/"
        )


def say_reached(problem: Problem, network: str, reached: float) -> None:
    """Report a network's metric on the images as they are fed here: another size or statistics lower it."""
    metric, data = problem.config.task.metric, problem.data
    value = f"{reached:.2%}" if metric == "accuracy" else f"{reached:.6g}"
    size = f"the image size (data.image_size, now {data.input_shape[-1]})" if data.stored else ""
    unset = [] if problem.config.data.image_size or not size else [size]
    unset += [] if data.stated or not data.mean else ["data.mean and data.std"]
    wrong = f"; if it should be higher, set {', and '.join(unset)}" if unset else ""
    say(f"{network}: {metric} {value} on {counted(len(data.test), 'test image')}{wrong}")
    interval = accuracy_interval(problem, reached)
    if interval is not None and data.classes and interval[0] <= 1 / len(data.classes):
        remedy = "" if is_given(problem) else ", or train longer (train.epochs)"
        say(
            f"this is no better than guessing among {len(data.classes)} classes (95 % interval "
            f"{interval[0]:.1%} to {interval[1]:.1%}): check the weights, the order of the classes, "
            f"{f'{size}, ' if size else ''}and data.mean and data.std{remedy}; no smaller network can "
            "be better"
        )


def first_rate(problem: Problem) -> float:
    """The first stage's learning rate: trained weights want a lower one than fresh weights."""
    train = problem.config.train
    if problem.trained and "learning_rate" not in train.model_fields_set:
        return FINE_TUNING_RATE
    return train.learning_rate
