"""The trained network that an arena starts from. In: a configuration. Out: its file `model.weights`.

    python train.py cifar10-residual.toml

The network that `model.name` gives is trained for `train.epochs` at `train.learning_rate`, with the
configured data and recipe. One line an epoch; a stopped training continues.
"""

import sys
from pathlib import Path

import torch

from bcnet.config import load_config
from bcnet.pipeline.configured_data import load_data
from bcnet.pipeline.problem import fresh_model
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe, training_digest
from bcnet.width_search.scorer import evaluate_network


def main() -> None:
    torch.set_num_threads(1)
    config = load_config(Path(sys.argv[1]))
    if config.model.weights is None:
        sys.exit(f"{sys.argv[1]} names no file to write: set model.weights")
    path = Path(config.model.weights)
    if path.exists():
        sys.exit(f"{path} is already there")
    data = load_data(config)
    network = fresh_model(config, data)
    recipe = Recipe.of(config, config.train.epochs, config.train.learning_rate)
    checkpoint = CheckpointFile(path.with_suffix(".unfinished"), {"training": training_digest(config)})
    fit_network(network, data, recipe, f"training {config.model.name}", checkpoint=checkpoint)
    for name, part in (("validation", data.val), ("test", data.test)):
        score = evaluate_network(network, data, part)
        print(f"{name}: accuracy {score.accuracy:.2%}, cross entropy {score.loss:.4f}, {len(part):,} images")
    torch.save(network.state_dict(), path)
    checkpoint.path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
