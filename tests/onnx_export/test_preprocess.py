"""Files that take uint8 images give the network the pixels that it was trained with."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper
from PIL import Image

from bcnet.agent.onnx_inputs import onnx_inputs
from bcnet.data.pictures import squared
from bcnet.errors import ModelError
from bcnet.onnx_export.preprocess import Preprocessing, resampling

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SIZES = [(48, 90), (90, 48), (30, 41), (16, 20), (40, 40), (40, 64)]
SIDE = 40


def identity(batch: int | str = 2, opset: int = 18, names: tuple[str, ...] = ("input",)) -> ModelProto:
    """A network whose outputs are its inputs."""
    shape = [batch, 3, SIDE, SIDE]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
    made = [helper.make_tensor_value_info(f"{name} out", TensorProto.FLOAT, shape) for name in names]
    nodes = [helper.make_node("Identity", [name], [f"{name} out"]) for name in names]
    graph = helper.make_graph(nodes, "identity", given, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def images(size: tuple[int, int], count: int = 2) -> np.ndarray:
    """Noise over a gradient: without antialiasing it would be scaled to other pixels."""
    height, width = size
    noise = np.random.default_rng(0).integers(0, 128, (count, height, width, 3))
    return (noise + np.linspace(0, 127, width)[:, None]).astype(np.uint8)


def by_pillow(pixels: np.ndarray) -> np.ndarray:
    """The pixels (N, 3, SIDE, SIDE), 0 to 255, that a folder of such images gives."""
    squares = [np.asarray(squared(Image.fromarray(image), SIDE), np.float32) for image in pixels]
    return np.stack(squares).transpose(0, 3, 1, 2)


def pixels_in(proto: ModelProto, pixels: np.ndarray) -> np.ndarray:
    """What the network of a file gets, in pixels of 0 to 255."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"pixels": pixels})
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (MEAN, STD))
    return output * (255 * std) + 255 * mean


@pytest.mark.parametrize("size", SIZES)
def test_resize_with_antialiasing_gives_the_pixels_of_pillow(size: tuple[int, int]) -> None:
    own = Preprocessing(size, SIDE, MEAN, STD)
    error = np.abs(pixels_in(own.before(identity()), images(size)) - by_pillow(images(size)))
    assert error.max() < 2.01  # both round twice, not always alike
    assert error.mean() < 0.15


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opset", [17, 18])
def test_products_with_matrices_give_the_pixels_of_pillow_before_they_are_rounded(
    size: tuple[int, int], opset: int
) -> None:
    own = Preprocessing(size, SIDE, MEAN, STD, by_operator=False)
    proto = own.before(identity(opset=opset))
    assert "Resize" not in {node.op_type for node in proto.graph.node}
    assert proto.graph.node[0].op_type == "Cast"  # all that TensorRT does with uint8
    error = np.abs(pixels_in(proto, images(size)) - by_pillow(images(size)))
    assert error.max() < 1.1  # Pillow rounds twice
    assert error.mean() < 0.5


def test_images_of_the_networks_size_are_only_normalised() -> None:
    own = Preprocessing((SIDE, SIDE), None, MEAN, STD)
    proto = own.before(identity())
    assert [node.op_type for node in proto.graph.node] == ["Transpose", "Cast", "Sub", "Div", "Identity"]
    pixels = images((SIDE, SIDE))
    assert np.abs(pixels_in(proto, pixels) - pixels.transpose(0, 3, 1, 2)).max() < 1e-4
    assert not own.scales


def test_every_weight_of_a_pixel_is_taken_from_the_image() -> None:
    for source, target in ((90, 40), (30, 40), (41, 41)):
        weights = resampling(source, target, 0, target)
        assert weights.shape == (target, source)
        assert weights.sum(1) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("batch", "shape"), [(4, [4, 48, 90, 3]), ("batch", [-1, 48, 90, 3])])
def test_the_batch_is_that_of_the_network(batch: int | str, shape: list[int]) -> None:
    proto = Preprocessing((48, 90), SIDE, MEAN, STD).before(identity(batch))
    assert onnx_inputs(proto.SerializeToString()) == [("pixels", shape)]
    assert proto.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    onnx.checker.check_model(proto, full_check=True)


def test_a_network_with_two_inputs_is_refused() -> None:
    own = Preprocessing((48, 90), SIDE, MEAN, STD)
    with pytest.raises(ModelError, match="needs a network with one input of images"):
        own.before(identity(names=("left", "right")))
