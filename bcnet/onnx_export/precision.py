"""ONNX files at a device's precision. In: an exported float32 network. Out: it in fp32, fp16 or int8."""

from collections.abc import Callable, Iterable

from onnx import ModelProto

from bcnet.data.image_data import ImageData
from bcnet.hw_profiles import HwProfile
from bcnet.onnx_export.fp16 import to_fp16
from bcnet.onnx_export.int8 import Feed, calibration_feeds, quantized, unsigned_activations
from bcnet.onnx_export.opset import at_opset
from bcnet.traits import Precision


def at_precision(proto: ModelProto, data: ImageData, profile: HwProfile, seed: int) -> ModelProto:
    """An exported network at the profile's opset and precision.

    INT8 is calibrated on training images. Raises ModelError if the conversion fails.
    """
    proto = at_opset(proto, profile.opset)

    def feeds() -> Iterable[Feed]:
        names = [entry.name for entry in proto.graph.input]
        return calibration_feeds(data, names, profile.batch, seed)

    return converted(proto, profile.number_format, feeds, unsigned_activations(profile))


def converted(
    proto: ModelProto, precision: Precision, feeds: Callable[[], Iterable[Feed]], unsigned: bool
) -> ModelProto:
    """A float32 network at a precision; `feeds` are the inputs by which it is calibrated, if it is."""
    if precision.full:
        return proto
    return quantized(proto, feeds(), unsigned) if precision.calibrated else to_fp16(proto)
