"""What paths of trained weights know before any supernet training, with channels ordered and as they are.

Trains the digits network, then scores paths of its weights at uniform widths, batch-norm
recalibrated statistics: channels as they are, and ordered by each importance, for each method and side.

    python benchmarks/channel_order.py [--epochs N] [--seeds N]
"""

import argparse
import statistics

import torch

from bcnet.config import Config, SpaceConfig, TrainConfig
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.supernet_start import first_state
from bcnet.progress import say
from bcnet.space.supernet import Supernet
from bcnet.training.loop import fit_network
from bcnet.training.recipe import Recipe
from bcnet.width_search.scorer import Validation

WIDTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
ORDERS = ("as-is", "l1", "bn-scale", "taylor")


def scores(problem: Problem, recipe: Recipe) -> dict[str, list[float]]:
    """Accuracy of each side at each width."""
    state = first_state(problem, problem.model, recipe)
    supernet, by = Supernet(problem.model, problem.space, state), Validation(problem.data, 512)
    found: dict[str, list[float]] = {side: [] for side in problem.space.rule.sides}
    for ratio in WIDTHS:
        for side, score in by.sides(supernet, problem.space.uniform(ratio, 8)).items():
            found[side].append(score.accuracy)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5, help="passes over the training images")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    collected: dict[tuple[str, str, str], list[list[float]]] = {}
    for seed in range(options.seeds):
        trained = None
        for method in ("unilateral", "bcnet", "bcnetv2"):
            for order in ORDERS:
                config = Config(
                    seed=seed,
                    space=SpaceConfig(),
                    train=TrainConfig(epochs=options.epochs, method=method, channel_order=order),
                )
                problem = open_problem(config)
                recipe = Recipe.of(config, options.epochs, config.train.learning_rate)
                if trained is None:
                    fit_network(problem.model, problem.data, recipe, "training the network")
                    trained = problem.model.state_dict()
                problem.model.load_state_dict(trained)
                for side, values in scores(problem, recipe).items():
                    collected.setdefault((method, order, side), []).append(values)
        say(f"seed {seed} of {options.seeds} done")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; mean (deviation) of seeds, in %")
    print("| method | order | side | " + " | ".join(f"{ratio:.1%} wide" for ratio in WIDTHS) + " |")
    print("|---|---|---|" + "---|" * len(WIDTHS))
    for (method, order, side), runs in collected.items():
        cells = [
            f"{100 * statistics.fmean(column):.1f} ({100 * statistics.pstdev(column):.1f})"
            for column in zip(*runs, strict=True)
        ]
        print(f"| {method} | {order} | {side} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
