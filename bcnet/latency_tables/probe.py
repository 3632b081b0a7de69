"""Pool the readings of a device's reference microbenchmark (`bcnet.agent.probe`) over a measuring session.

In: readings in ms by part. Out: their medians and spreads.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bcnet.errors import DeviceError


def pool_readings(readings: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Medians in ms and spreads of the readings of a session, its `probe` and `probe_spread`.

    A spread is the median absolute deviation of the readings over their median. Raises DeviceError if the
    readings have no part in common.
    """
    parts = [name for name in readings[0] if all(name in reading for reading in readings)]
    if not parts:
        raise DeviceError(
            "the readings of the device's reference microbenchmark have no part in common; measure again"
        )
    medians, spread = {}, {}
    for name in parts:
        values = np.array([reading[name] for reading in readings])
        median = float(np.median(values))
        medians[name] = round(median, 5)
        spread[name] = round(float(np.median(np.abs(values - median))) / max(median, 1e-9), 5)
    return medians, spread
