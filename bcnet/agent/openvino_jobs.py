"""OpenVINO on a device: latencies of whole networks, its profile of layers, and outputs."""

import io
import re
from typing import Any, Dict, List, Sequence

from .arrays import FREE_BATCH, Packed, batches, pack, unpack
from .errors import JobError
from .look import last_level_cache, processor
from .openvino_graph import binary_layers, binary_layers_not_u1, equal_thresholds, executed, row_names
from .openvino_profile import profiled
from .timing import timed

LOWER = ("bf16", "f16")
# Lines of a message that name places in OpenVINO's code, or announce others.
WHERE = ("Exception from ", "Check '", "FrontEnd API failed", "Model wasn't fully", "-- ", "While validating")
UNKNOWN = re.compile(r"No conversion rule found for operations: (.*\S)")

_cores: List[Any] = []


def fingerprint(settings: Dict[str, Any]) -> Dict[str, str]:
    """Runtime version, processor, and the size of its last-level cache in megabytes if it is known."""
    device = device_named(settings.get("provider", "cpu"))
    found = {"runtime_version": _version()}
    if device == "CPU":
        return dict(found, processor=processor(), **last_level_cache())
    return dict(found, processor=str(_core().get_property(device, "FULL_DEVICE_NAME")))


def build(model: bytes, settings: Dict[str, Any], batches: Sequence[int] = ()) -> Dict[str, Any]:
    """ "info" about an ONNX file, after loading it once as a check. It needs no building."""
    load(model, settings)
    info = {
        "flavour": "openvino",
        "versions": {"openvino": _version()},
        "batches": list(batches),
        "layers": None,
        "layers_source": "OpenVINO optimises the file each time it is loaded",
    }
    return {"info": info}


def time_runs(
    model: bytes, settings: Dict[str, Any], warmup_ms: float, seconds: float, iterations: int
) -> List[float]:
    """Milliseconds of each inference, for at least `seconds` and `iterations`, after the warm-up."""
    request, _ = _with_inputs(load(model, settings))
    return timed(lambda _: _run(request, None), lambda: None, warmup_ms, seconds, iterations)


def time_application(
    model: bytes, settings: Dict[str, Any], warmup_ms: float, seconds: float, iterations: int
) -> List[float]:
    """The same as an application runs it: with new input arrays for each inference, and copied outputs."""
    request, arrays = _with_inputs(load(model, settings))

    def copied() -> Dict[int, Any]:
        return {place: array.copy() for place, array in enumerate(arrays)}

    return timed(lambda given: _run(request, given), copied, warmup_ms, seconds, iterations)


def profile(model: bytes, settings: Dict[str, Any], runs: int) -> Dict[str, Any]:
    """ "names" of layers in order of execution, and their "ms" [parts of the runs][layers]."""
    compiled = load(model, dict(settings, profile=True))
    request, _ = _with_inputs(compiled)
    averaged = device_named(settings.get("provider", "cpu")) == "CPU"
    return profiled(compiled, request, lambda: _run(request, None), averaged, runs)


def infer(compiled: Any, inputs: List[Packed]) -> List[Packed]:
    """All outputs (N, ...) for inputs (N, ...), in batches of the file's size if that is fixed."""
    import numpy as np

    arrays = [unpack(packed) for packed in inputs]
    fixed = compiled.inputs[0].get_partial_shape()
    free = len(fixed) == 0 or fixed[0].is_dynamic
    size = min(len(arrays[0]), FREE_BATCH) if free else fixed[0].get_length()
    request = compiled.create_infer_request()
    outputs = []
    for parts, count in batches(arrays, size):
        found = _run(request, dict(enumerate(parts)))
        outputs.append([array[:count] for array in found])
    return [pack(np.concatenate(parts)) for parts in zip(*outputs)]


def load(model: bytes, settings: Dict[str, Any]) -> Any:
    """The compiled model: one stream, the profile's number of threads, and its precision.

    Raises JobError if OpenVINO, the device or an operator is missing, or if a layer would be computed in
    another precision than the network declares.
    """
    device = device_named(settings.get("provider", "cpu"))
    precision = settings.get("precision", "fp32")
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": inference_precision(precision, device),
    }
    if device == "CPU":
        # As ONNX Runtime's threads: where they run is left to the process's own affinity (taskset), because
        # OpenVINO would pin every process that measures to the same core.
        options.update(
            NUM_STREAMS="1", INFERENCE_NUM_THREADS=str(settings.get("threads", 1)), ENABLE_CPU_PINNING="NO"
        )
    if settings.get("profile"):
        options["PERF_COUNT"] = "YES"
    core = _core()
    try:
        network = core.read_model(io.BytesIO(model))
    except Exception as cause:
        raise JobError("network", "OpenVINO cannot read the network: %s" % reason_of(cause))
    _check_thresholds(network)
    declared = binary_layers(network)
    try:
        compiled = core.compile_model(network, device, options)
    except Exception as cause:
        raise JobError("network", "OpenVINO cannot load the network: %s" % reason_of(cause))
    _check_precision(compiled, precision)
    _check_binary(compiled, declared)
    return compiled


def inference_precision(precision: str, device: str) -> str:
    """OpenVINO's name of what floats are computed in. Without it, newer processors compute in bfloat16.

    At int8, what stays in floats is computed as in the file on a processor, and halved on accelerators.
    """
    return "f32" if precision == "fp32" or (precision == "int8" and device == "CPU") else "f16"


def missing(settings: Dict[str, Any]) -> Any:
    """What is missing on this device for this runtime, as a message; None if nothing is."""
    try:
        device_named(settings.get("provider", "cpu"))
    except JobError as reason:
        return reason.message
    return None


def device_named(name: str) -> str:
    """OpenVINO's name of a device: `gpu` is GPU. Raises JobError, with the available ones, if it has none."""
    wanted, available = name.upper(), list(_core().available_devices)
    if wanted in available or any(own.startswith(wanted + ".") for own in available):
        return wanted
    raise JobError(
        "device",
        "OpenVINO has no device '%s' on this machine, only %s; install its driver, or change `provider` in "
        "the hardware profile" % (wanted, ", ".join(available) or "none"),
    )


def reason_of(cause: BaseException) -> str:
    """The line of OpenVINO's message that says what is wrong, without the places in its source code."""
    unknown = UNKNOWN.search(str(cause))
    if unknown:
        return "it has no operator %s" % unknown.group(1)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(WHERE)]
    return (useful or lines or [type(cause).__name__])[0]


def _check_thresholds(network: Any) -> None:
    wrong = equal_thresholds(network)
    if wrong:
        raise JobError(
            "network",
            "FakeQuantize '%s' has equal input_low and input_high, between which OpenVINO divides by zero; "
            "set them to the threshold -/+ 1e-6" % wrong[0],
        )


def _check_precision(compiled: Any, precision: str) -> None:
    """By default OpenVINO computes in bfloat16 where the processor supports it."""
    if precision != "fp32":
        return
    lower = [layer for layer in executed(compiled) if layer.precision in LOWER]
    if lower:
        raise JobError(
            "device",
            "OpenVINO computes '%s' in %s, not in fp32: choose another precision in the hardware profile"
            % (row_names(lower)[0], lower[0].precision),
        )


def _check_binary(compiled: Any, declared: Sequence[str]) -> None:
    """A binary layer that is computed in floats would be timed as if it were binary."""
    wrong = binary_layers_not_u1(compiled, declared) if declared else []
    if wrong:
        raise JobError(
            "device",
            "OpenVINO computes %d of %d binary layers in floats, not in single bits, e.g. '%s', which "
            "would be timed as if it were binary: weights must be exactly -1 and 1, on an x86 processor"
            % (len(wrong), len(declared), wrong[0]),
        )


def _with_inputs(compiled: Any) -> Any:
    """A request with constant inputs, and their arrays: noise, or zeros for integers, which are indices."""
    import numpy as np

    request, rng, arrays = compiled.create_infer_request(), np.random.RandomState(0), []
    for port in compiled.inputs:
        kind = np.dtype(port.get_element_type().to_dtype())
        shape = [side.get_length() if side.is_static else 1 for side in port.get_partial_shape()]
        array = rng.standard_normal(shape).astype(kind) if kind.kind == "f" else np.zeros(shape, kind)
        request.set_tensor(port, _runtime().Tensor(array, shared_memory=True))
        arrays.append(array)
    return request, arrays


def _run(request: Any, inputs: Any) -> List[Any]:
    """All outputs in the file's order. Without `inputs`: for the request's own ones, and without copies."""
    try:
        found = request.infer(inputs, share_outputs=inputs is None)
    except Exception as cause:
        raise JobError("network", "OpenVINO cannot run the network: %s" % reason_of(cause))
    return [found[place] for place in range(len(found))]


def _version() -> str:
    """The release, without the number of its build."""
    return str(_runtime().__version__).split("-")[0]


def _core() -> Any:
    """OpenVINO's core, which finds the devices. One per process."""
    if not _cores:
        _cores.append(_runtime().Core())
    return _cores[0]


def _runtime() -> Any:
    try:
        import openvino
    except ImportError as cause:
        raise JobError(
            "device", 'OpenVINO is missing (%s); install it: pip install "bcnet[openvino]"' % cause
        )
    return openvino
