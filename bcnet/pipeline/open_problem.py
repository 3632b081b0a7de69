"""Open the problem of a configuration. In: a configuration. Out: its data, network, space and device."""

from dataclasses import replace

from bcnet.config import Config
from bcnet.data.dataset import load_data
from bcnet.hw_profiles.target import check_named, further_profiles, single_device, target_profile
from bcnet.models import PACKAGED, statistics
from bcnet.models.weights import fresh_heads
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
    profile = target_profile(config)
    profiles = (profile, *further_profiles(config))
    check_named(config, profiles)
    everything, config = config, single_device(config, 0, profile)
    expected = statistics(config.model) if config.data.mean is None else None
    data = load_data(config.data, config.seed, pixels=pixels, trained_with=expected)
    if expected and data.stated and config.model.name not in PACKAGED:
        say(
            f"images are normalised as '{config.model.name}' was trained: mean {expected[0]}, "
            f"std {expected[1]}"
        )
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
    others = enumerate(profiles[1:], 1)
    further = [replace(problem, config=single_device(everything, n, own), profile=own) for n, own in others]
    return replace(problem, further=tuple(further))
