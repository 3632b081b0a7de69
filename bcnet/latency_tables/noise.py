"""The noise of a latency table. In: whole networks, each timed several times. Out: a fraction or error.

Also whether so many programs run on a machine that a table will be noisy.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from bcnet.errors import TableError
from bcnet.plain import counted

QUIETER = (
    "stop other work on the machine, keep bcnet on its own cores (taskset), use fewer threads (--threads), "
    "or set a larger `seconds` in the device's hardware profile"
)

CROWDED = 1.5  # programs that want to run, for each core


def crowded(load: float, cores: int) -> str | None:
    """A message if more programs want to run than a machine's cores can; else None."""
    if load <= CROWDED * cores:
        return None
    return (
        f"other programs keep this machine busy (load {load:.1f} on {counted(cores, 'core')}): measuring "
        "takes longer, and the latency table may be too noisy to be used; better stop them first"
    )


def noise_of_networks(times_ms: Iterable[Sequence[float]]) -> float:
    """The mean relative difference between the two fastest measurements of a network; 0 without networks.

    The fastest counts as the network's latency: other work on the machine only adds time.
    """
    fastest = [sorted(own)[:2] for own in times_ms if len(own)]
    return float(np.mean([own[-1] / own[0] - 1 for own in fastest])) if fastest else 0.0


def noisy(noise: float, accepted: float) -> str | None:
    """A message if repeated measurements of a network differed by more than is accepted; else None."""
    if noise <= accepted:
        return None
    return (
        f"the latency table is noisy: two measurements of one network differed by {noise:.1%}, "
        f"table_noise accepts {accepted:.1%}"
    )


def refuse_noisy(noise: float, accepted: float, remedy: str) -> None:
    """Raises TableError if a table is noisier than accepted; `remedy`: what to do on a quieter machine."""
    reason = noisy(noise, accepted)
    if reason:
        enough = f"{math.ceil(noise * 100) / 100:g}"
        raise TableError(
            f"{reason}; {QUIETER}, then {remedy}; or accept it: table_noise = {enough} in bcnet.toml or in "
            f"the device's hardware profile, or --set table_noise={enough} in each command"
        )
