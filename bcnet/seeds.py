"""Seed the random generators: from here on, or for a block, after which their states are restored."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """A seed of 32 bits that differs with each of the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(seed: int, of_torch: int) -> None:
    """Seed the generators of Python and NumPy, and those of PyTorch with another number."""
    # torch.manual_seed looks for all kinds of devices each time, which takes longer than all of this.
    torch.default_generator.manual_seed(of_torch % 2**64)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(of_torch % 2**64)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and PyTorch (on the CPU) during a block.

    The same numbers give the same random numbers inside; those after the block do not depend on it.
    """
    kept = random.getstate(), np.random.get_state()
    seed = seed_of(*numbers)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
