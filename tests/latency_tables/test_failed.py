"""Which latencies are of networks that the runtime runs."""

import numpy as np

from bcnet.latency_tables.failed import FAILED_MS, SLOWEST_MS, runs


def test_a_network_runs_unless_one_of_its_layers_failed() -> None:
    sums = np.array([0.0, 1.5, FAILED_MS, FAILED_MS + 1.5, 2 * FAILED_MS])
    assert runs(sums).tolist() == [True, True, False, False, False]
    assert runs(SLOWEST_MS)
    assert not runs(FAILED_MS)
