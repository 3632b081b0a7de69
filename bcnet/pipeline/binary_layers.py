"""What becomes of a network's binary layers on a device. In: its graph, a profile. Out: a line for the user.

Some runtimes have kernels for single bits, and these take no file in fp16: see `runtimes/onnx_binary.py`.
"""

from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.rows import BINARY
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.plain import counted


def not_in_single_bits(graph: OnnxSupernet, profile: HwProfile) -> str | None:
    """Why a runtime with 1-bit kernels would not use them for this network at the profile's precision.

    None where it does, or has none.
    """
    form = profile.number_format
    if not profile.traits.one_bit or form.full or form.calibrated or not (layers := _binary(graph)):
        return None
    return (
        f"{profile.name} runs the network's {layers} with single bits at fp32 and int8, not at "
        f"{form.name}: choose one of these precisions"
    )


def without_kernels(graph: OnnxSupernet, profile: HwProfile) -> str | None:
    """That a runtime has no 1-bit kernels for this network; None where it has, or needs none."""
    if profile.traits.one_bit or not (layers := _binary(graph)):
        return None
    return (
        f"{profile.runtime} has no 1-bit kernels, and computes the network's {layers} in "
        "floats; OpenVINO has such kernels for x86 (--device cpu-openvino)"
    )


def _binary(graph: OnnxSupernet) -> str:
    """The number of binary layers, as text; empty if there are none."""
    count = sum(slot.template.op == BINARY for slot in graph.slots)
    return counted(count, "binary layer") if count else ""
