"""How long a training will take. In: a network and a recipe. Out: seconds, from a few steps on a copy."""

import copy
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.data.image_data import ImageData
from bcnet.events import unobserved
from bcnet.seeds import seeded
from bcnet.training.distributed import average
from bcnet.training.loop import Trainee, fit, plain_step, steps_an_epoch, trainable_parameters
from bcnet.training.recipe import Objective, Recipe

FEWEST, MOST = 4, 100  # steps of which the time is taken
TRIAL_S = 0.2  # for these


def seconds_to_fit(
    model: nn.Module, data: ImageData, recipe: Recipe, objective: Objective | None = None
) -> float:
    """An estimate of the duration of `fit_network` in seconds, from a few steps on a copy."""
    copied = copy.deepcopy(model).to(recipe.device)
    copied.train()
    parameters = trainable_parameters(copied, objective)
    scaler = recipe.scaler()
    step = plain_step(copied, recipe, objective, scaler)
    trainee = Trainee(parameters, step, lambda: dict(copied.named_buffers()), scaler)
    return seconds_a_step(trainee, data, recipe) * steps_an_epoch(data, recipe) * recipe.epochs


def seconds_a_step(trainee: Trainee, data: ImageData, recipe: Recipe) -> float:
    """The time of one step of `fit` in seconds, at a rate of zero. Raises TrainingError if one fails.

    After a few steps, which are slower, the mean of as many as take `TRIAL_S`.
    """
    with seeded(recipe.seed), unobserved():
        first = torch.tensor([_mean_seconds(trainee, data, recipe, FEWEST)])
        average([first])  # several processes go on alike
        count = min(int(TRIAL_S / float(first)), MOST)
        return float(first) if count < FEWEST else _mean_seconds(trainee, data, recipe, count)


def _mean_seconds(trainee: Trainee, data: ImageData, recipe: Recipe, count: int) -> float:
    """That of `count` steps without the first and the last one."""
    starts = []

    def step(inputs: Any, targets: Any, number: int) -> Tensor:
        starts.append(time.perf_counter())
        return trainee.step(inputs, targets, number)

    part = data.train.take(torch.arange(min(len(data.train), count * recipe.batch_size)))
    few = replace(data, train=part)
    epochs = -(-count // steps_an_epoch(few, recipe))
    short = replace(recipe, epochs=epochs, learning_rate=0.0)
    fit(replace(trainee, step=step), few, short, "timing training steps")
    return (starts[-1] - starts[1]) / (len(starts) - 2)
