"""Random numbers of users' functions: from a seed, and afterwards as if nothing had been drawn."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's generators (on the CPU), seeded for the length of a block.

    The same numbers give the same draws inside; what is drawn after the block does not depend on it.
    """
    kept = random.getstate(), np.random.get_state()
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
