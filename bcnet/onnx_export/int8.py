"""Static INT8 quantisation of an ONNX network. In: an exported network, and representative inputs.

Out: the same network with QuantizeLinear and DequantizeLinear around its layers.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bcnet.data.image_data import ImageData
from bcnet.errors import BcnetError, ModelError, one_line
from bcnet.hw_profiles import HwProfile
from bcnet.runtimes.onnx_binary import binary_convolutions

# The layers with integer kernels, and the operators between them that preserve integers.
QUANTISED = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "Sigmoid", "LeakyRelu", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Reshape", "Flatten", "Squeeze", "Unsqueeze"),
)

IMAGES = 128  # number of training images that calibrate the ranges of activations

Feed = Mapping[str, np.ndarray]


class _Reader:
    """Calibration inputs as the library reads them."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def quantized(proto: ModelProto, feeds: Iterable[Feed], unsigned: bool) -> ModelProto:
    """An INT8 copy of a float network (QDQ format), calibrated on `feeds`, each {input's name: array}.

    Weights are int8, symmetric, with one scale per output channel; activations have one scale per tensor,
    from the largest observed value. Signed activations have zero points of 0, and biases stay floats, as
    TensorRT requires. Unsigned activations are symmetric, too: a tensor that is never negative has its zero
    point at 0, any other at 128. ONNX Runtime's CPU kernels for x86 support only these without falling back
    to floats (decision 2). Binary convolutions stay as they are. Nodes keep their names. Raises ModelError
    with the library's reason.
    """
    source = ModelProto()  # the library changes what it is given
    source.CopyFrom(proto)
    options = {"WeightSymmetric": True}
    options["ActivationRestrictedAsymmetric" if unsigned else "ActivationSymmetric"] = True
    options["QuantizeBias"] = unsigned
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            path = Path(folder) / "int8.onnx"
            quantize_static(
                source,
                path,
                _Reader(feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=True,
                activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*_other_limits(source), *_of_one_bit(source)],
                extra_options=options,
            )
            result = onnx.load(path)
    except BcnetError:
        raise  # a training image that cannot be read
    except Exception as cause:
        raise ModelError(f"ONNX Runtime cannot quantise the network: {one_line(cause)}") from cause
    del result.graph.value_info[:]  # sizes at these widths
    del result.metadata_props[:]
    result.metadata_props.extend(proto.metadata_props)
    return result


def unsigned_activations(profile: HwProfile) -> bool:
    """Whether activations should be unsigned (see `quantized`): for ONNX Runtime's CPU provider."""
    return not profile.traits.signed_int8 and profile.provider == "cpu"


def calibration_feeds(data: ImageData, names: Sequence[str], batch: int, seed: int) -> Iterator[Feed]:
    """About 128 training images, chosen by `seed`, without transforms, in batches of exactly `batch`."""
    count = min(IMAGES, len(data.train))
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:count]
    order = order.repeat(-(-batch // count))  # fewer images than a batch
    for inputs, _ in data.batches(data.train.take(order[: len(order) // batch * batch]), batch):
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        yield {name: tensor.contiguous().numpy() for name, tensor in zip(names, tensors, strict=True)}


def _other_limits(proto: ModelProto) -> list[str]:
    """Clips whose lower limit is not zero, which the library would remove as if unsigned integers clipped."""
    zeros = {e.name for e in proto.graph.initializer if not numpy_helper.to_array(e).any()}
    return [
        node.name
        for node in proto.graph.node
        if node.op_type == "Clip" and (len(node.input) < 2 or node.input[1] not in zeros)
    ]


def _of_one_bit(proto: ModelProto) -> list[str]:
    """Binary convolutions, and the sums whose signs they read: neither is for integers of eight bits."""
    made_by = {name: node for node in proto.graph.node for name in node.output}
    found = []
    for own in binary_convolutions(proto.graph):
        compared = made_by[own.signs.input[0]].input[0]
        found += [own.node.name, *([] if compared == own.source else [made_by[compared].name])]
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's advice, for which it logs to the root logger, and would configure it."""
    root, silent = logging.getLogger(), logging.NullHandler()
    before = logging.root.manager.disable
    root.addHandler(silent)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(silent)
