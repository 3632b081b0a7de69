"""What a runtime and a precision can do. In: a name, as profiles and latency tables have it. Out: its traits.

Whatever depends on which runtime or precision a device uses is asked here: no other module compares names,
besides those that implement a runtime. A new one is an entry here, and its implementation.
"""

from dataclasses import dataclass
from typing import Literal

PrecisionName = Literal["fp32", "fp16", "int8"]
RuntimeName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "torch"]


@dataclass(frozen=True)
class Precision:
    """What a deployed network computes with.

    `full` is float32, as in training: nothing is converted. `calibrated` are integers whose ranges come from
    training images; outputs then differ from PyTorch's, and accuracy alone decides. `peak` is the field of a
    device's [roofline] with its operations per second, `prefix` begins the names of its settings in [export].
    """

    name: PrecisionName
    weight_bytes: int
    peak: str
    prefix: str
    full: bool = False
    calibrated: bool = False


PRECISIONS: dict[str, Precision] = {
    own.name: own
    for own in (
        Precision("fp32", 4, "fp32_tflops", "", full=True),
        Precision("fp16", 2, "fp16_tflops", "fp16_"),
        Precision("int8", 1, "int8_tops", "int8_", calibrated=True),
    )
}


@dataclass(frozen=True)
class RuntimeTraits:
    """What a runtime does in its own way.

    `key` is its name in latency tables. The device's agent runs it by the first of its `programs` that is
    installed. With `engines` it executes engines that are built from the ONNX file, `ahead_of_time` on any
    machine for a compute capability, else on the device alone; `flavour` is what `--flavour` calls this
    variant of TensorRT. `fused_profile`: a row of its profile is a fused layer of several ONNX nodes. With
    `full_fp32` it multiplies float32 in full precision, where newer GPUs use TF32. `system_clock`: its
    profiler uses a clock that may be set while it runs. With `signed_int8`, integers of activations are
    signed, which processors multiply more slowly. With `antialias` it has ONNX's Resize with antialiasing,
    and operators on 8-bit integers. With `providers`, a profile's `provider` chooses what it runs on. With
    `one_bit`, it has kernels for binary convolutions, which need a file of their own form.
    """

    name: RuntimeName
    key: str
    programs: tuple[str, ...]
    precisions: tuple[PrecisionName, ...] = ("fp32", "fp16", "int8")
    engines: bool = False
    ahead_of_time: bool = False
    flavour: str = ""
    fused_profile: bool = False
    full_fp32: bool = False
    signed_int8: bool = True
    system_clock: bool = False
    antialias: bool = False
    providers: bool = False
    one_bit: bool = False
    over_ssh: bool = True


RUNTIMES: dict[str, RuntimeTraits] = {
    own.name: own
    for own in (
        RuntimeTraits(
            "onnxruntime",
            "onnxruntime",
            ("onnxruntime",),
            full_fp32=True,
            signed_int8=False,
            system_clock=True,
            antialias=True,
            providers=True,
        ),
        RuntimeTraits(
            "openvino",
            "openvino",
            ("openvino",),
            fused_profile=True,
            full_fp32=True,
            signed_int8=False,
            providers=True,
            one_bit=True,
        ),
        RuntimeTraits(
            "tensorrt",
            "tensorrt",
            ("tensorrt", "trtexec"),
            engines=True,
            flavour="tensorrt",
            fused_profile=True,
        ),
        RuntimeTraits(
            "tensorrt-rtx",
            "tensorrt-rtx",
            ("tensorrt-rtx",),
            engines=True,
            ahead_of_time=True,
            flavour="rtx",
            fused_profile=True,
        ),
        RuntimeTraits("torch", "torch-cuda", ("torch",), precisions=("fp32", "fp16"), over_ssh=False),
    )
}


def runtime_by(program: str) -> RuntimeTraits:
    """The runtime that the device's agent runs by this program."""
    return next(own for own in RUNTIMES.values() if program in own.programs)


def is_processor(key: str) -> bool:
    """Whether a latency table's rows under this runtime are of a processor, not of an accelerator."""
    return key == RUNTIMES["onnxruntime"].key
