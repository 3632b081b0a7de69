"""`train.channel_order`: a supernet begins as the given network, its most important channels first."""

import torch

from bcnet.config import Config, DataConfig, TrainConfig
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.supernet_start import first_state
from bcnet.space.extract import tensors_of
from bcnet.space.importance import reordered
from bcnet.space.supernet import forward_path
from bcnet.training.gradient_importance import measured_importances
from bcnet.training.recipe import Recipe


def test_a_supernet_begins_as_the_given_network_with_the_most_important_channels_first() -> None:
    config = Config(
        data=DataConfig(train_limit=100, test_limit=50, image_size=16),
        train=TrainConfig(method="unilateral", channel_order="taylor", batch_size=4, train_device="cpu"),
    )
    problem = open_problem(config)
    recipe = Recipe.of(config, epochs=1, learning_rate=0.1)
    state = first_state(problem, problem.model, recipe)
    x = torch.randn(4, *problem.data.input_shape, generator=torch.Generator().manual_seed(0))
    space, model = problem.space, problem.model.eval()
    with torch.no_grad():
        widest = forward_path(model, space, space.largest(), x, "left", state)
        torch.testing.assert_close(widest, model(x), rtol=1e-3, atol=1e-5)
    importance = measured_importances(model, space, problem.data, recipe, ["taylor"])["taylor"]
    strongest_first = [own.argsort(descending=True, stable=True) for own in importance]
    for name, tensor in reordered(tensors_of(model), space, strongest_first).items():
        assert torch.equal(state[name], tensor), name
