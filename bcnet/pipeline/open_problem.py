"""Open the problem of a configuration. In: a configuration. Out: its data, network, space and device."""

from dataclasses import replace

from bcnet.config import Config
from bcnet.hw_profiles.target import each_device
from bcnet.models import PACKAGED
from bcnet.models.weights import fresh_heads
from bcnet.pipeline.configured_data import load_data
from bcnet.pipeline.configured_methods import check_method
from bcnet.pipeline.networks import check_network, check_training_mode, given_model, searched_space
from bcnet.pipeline.problem import Problem
from bcnet.progress import say, working
from bcnet.training.loop import keep_freed_memory


def open_problem(config: Config, *, pixels: bool = True) -> Problem:
    """What the configuration names, loaded. Raises what is wrong with it.

    Without `pixels`, for what needs only their size, a folder's images are not read.
    """
    keep_freed_memory()
    check_method(config)
    (profile, config), *others = each_device(config)
    profiles = (profile, *(own for own, _ in others))
    data = load_data(config, pixels=pixels)
    if data.stated and config.data.mean is None and config.model.name not in PACKAGED:
        say(f"images are normalised as '{config.model.name}' was trained: mean {data.mean}, std {data.std}")
    model = given_model(config, data)
    heads = fresh_heads(model)
    check_network(config, data, model)
    with working("looking for channels that can be searched"):
        model, space, narrow = searched_space(config, profiles, model, data.example)
    if config.task.train_step is None:
        check_training_mode(config, model, data.example(2))
    problem = Problem(config, data, model, space, profile, narrow, heads)
    if len(profiles) == 1:
        return problem
    problem = replace(problem, targets=tuple(own.name for own in profiles))
    further = tuple(replace(problem, config=own_config, profile=own) for own, own_config in others)
    return replace(problem, further=further)
