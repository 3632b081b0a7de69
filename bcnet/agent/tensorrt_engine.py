"""Build engines and cache them on the device. In: an ONNX file. Out: its serialised engine."""

import hashlib
import re
from pathlib import Path
from typing import Any, Dict, Sequence

from . import kept, look
from .arrays import min_opt_max
from .cuda import cuda
from .errors import JobError, one_line
from .tensorrt_module import Api, variant_of, wrong_variant


def engine_of(api: Api, model: bytes, settings: Dict[str, Any], batches: Sequence[int]) -> bytes:
    """The engine of an ONNX file, cached or built now; `model` itself if it is an engine. Raises JobError."""
    built = variant_of(model)
    if built == api.name:
        return model
    if built is not None:
        raise JobError("network", wrong_variant(built, api.name))
    setting = settings["precision"], settings.get("compute_capability"), list(batches)
    path = _kept_at(api, "engine", hashlib.sha256(model).hexdigest(), *setting)
    content = kept.read(path)
    if content is None:
        content = _built(api, model, settings, batches)
        kept.write(path, content)
        kept.write(path.with_suffix(".layers"), api.listed.encode())
    else:
        api.listed = (kept.read(path.with_suffix(".layers")) or b"").decode()
    return content


def _kept_at(api: Api, kind: str, *made_by: Any) -> Path:
    """The path of a cached file of that kind, which depends on TensorRT's version, the GPU and `made_by`."""
    key = repr((api.version, gpu_name(), made_by))  # a home folder may be shared
    return kept.folder(api.name) / ("%s.%s" % (hashlib.sha256(key.encode()).hexdigest(), kind))


def _built(api: Api, model: bytes, settings: Dict[str, Any], batches: Sequence[int]) -> bytes:
    """Build an engine. Raises JobError with TensorRT's message if it rejects the network."""
    trt = api.trt
    try:
        builder = trt.Builder(api.log)
    except Exception as cause:
        what = "the builder cannot start, is there a GPU? (%s)" % one_line(cause)
        raise JobError("device", api.message(what))
    flags = trt.NetworkDefinitionCreationFlag
    typed = hasattr(flags, "STRONGLY_TYPED")
    network = builder.create_network(_bits(flags, "STRONGLY_TYPED", "EXPLICIT_BATCH"))
    parser = trt.OnnxParser(network, api.log)
    if not parser.parse(model):
        what = "cannot read the network"
        if api.version.startswith("8."):
            what += " (TensorRT 8 reads ONNX up to opset 17: set `opset = 17` in the hardware profile)"
        raise JobError("network", api.message(what))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not typed and settings["precision"] != "fp32":
        # The file has the types; an older builder uses them only with the flag.
        config.set_flag(getattr(trt.BuilderFlag, settings["precision"].upper()))
    if batches:
        config.add_optimization_profile(_batch_profile(builder, network, batches))
    if api.is_rtx and settings.get("compute_capability"):
        _set_target(trt, config, settings["compute_capability"])
    cache, path = None, None
    if not api.is_rtx:  # TensorRT for RTX accepts a timing cache, but ignores it
        path = _kept_at(api, "timing")
        cache = config.create_timing_cache(kept.read(path) or b"")
        if cache is None or not config.set_timing_cache(cache, False):  # of another version, or damaged
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
    api.clear()
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise JobError("network", api.message("cannot build the network"))
    if cache is not None and path is not None:
        kept.write(path, bytes(config.get_timing_cache().serialize()))
    return bytes(content)


def _bits(flags: Any, *names: str) -> int:
    """The bits of those flags that this version has; the bits of a flag differ between versions."""
    found = 0
    for name in names:
        if hasattr(flags, name):
            found |= 1 << int(getattr(flags, name))
    return found


def _batch_profile(builder: Any, network: Any, batches: Sequence[int]) -> Any:
    """The optimization profile of a dynamic batch. Raises JobError if the file has a fixed batch."""
    sizes = min_opt_max(batches)
    found = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        entry = network.get_input(number)
        shape = tuple(entry.shape)
        if not shape or shape[0] >= 0:
            raise JobError(
                "network", "input '%s' has a fixed batch in the ONNX file: %s" % (entry.name, shape)
            )
        found.set_shape(entry.name, *[(size,) + shape[1:] for size in sizes])
    return found


def _set_target(trt: Any, config: Any, compute_capability: str) -> None:
    """Build for another GPU. Raises JobError, with the supported ones, if the version does not support it."""
    name = "SM" + compute_capability.replace(".", "")
    known = [one for one in dir(trt.ComputeCapability) if re.match(r"SM\d+$", one)]
    if name not in known:
        raise JobError(
            "device",
            "TensorRT for RTX builds for %s, not for %s: build on the device itself, with runtime 'tensorrt'"
            % (", ".join(sorted(known, key=lambda one: int(one[2:]))), name),
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)


def gpu_name() -> str:
    """A description of the GPU for which engines are built; "" without a GPU."""
    try:
        facts = cuda().facts()
    except JobError:
        return ""
    gpu = "%(name)s, SM %(compute_capability)s, CUDA %(cuda_driver)s" % facts
    return "%s, %s" % (gpu, look.power_mode())
