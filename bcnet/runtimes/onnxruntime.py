"""ONNX Runtime: latencies of whole networks, of nodes by its profiler, and outputs.

It runs on the CPU, or with another execution provider that is installed, by its name.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bcnet.errors import DeviceError
from bcnet.runtimes.device_runtime import OnnxFileRuntime

ATTEMPTS = 4  # maximum number of profiles of a network if the clock is adjusted meanwhile
LOADING_S = 120.0  # time limit of a job besides measuring


@dataclass(frozen=True)
class OnnxRuntime(OnnxFileRuntime):
    """ONNX Runtime on a device, with an execution provider and a number of threads.

    When timed as an application, it has new input arrays for each inference.
    """

    loading_s = LOADING_S

    def profile_nodes(self, model: bytes, runs: int) -> list[tuple[str, np.ndarray]]:
        """Node names of the optimised graph in order of execution, with their milliseconds in each run.

        Warm-up runs, which allocate memory, are excluded. Runs during which the profiler's clock was adjusted
        are repeated. The profiler's overhead per node is subtracted, so the time of a trivial node can be
        slightly below zero. Raises DeviceError if the clock is adjusted again and again, or if the provider
        runs the network as a single block.
        """
        names: list[str] = []
        kept = np.empty((0, 0))
        for _ in range(ATTEMPTS):
            names, durations, walls = self._profile(model, runs)
            sound = durations[plausible(durations, walls)]
            kept = np.concatenate([kept, sound]) if len(kept) else sound
            if len(kept) >= runs:
                # The overhead is part of every node's time, so it cannot exceed that of the shortest node.
                # This bound matters if the machine was slower while the overhead was measured.
                shortest = float(kept[:runs].mean(0).min())
                overhead = min(self._profiler_ms, shortest) if self.provider == "cpu" else 0.0
                return [(name, kept[:runs, index] - overhead) for index, name in enumerate(names)]
        raise DeviceError(
            f"ONNX Runtime's profile disagrees with the machine's monotonic clock in {ATTEMPTS * runs} runs: "
            "the system clock is being adjusted; measure again when it is stable"
        )

    def _call(self, what: str, limit_s: float, **job: Any) -> dict[str, Any]:
        settings = {"provider": self.provider, "threads": self.threads}
        return self.device.call({"do": what, "runtime": "onnxruntime", "settings": settings, **job}, limit_s)

    def _profile(self, model: bytes, runs: int) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Names of nodes, their ms in each run (runs, nodes), and wall-clock ms of the runs (runs,)."""
        found = self._call("profile", LOADING_S + runs, model=model, runs=runs)
        names = list(found["names"])
        is_block = len(names) == 1 and len(onnx.load_from_string(model).graph.node) > 1
        if is_block and self.provider != "cpu":
            raise DeviceError(
                f"execution provider '{self.provider}' runs the network as a single block, without times "
                "of layers, so no latency table can be measured with it"
            )
        return names, np.array(found["ms"]), np.array(found["walls_ms"])

    @cached_property
    def _profiler_ms(self) -> float:
        """The profiler's overhead per node: a chain of small layers, timed with and without the profiler.

        It is about 1.7 microseconds, and a layer at 64 pixels takes 4. The number of nodes of a layer depends
        on its width, so the overhead is no constant of the network, which the calibration could correct.
        """
        model = _chain()
        overheads = []
        for _ in range(3):  # the minimum of each, since other work only adds time
            names, durations, walls = self._profile(model, 50)
            profiled = durations[plausible(durations, walls)].sum(1)
            plain = self.time_network(model, 5.0, 0.02, 50)
            if len(profiled):
                overheads.append((float(profiled.min()) - float(plain.min())) / len(names))
        return max(float(np.median(overheads or [0.0])), 0.0)


def plausible(durations: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """Which runs (N,) have plausible node times (N, nodes): none below zero, and their sum within the run's.

    `walls` (N,) are the runs' milliseconds by the monotonic clock; the profiler uses the system clock, in
    whole microseconds.
    """
    rounding = durations.shape[1] / 1000
    possible: np.ndarray = (durations >= 0).all(1) & (durations.sum(1) <= walls + rounding)
    return possible


def _chain() -> bytes:
    """A sequence of a hundred 1x1 convolutions of 16 channels on one pixel, as an ONNX file."""
    count, sides = 100, [1, 16, 1, 1]
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for k in range(count):
        kernel = rng.standard_normal((16, 16, 1, 1), dtype=np.float32) / 4
        weights += [
            numpy_helper.from_array(kernel, f"w{k}"),
            numpy_helper.from_array(kernel[:, 0, 0, 0], f"b{k}"),
        ]
        nodes.append(helper.make_node("Conv", [f"x{k}", f"w{k}", f"b{k}"], [f"x{k + 1}"], name=f"x{k + 1}"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
    opset = [helper.make_opsetid("", 13)]  # and a format that early versions of ONNX Runtime read, too
    model: bytes = helper.make_model(graph, opset_imports=opset, ir_version=7).SerializeToString()
    return model
