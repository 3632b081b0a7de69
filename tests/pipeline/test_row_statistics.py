"""From a runtime's profiles to a row: what other work on the machine and the profiler add is left out."""

import numpy as np
import onnx
import pytest
from onnx import helper

from bcnet.latency_tables.model import LayerSlot
from bcnet.latency_tables.rows import LayerSpec
from bcnet.measure.layer_attribution import attribute, row_stat, undisturbed_ms
from bcnet.runtimes import runtime_here


def slot(node: str) -> LayerSlot:
    return LayerSlot(node, LayerSpec("Conv", 8, 8), ((None, 8),), ((None, 8),), None, (node,))


def test_runs_are_sorted_by_the_whole_network_and_layers_stay_together() -> None:
    profile = [("a", np.array([3.0, 1.0, 2.0])), ("b", np.array([1.0, 5.0, 1.0]))]
    assert attribute([slot("a"), slot("b")], profile).tolist() == [[2.0, 3.0, 1.0], [1.0, 1.0, 5.0]]


def test_a_layer_counts_as_in_the_fastest_quarter_of_its_networks_runs() -> None:
    assert undisturbed_ms(np.array([[0.2, 0.4, *[9.0] * 6], [0.1, 0.3, *[9.0] * 6]])) == pytest.approx(
        [0.3, 0.2]
    )
    assert undisturbed_ms(np.array([0.5, 9.0])) == pytest.approx(0.5)


def test_a_machine_that_is_busy_most_of_the_time_does_not_move_a_row() -> None:
    rng = np.random.default_rng(0)

    def profiles(busy: float) -> list[np.ndarray]:
        """Four profiles of twenty runs of 2 ms, some of which take up to twice as long."""
        runs = 2 + rng.normal(0, 0.01, (4, 20)) + 2 * rng.random((4, 20)) * (rng.random((4, 20)) < busy)
        return list(np.sort(runs))

    quiet, disturbed = row_stat(profiles(0.0)), row_stat(profiles(0.6))
    assert disturbed.median_ms == pytest.approx(quiet.median_ms, rel=0.02)
    assert quiet.median_ms == pytest.approx(2, rel=0.02)
    assert disturbed.p90_ms > 2.5
    assert disturbed.samples == 80


def test_a_layer_that_many_networks_show_is_no_faster_for_that() -> None:
    rng = np.random.default_rng(1)
    once, often = (
        np.mean([row_stat(list(1 + rng.normal(0, 0.03, (count, 1)))).median_ms for _ in range(300)])
        for count in (2, 16)
    )
    assert once == pytest.approx(often, abs=0.01)


def test_a_layer_below_what_the_profiler_adds_costs_nothing() -> None:
    stat = row_stat([np.array([-0.0006, -0.0006, 0.0004, 0.0004])])
    assert stat.median_ms == 0
    assert stat.p90_ms == pytest.approx(0.0004)


def test_a_profile_adds_up_to_what_the_network_takes_without_one() -> None:
    """Sixty layers of a third of a microsecond: the profiler itself takes five times as long."""
    count = 60
    weights = [
        onnx.numpy_helper.from_array(np.eye(24, dtype=np.float32).reshape(24, 24, 1, 1), f"w{k}")
        for k in range(count)
    ]
    nodes = [
        helper.make_node("Conv", [f"x{k}", f"w{k}"], [f"x{k + 1}"], name=f"x{k + 1}") for k in range(count)
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 24, 2, 2])
        for name in ("x0", f"x{count}")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    runtime = runtime_here("onnxruntime")
    content = model.SerializeToString()
    differences = []
    for _ in range(5):  # one of them is undisturbed; without what is taken off, each is off by 0.1 ms
        profiles = runtime.profile_nodes(content, 100)
        summed = np.median(np.sum([ms for _, ms in profiles], axis=0))  # a run is in whole microseconds
        differences.append(abs(summed - np.min(runtime.time_network(content, 25, 0.02, 100))))
    assert min(differences) == pytest.approx(0, abs=0.5 * count / 1000)
