"""What one training step of a supernet costs, against training the same subnets as networks of their own.

Each round draws random widths and takes, in this order: a plain step, a supernet step, a plain step.
- The supernet step is `train.step = "plain"`: left and right path, each with its backward pass, then the
  optimiser over the whole supernet, then its gradients set to zero.
- The plain step trains the two networks that these paths are when cut out: forward, backward and the
  optimiser on the small tensors alone, for the left one, then for the right one.
Both use the same batch. Cutting is not timed, and each round begins with an untimed step of either kind, so
that neither pays for momentum buffers or for kernels that are compiled at their first use.

The ratio of a round is the supernet step over the mean of its two plain steps: 1.00 would be a supernet that
costs nothing. Its noise is the same for two equal things: the second plain step over the first.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bcnet.config import ModelConfig
from bcnet.models import build_model
from bcnet.registry import SUPERNETS
from bcnet.space.discover import discover_space
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.widen import supernet_state
from bcnet.space.width_space import Widths
from bcnet.training.loop import _optimizer, keep_freed_memory
from bcnet.training.recipe import Recipe
from bcnet.training.supernet_step import SlicedPaths, supernet_step, trainable

MODELS = ("torchvision:mobilenet_v2", "torchvision:resnet18", "torchvision:vgg16_bn")
GOAL = 1.20
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Round:
    """Seconds of one round: a plain step, the supernet step, a plain step again."""

    widths: tuple[int, ...]
    plain: float
    supernet: float
    plain_again: float

    @property
    def ratio(self) -> float:
        """Supernet over plain."""
        return 2 * self.supernet / (self.plain + self.plain_again)

    @property
    def noise(self) -> float:
        """Plain over plain."""
        return self.plain_again / self.plain


def main() -> None:
    """Parse, measure, print."""
    options = _options()
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = (
        f"{_processor()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    print(f"{machine}\nmethod {options.method}, batch {options.batch}, {options.size} px, fp32, sgd")
    print(f"{options.rounds} rounds after {options.warmups}; seconds are medians\n")
    print(
        f"{'model':<26}{'plain s':>9}{'supernet s':>12}{'ratio':>8}{'  quartiles':<16}{'noise'}", flush=True
    )
    results = []
    for name in options.models:
        rounds = measure(name, options)[options.warmups :]
        ratio = _quartiles(entry.ratio for entry in rounds)
        noise = _quartiles(entry.noise for entry in rounds)
        plain = float(np.median([(entry.plain + entry.plain_again) / 2 for entry in rounds]))
        supernet = float(np.median([entry.supernet for entry in rounds]))
        print(
            f"{name:<26}{plain:>9.3f}{supernet:>12.3f}{ratio[1]:>8.3f}"
            f"{f'  {ratio[0]:.3f}-{ratio[2]:.3f}':<16}{noise[1]:.3f} ({noise[0]:.3f}-{noise[2]:.3f})",
            flush=True,
        )
        results.append(
            {
                "model": name,
                "plain_s": plain,
                "supernet_s": supernet,
                "ratio_quartiles": ratio,
                "noise_quartiles": noise,
                "rounds": [asdict(entry) for entry in rounds],
            }
        )
    print(f"\ngoal: a median ratio of at most {GOAL:.2f}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        text = json.dumps({"machine": machine, "settings": settings, "results": results}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


def measure(name: str, options: argparse.Namespace) -> list[Round]:
    """All rounds of one network, the warm-ups first."""
    torch.manual_seed(options.seed)
    model = build_model(ModelConfig(name=name), 3, options.classes).train()
    shape = (3, options.size, options.size)
    space = discover_space(model, torch.zeros(1, *shape), method=options.method)
    recipe = Recipe(epochs=1, learning_rate=0.01, batch_size=options.batch)
    supernet = Supernet(model.train(), space, supernet_state(model, space))
    step = _supernet(supernet, recipe)
    images = torch.randn(options.batch, *shape).contiguous(memory_format=torch.channels_last)
    batch = images, torch.randint(options.classes, (options.batch,))
    rng = np.random.default_rng(options.seed)
    rounds = []
    for _ in range(options.warmups + options.rounds):
        widths = space.random(rng)
        networks = [supernet.extract(Subnet.at(space, widths, side)) for side in space.rule.sides]
        plain = _plain(networks, recipe)
        plain(batch)
        step(widths, batch)
        rounds.append(
            Round(
                tuple(widths),
                plain=_seconds(plain, batch),
                supernet=_seconds(step, widths, batch),
                plain_again=_seconds(plain, batch),
            )
        )
    return rounds


def _supernet(supernet: Supernet, recipe: Recipe) -> Callable[[Widths, Batch], None]:
    """A whole training step of the supernet, as `bcnet.training.loop.fit` takes it."""
    paths = SlicedPaths(trainable(supernet, "cpu"), recipe)
    optimizer = _optimizer(paths.parameters, recipe)

    def run(widths: Widths, batch: Batch) -> None:
        supernet_step(paths, [widths], *batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return run


def _plain(networks: list[nn.Module], recipe: Recipe) -> Callable[[Batch], None]:
    """A step of each network with an optimiser of its own, in PyTorch's fastest manner."""
    optimizers = []
    for network in networks:
        network.to(memory_format=torch.channels_last).train()
        optimizers.append(_optimizer(dict(network.named_parameters()), recipe))

    def run(batch: Batch) -> None:
        images, labels = batch
        for network, optimizer in zip(networks, optimizers, strict=True):
            loss = recipe.loss(network(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            float(loss.detach())
            optimizer.step()
            optimizer.zero_grad()

    return run


def _seconds(run: Callable[..., None], *arguments: object) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def _quartiles(values: Iterable[float]) -> list[float]:
    return [float(value) for value in np.percentile(list(values), [25, 50, 75])]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="*", default=list(MODELS), metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    add(
        "--method",
        default="bcnet",
        choices=SUPERNETS.names(),
        help="which paths a width takes (default: bcnet)",
    )
    add("--batch", type=int, default=32, help="images a step (default: 32)")
    add("--size", type=int, default=64, help="side of an image in pixels (default: 64)")
    add("--classes", type=int, default=1000, help="outputs of the network (default: 1000)")
    add("--rounds", type=int, default=15, help="rounds that count, each with new widths (default: 15)")
    add("--warmups", type=int, default=3, help="rounds before them (default: 3)")
    add("--threads", type=int, default=0, help="threads of PyTorch (default: its own choice)")
    add("--seed", type=int, default=0, help="seed of weights, images and widths (default: 0)")
    add("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
