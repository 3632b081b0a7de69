"""Stage 4, the winner as a plain network. In: trained weights, widths. Out: an ordinary network, fine-tuned.

The widths are those of the search's winner, or of another point of its front.

`slice/`: model.safetensors, widths.json, model.pt2 (loads with torch alone), result.json, curve.csv (of each
epoch loss, rate, validation metric); while training checkpoint.safetensors, from which it continues.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bcnet.data.image_data import ImageData
from bcnet.errors import FOREIGN, ModelError, one_line
from bcnet.models.binary import has_binary
from bcnet.pipeline.deployment import KEY, preprocessing
from bcnet.pipeline.fine_tuning import AS_ASKED, FineTuning, Outcome, at_lower_rate
from bcnet.pipeline.finished import PROGRAM, WEIGHTS, Chosen, as_searched, searched
from bcnet.pipeline.front import point_inside
from bcnet.pipeline.inherit import Place, Trained, ranked_sources, say_best, weights_of
from bcnet.pipeline.kept import announce_replacement
from bcnet.pipeline.original import accuracy_lost, trained_network
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.quantisation import (
    QuantisationAware,
    Quantised,
    aware_passes,
    is_aware,
    through_integers,
)
from bcnet.pipeline.results import SliceSummary
from bcnet.pipeline.route import fine_tuning_rate
from bcnet.pipeline.search_inputs import assigned_channels
from bcnet.pipeline.teacher import objective_for, teacher_digest
from bcnet.pipeline.training_precision import announced
from bcnet.progress import say, working
from bcnet.runs import Run, alone_in, digest, json_bytes
from bcnet.space.channel_rules import Side
from bcnet.space.extract import with_state
from bcnet.space.inputs import arguments
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet, cut
from bcnet.space.width_space import Widths
from bcnet.training.checkpoints import CheckpointFile, Epoch, EpochLog
from bcnet.training.durations import seconds_to_fit
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Objective, Recipe, fine_tuning_digest, metric_digest
from bcnet.training.shared_work import in_all
from bcnet.width_search.scorer import Validation, evaluate_network

CHECKPOINT = "checkpoint.safetensors"
CURVE = "curve.csv"


@dataclass(frozen=True)
class SliceResult:
    """The small network, where its weights came from, and its accuracies on the test images.

    `supernet` (from 0) and `side` are None where they came from the trained network.
    """

    model: nn.Module
    source: str
    supernet: int | None
    side: Side | None
    accuracy_before: float
    accuracy_after: float
    pruning_passes: int = 0  # that went into these weights before
    outcome: Outcome = AS_ASKED  # of the fine-tuning, where weights came from the trained network


def slice(  # noqa: PLR0913 - each keyword is one independent, documented choice of where weights come from
    supernets: Sequence[Supernet],
    widths: Widths,
    data: ImageData,
    recipe: Recipe,
    *,
    images: int = 512,
    trained: Trained | None = None,
    scratch: nn.Module | None = None,
    objective: Objective | None = None,
    checkpoint: CheckpointFile | None = None,
    assigned: Mapping[Place, Subnet] | None = None,
) -> SliceResult:
    """Cut out what scores best on the validation images, and fine-tune it.

    Of all sides of all supernets, and of a `trained` network's most important channels by each of its
    criteria, what has the lowest loss is taken; `images` are used for batch-norm statistics. With `scratch`,
    a freshly initialised network, its cut is trained instead. `objective` is the loss, where that is not the
    task's alone. With a `checkpoint`, a training that was killed continues. `assigned` are the channels that
    the widths take from supernets, if these are not simply those of the side.
    """
    whole = supernets[0] if trained is None else trained.original
    widths = whole.space.check(widths)
    sources = ranked_sources(supernets, widths, trained, Validation(data, images, recipe.task), assigned)
    best = sources[0]
    if trained is not None:
        say_best(sources, recipe.task)
    small = with_state(whole.model, whole.space, best.state)
    before = evaluate_network(small, data, data.test, recipe.task).accuracy
    if scratch is not None:
        small = cut(scratch, whole.space, widths)
    outcome = AS_ASKED
    if trained is not None and scratch is None:
        tuned = FineTuning(data, recipe, images, objective)(small, "fine-tuning", checkpoint)
        small, outcome = tuned.network, tuned.outcome
    elif recipe.epochs:
        what = "training from scratch" if scratch else "fine-tuning"
        fit_network(small, data, recipe, what, objective=objective, checkpoint=checkpoint)
    with working("counting the small network's accuracy on the test images"):
        after = evaluate_network(small, data, data.test, recipe.task).accuracy
    return SliceResult(small, best.name, best.supernet, best.side, before, after, best.passes, outcome)


def stage_inputs(run: Run, problem: Problem) -> dict[str, str]:
    """What this stage's manifest records."""
    config = problem.config
    supernet = run.stage("train").require(problem.inputs())
    return {
        **({"integers": "trained through"} if is_aware(as_searched(run, problem)) else {}),
        "supernet": supernet,
        "search": run.stage("search").require({"supernet": supernet}),
        "fine-tuning settings": digest(
            [config.slice.decisive(), fine_tuning_digest(config), teacher_digest(problem)]
        ),
        "metric": metric_digest(config),
    }


@alone_in("slice")
def run(run: Run, problem: Problem) -> SliceSummary:
    """Cut, fine-tune, save: the search's winner, or the point of its front that [slice] asks for.

    Later stages hold the network to the budget of what was sliced.
    """
    return _sliced(run, problem, point_inside(run, problem))


@in_all
def _sliced(run: Run, problem: Problem, inside: Chosen | None) -> SliceSummary:
    """The same, of a point of the front that was measured, or of the winner."""
    config = problem.config
    stage, inputs = run.stage("slice"), stage_inputs(run, problem)
    problem = as_searched(run, problem)
    supernets, trained = weights_of(run, problem)
    chosen = inside or searched(run, problem)
    widths, images = chosen.widths, config.search.recalibration_images
    epochs, rate, scratch = config.slice.epochs, fine_tuning_rate(problem), None
    if config.slice.from_scratch:
        if not problem.fresh.from_scratch:
            raise ModelError(
                f"slice.from_scratch: {problem.fresh.note}; add that method, or fine-tune the winner"
            )
        rate, scratch = config.train.learning_rate, problem.fresh_model()
    recipe = Recipe.of(config, epochs, rate)
    with working("trying torch.export on the cut network"):  # now, and not after hours of fine-tuning
        program_bytes(cut(problem.model, problem.space, widths), problem.data.example(2))
    announce_replacement(run, config, "slice")
    probe = cut(problem.model, problem.space, widths)
    objective = objective_for(problem, trained_network(run, problem), probe, recipe) if epochs else None
    what = "fine-tuning, with distillation" if objective else "fine-tuning"
    data, task = problem.data, problem.task
    log = EpochLog(lambda network: evaluate_network(network, data, data.val, task).accuracy)
    checkpoint = CheckpointFile(stage.path(CHECKPOINT), {**inputs, "widths": str(widths)}, log)
    recipe = announced(
        run,
        problem,
        what,
        recipe,
        lambda own: seconds_to_fit(probe, problem.data, own, objective),
        begun=checkpoint.path.exists(),
    )
    result = slice(
        supernets,
        widths,
        problem.data,
        recipe,
        images=images,
        trained=trained,
        scratch=scratch,
        objective=objective,
        checkpoint=checkpoint,
        assigned=assigned_channels(problem, supernets, widths),
    )
    integers = _through_integers(run, problem, result, checkpoint)
    if integers.passes:
        with working("evaluating it on the test images again"):
            score = evaluate_network(integers.network, data, data.test, task)
        result = replace(result, model=integers.network, accuracy_after=score.accuracy)
    described = preprocessing(result.model, problem.data, None)
    groups = {g.name: width for g, width in zip(problem.space.groups, widths, strict=True)}
    summary = SliceSummary(
        folder=str(stage.folder),
        metric=config.task.metric,
        widths=widths,
        predicted_ms=chosen.predicted_ms,
        budget=chosen.budget.stated(),
        preprocess_ms=chosen.budget.added_ms or None,
        inherited=result.source,
        supernet=None if result.supernet is None else result.supernet + 1,
        side=result.side,
        epochs=epochs - result.outcome.discarded,
        discarded_epochs=result.outcome.discarded or None,
        lower_rate=result.outcome.lower_rate,
        integer_epochs=integers.passes or None,
        discarded_integer_epochs=integers.discarded or None,
        pruning_passes=0 if config.slice.from_scratch else result.pruning_passes,
        from_scratch=config.slice.from_scratch,
        distilled=objective is not None and not result.outcome.discarded,
        test_accuracy_before=round(result.accuracy_before, 6),
        test_accuracy_after=round(result.accuracy_after, 6),
        original=accuracy_lost(run, problem, result.accuracy_after),
        params=problem.space.params(widths),
        macs=problem.space.macs(widths),
        further=tuple(own.sliced() for own in chosen.further) or None,
    )
    came_from = summary.model_dump(include={"inherited", "supernet", "side"})
    files = {
        **network_files(result.model, problem.data.example(2), {KEY: described}),
        "widths.json": json_bytes({"widths": groups, **came_from}),
        summary.FILE: json_bytes(summary.to_json()),
    }
    if log.epochs:
        files[CURVE] = _curve(log.epochs).encode()
    begun = [checkpoint.path, at_lower_rate(checkpoint.path), through_integers(checkpoint).path]
    stage.finish(inputs, files, begun)
    return summary


def _through_integers(
    run: Run, problem: Problem, result: SliceResult, checkpoint: CheckpointFile
) -> Quantised:
    """The fine-tuned network; at INT8, after further training through the integers of its file."""
    passes = aware_passes(problem, problem.config.slice.epochs)
    if not passes:
        wanted = problem.config.slice.quantization_aware and problem.profile.number_format.calibrated
        if wanted and has_binary(problem.model):
            say("fine-tuning through integers: left out, since signs have no derivative in the exported file")
        return Quantised(result.model)
    aware = QuantisationAware(problem, trained_network(run, problem))
    return aware(result.model, "fine-tuning through integers", passes, through_integers(checkpoint))


def _curve(epochs: Sequence[Epoch]) -> str:
    """curve.csv: loss, rate and validation metric of each epoch."""
    lines = [f"{own.number},{own.loss},{own.rate},{own.accuracy}" for own in epochs]
    return "\n".join(["epoch,loss,rate,accuracy", *lines, ""])


def network_files(model: nn.Module, example: Any, about: Mapping[str, str]) -> dict[str, bytes]:
    """The files that hold a small network; `example` is inputs of two images."""
    from safetensors.torch import save

    # Copies: a file of safetensors cannot hold one tensor under the names of several modules.
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    return {WEIGHTS: save(tensors, dict(about)), PROGRAM: program_bytes(model, example, about)}


def program_bytes(model: nn.Module, example: Any, extra: Mapping[str, str] | None = None) -> bytes:
    """torch.export's own file: `torch.export.load(path).module()(x)`, any batch size.

    `example` is inputs of two images, as the network takes them (see `run_with`); `extra` are extra files.
    """
    model.eval()
    args, kwargs = arguments(example)
    batch = torch.export.Dim("batch", min=1)
    # By position in the signature, whichever way an input is given.
    dynamic = tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) else None, (args, kwargs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                model, args, kwargs, dynamic_shapes=dynamic[1] if kwargs else dynamic[0]
            )
        except FOREIGN as cause:
            raise ModelError(
                f"torch.export cannot read {type(model).__name__} for any batch size: {one_line(cause)}"
            ) from cause
        # Into memory first: PyTorch's own writer aborts the process when the disk is full.
        content = io.BytesIO()
        torch.export.save(program, content, extra_files=dict(extra or {}))
    return content.getvalue()
