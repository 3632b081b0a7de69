"""Seed the random generators for a block, and restore their states afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """A seed of 32 bits that differs with each of the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


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
