"""What a path through the supernet costs, against the same network alone: a forward's time, a step's memory.

Time: each round draws random widths, cuts their network out, and takes, in this order and after an untimed
forward of either kind: the cut network, `Supernet.run`, the cut network; in eval mode, without gradients. The
ratio of a round is the path over the mean of both cuts; its noise is the same for two equal things, the
second cut over the first.

Memory: the bytes of all tensors that are alive during one training step, at the moment where they are most:
parameters, gradients, momentum, batch and activations. Every storage that an operator returns is counted from
then until it is freed; what an operator allocates for its own duration is not seen. The supernet step is
`supernet_step` at the widest widths and the optimiser; the plain step is the same network, batch and
optimiser without a supernet. Gradients are either kept and zeroed between steps, as `bcnet.training.loop.fit`
trains every network, or freed, as PyTorch's `zero_grad` does by default. This has no noise: it counts.

    python benchmarks/path_cost.py
"""

import argparse
import gc
import json
import platform
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from train_step import _processor, _quartiles

from bcnet.config import ModelConfig
from bcnet.models import build_model
from bcnet.space.discover import discover_space
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.widen import supernet_state
from bcnet.training.loop import _optimizer, keep_freed_memory
from bcnet.training.recipe import Recipe
from bcnet.training.supernet_step import SlicedPaths, supernet_step, trainable

MODELS = tuple(
    f"torchvision:{name}"
    for name in ("mobilenet_v2", "resnet18", "resnet50", "efficientnet_b0", "densenet121", "regnet_y_400mf")
)
SIZES = ("32x64", "8x224")
TIME_GOAL = 1.15
MEMORY_GOAL = 1.10
METHODS = ("unilateral", "bcnet")


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that are alive, each counted once, and their peak."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """`tensors` are alive already."""
        super().__init__()
        self.now = 0
        self.peak = 0
        self.known: dict[int, int] = {}
        for tensor in tensors:
            self._see(tensor)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        # A storage's Python object lives as long as the storage does.
        weakref.finalize(storage, self._gone, key).atexit = False

    def _gone(self, key: int) -> None:
        self.now -= self.known.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result


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
    print(f"{machine}\n")
    if options.only != "memory":
        print(f"the supernet's path over the cut network: {options.rounds} rounds, each with new widths")
        print(f"{'model':<28}{'batch':>8}{'cut s':>9}{'ratio':>8}{'  quartiles':<16}{'noise'}", flush=True)
    results: list[dict[str, Any]] = []
    for name in options.models if options.only != "memory" else ():
        for batch in options.sizes:
            rounds = forward_times(name, *(int(part) for part in batch.split("x")), options)
            ratio = _quartiles(2 * path / (first + second) for first, path, second in rounds)
            noise = _quartiles(second / first for first, _, second in rounds)
            plain = float(np.median([(first + second) / 2 for first, _, second in rounds]))
            print(
                f"{name:<28}{batch:>8}{plain:>9.4f}{ratio[1]:>8.3f}"
                f"{f'  {ratio[0]:.3f}-{ratio[2]:.3f}':<16}{noise[1]:.3f} ({noise[0]:.3f}-{noise[2]:.3f})",
                flush=True,
            )
            results.append({"model": name, "batch": batch, "ratio": ratio, "noise": noise, "rounds": rounds})
    if options.only != "memory":
        print(f"goal: a median ratio of at most {TIME_GOAL:.2f}\n")
    if options.only != "time":
        batch, size = (int(part) for part in options.sizes[0].split("x"))
        print(f"peak bytes of a training step at the widest widths, batch {batch} at {size} px, MB and ratio")
        print(f"{'model':<28}{'gradients':>10}{'plain':>9}" + "".join(f"{m:>20}" for m in METHODS))
    for name in options.models if options.only != "time" else ():
        for kept in (True, False):
            plain_peak = peak_bytes(name, batch, size, None, kept, options)
            peaks = {method: peak_bytes(name, batch, size, method, kept, options) for method in METHODS}
            columns = "".join(f"{p / 1e6:>12.1f}{p / plain_peak:>8.3f}" for p in peaks.values())
            print(f"{name:<28}{'kept' if kept else 'freed':>10}{plain_peak / 1e6:>9.1f}{columns}", flush=True)
            results.append({"model": name, "gradients_kept": kept, "plain": plain_peak, **peaks})
    if options.only != "time":
        print(f"goal: a ratio of at most {MEMORY_GOAL:.2f}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        text = json.dumps({"machine": machine, "settings": settings, "results": results}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


def forward_times(
    name: str, batch: int, size: int, options: argparse.Namespace
) -> list[tuple[float, float, float]]:
    """Seconds of (cut network, path, cut network) for each round's widths."""
    model = _model(name, options).eval()
    space = discover_space(model, torch.zeros(1, 3, size, size))
    supernet = Supernet(model, space, supernet_state(model, space))
    images = torch.randn(batch, 3, size, size)
    rng = np.random.default_rng(options.seed)
    rounds = []
    with torch.no_grad():
        for _ in range(options.rounds):
            widths = space.random(rng)
            subnet = Subnet.at(space, widths)
            small = supernet.extract(subnet)
            calls: list[Callable[[], Any]] = [
                lambda small=small: small(images),
                lambda subnet=subnet: supernet.run(subnet, images),
            ]
            for call in calls:
                call()
            rounds.append(tuple(_seconds(calls[index]) for index in (0, 1, 0)))
    return rounds


def peak_bytes(
    name: str, batch: int, size: int, method: str | None, keep: bool, options: argparse.Namespace
) -> int:
    """The peak of live bytes in a step of a supernet of this method, or of the plain network (None)."""
    model = _model(name, options).train()
    recipe = Recipe(epochs=1, learning_rate=0.01, batch_size=batch)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(options.classes, (batch,))
    if method is None:
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

        def gradients() -> None:
            loss = recipe.loss(model(images), labels)
            loss.backward()
            float(loss.detach())
    else:
        space = discover_space(model, torch.zeros(1, 3, size, size), method=method)
        supernet = Supernet(model.train(), space, supernet_state(model, space))
        paths = SlicedPaths(trainable(supernet, "cpu"), recipe)
        parameters, buffers = paths.parameters, paths.buffers

        def gradients() -> None:
            supernet_step(paths, [space.largest()], images, labels)

    optimizer = _optimizer(parameters, recipe)

    def step() -> None:
        gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=not keep)

    step()  # the first one makes momentum and gradients
    with _collected():
        alive = [*parameters.values(), *buffers.values(), images, labels]
        alive += [p.grad for p in parameters.values() if p.grad is not None]
        alive += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        with LiveBytes(alive) as live:
            step()
    return live.peak


@contextmanager
def _collected() -> Iterator[None]:
    """No cyclic garbage from before, none collected halfway: counts repeat exactly."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _model(name: str, options: argparse.Namespace) -> nn.Module:
    torch.manual_seed(options.seed)
    return build_model(ModelConfig(name=name), 3, options.classes)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="*", default=list(MODELS), metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    add("--only", choices=["time", "memory"], help="half of it (default: both)")
    add(
        "--sizes",
        nargs="+",
        default=list(SIZES),
        metavar="BxP",
        help=f"images and pixels; the first for memory (default: {' '.join(SIZES)})",
    )
    add("--classes", type=int, default=1000, help="outputs of the network (default: 1000)")
    add("--rounds", type=int, default=15, help="rounds, each with new widths (default: 15)")
    add("--threads", type=int, default=2, help="threads of PyTorch (default: 2; 0: its own choice)")
    add("--seed", type=int, default=0, help="seed of weights, images and widths (default: 0)")
    add("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
