"""Binary layers in OpenVINO: exact with single bits, and refused where they would be computed in floats."""

import io

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bcnet.agent import openvino_jobs
from bcnet.agent.openvino_graph import binary_layers, binary_layers_not_u1, equal_thresholds
from bcnet.errors import DeviceError, NetworkError
from bcnet.runtimes.device import LocalDevice
from bcnet.runtimes.openvino import OpenVino

pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")

RUNTIME = OpenVino(LocalDevice())
SETTINGS = {"provider": "cpu", "threads": 1, "precision": "fp32"}
DOMAIN = "org.openvinotoolkit"
CHANNELS = 64
RNG = np.random.default_rng(0)
THRESHOLDS = RNG.standard_normal((1, CHANNELS, 1, 1)).astype(np.float32)
SIGNS = np.sign(RNG.standard_normal((CHANNELS, CHANNELS, 3, 3))).astype(np.float32)


def conv(source: str, name: str) -> NodeProto:
    return helper.make_node("Conv", [source, f"{name}.weight"], [name], name=name, pads=[1, 1, 1, 1])


def binary_file(scale: float = 1.0, width: float = 1e-6, weights: np.ndarray = SIGNS) -> bytes:
    """A convolution of floats, then one of signs: 1 above a threshold for each channel, else -1.

    `scale` is the weights' magnitude, `width` the distance of the thresholds from the limits between which
    OpenVINO rounds.
    """
    arrays = {
        "real.weight": RNG.standard_normal((CHANNELS, 3, 3, 3)).astype(np.float32),
        "binary.weight": scale * weights,
        "low": THRESHOLDS - np.float32(width),
        "high": THRESHOLDS + np.float32(width),
        "minus": np.float32(-1),
        "plus": np.float32(1),
    }
    limits = ["real", "low", "high", "minus", "plus"]
    sign = helper.make_node("FakeQuantize", limits, ["sign"], name="sign", domain=DOMAIN, levels=2)
    graph = helper.make_graph(
        [conv("image", "real"), sign, conv("sign", "binary")],
        "binary",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, 8, 8])
            for name in ("real", "binary")
        ],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def test_a_binary_layer_runs_with_single_bits_and_is_exact() -> None:
    content = binary_file()
    compiled = openvino_jobs.load(content, SETTINGS)
    assert binary_layers_not_u1(compiled, ["binary"]) == []
    images = RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)
    real, found = (torch.from_numpy(array) for array in RUNTIME.predictor(content)(images))
    signs = torch.where(real > torch.from_numpy(THRESHOLDS), 1.0, -1.0)
    expected = torch.nn.functional.conv2d(signs, torch.from_numpy(SIGNS), padding=1)
    assert torch.equal(found, expected)
    assert "binary" in [part for name, _ in RUNTIME.profile_nodes(content, 2) for part in name.split(" + ")]


def test_a_layer_of_floats_or_an_unknown_one_does_not_count_as_binary() -> None:
    compiled = openvino_jobs.load(binary_file(), SETTINGS)
    assert binary_layers_not_u1(compiled, ["real", "binary", "nosuch"]) == ["real", "nosuch"]


@pytest.mark.parametrize(
    ("scale", "weights", "declared"),
    [(1.0, SIGNS, ["binary"]), (0.25, SIGNS, ["binary"]), (1.0, SIGNS * np.abs(RNG.random(SIGNS.shape)), [])],
)
def test_layers_are_declared_binary_by_the_file_itself(
    scale: float, weights: np.ndarray, declared: list[str]
) -> None:
    """Signs that are multiplied by weights of floats are another layer."""
    model = openvino_jobs._core().read_model(io.BytesIO(binary_file(scale, weights=weights)))
    assert binary_layers(model) == declared


def test_a_binary_layer_that_would_be_computed_in_floats_is_refused() -> None:
    scaled = binary_file(scale=0.25)
    reason = "^OpenVINO computes 1 of 1 binary layers in floats, not in single bits, e.g. 'binary', which"
    for use in (
        lambda: RUNTIME.time_network(scaled, 0, 0.01, 2),
        lambda: RUNTIME.profile_nodes(scaled, 2),
        lambda: RUNTIME.build(scaled),
    ):
        with pytest.raises(DeviceError, match=reason) as caught:
            use()
        assert not isinstance(caught.value, NetworkError)  # all rows of a table would be wrong, not one


def test_equal_limits_of_a_threshold_are_refused() -> None:
    equal = binary_file(width=0.0)
    model = openvino_jobs._core().read_model(io.BytesIO(equal))
    assert equal_thresholds(model) == ["sign"]
    with pytest.raises(NetworkError, match=r"^FakeQuantize 'sign' has equal input_low and input_high"):
        RUNTIME.time_network(equal, 0, 0.01, 2)
