"""Engines of TensorRT. In: a network's ONNX file and a device. Out: its engine, checked where it can be run.

An engine of `tensorrt` is built only on its device. Those of TensorRT for RTX are built on any machine, for a
compute capability, and not executed there.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from onnx import ModelProto

from bcnet.agent.arrays import min_opt_max
from bcnet.errors import DeviceError, NetworkError
from bcnet.hw_profiles import HwProfile
from bcnet.measure.network_latency import builder_of, replayed, why_not_here
from bcnet.pipeline.results import VerifyReport
from bcnet.pipeline.verify import Artifact, Expected, verify
from bcnet.progress import working
from bcnet.runtimes import Engine, Runtime

FILE, ENGINE, FACTS = "model.onnx", "model.engine", "engine.json"
ENGINE_SUFFIX = PurePath(ENGINE).suffix
NEWEST_OF_TENSORRT_8 = 17  # opset that it reads: a profile that asks for files of it has TensorRT 8
CHECKED_HERE = "checked with ONNX Runtime on this processor"


@dataclass(frozen=True)
class EngineWanted:
    """An engine of TensorRT: the runtime that is to read it, the device's own if None.

    `batches` are the sizes of a dynamic batch, from least to largest; with () the batch is fixed.
    """

    flavour: str | None = None
    batches: tuple[int, ...] = ()


@dataclass(frozen=True)
class Built:
    """The report that counts, that of the ONNX file on this processor, and the engine if one was built."""

    report: VerifyReport
    of_file: VerifyReport
    engine: Engine | None = None


def engine_profile(profile: HwProfile, flavour: str | None) -> HwProfile:
    """The device with the runtime that is to read its engine.

    Raises DeviceError where the device has no TensorRT, or is not known well enough to build ahead of time.
    """
    if not profile.traits.engines:
        raise DeviceError(
            f"device '{profile.name}' runs {profile.runtime}, so there is no engine to build; for one "
            "with TensorRT, named as in `bcnet devices`, run `bcnet build-lut --device jetson --host "
            "user@name`, `bcnet search` and `bcnet export --trt`"
        )
    target = profile.model_copy(update={"runtime": flavour or profile.runtime})
    if target.traits.ahead_of_time and target.compute_capability is None and why_not_here(target):
        raise DeviceError(
            f"device '{profile.name}' has no `compute_capability` in its profile: TensorRT for RTX cannot "
            "build for it ahead of time"
        )
    return target


def engine_profiles(
    profiles: Sequence[HwProfile], flavour: str | None, batches: Sequence[int] = ()
) -> list[HwProfile]:
    """The devices that get an engine, each with the runtime that is to read it.

    Raises DeviceError if none has TensorRT or, with `batches`, which are its own, if the first one does not.
    """
    first = profiles[:1]
    having = [own for own in profiles if own.traits.engines or (batches and own in first)]
    return [engine_profile(own, flavour) for own in having or first]


def named_for(file: str, device: str | None) -> str:
    """The name of a further device's file in the place of the first one's: `model-NAME.onnx`."""
    name = PurePath(file)
    return str(name.with_stem(f"{name.stem}-{device}")) if device else file


def beside_engine(engine: Path) -> tuple[Path, Path]:
    """The ONNX file from which an engine was built, and its engine.json."""
    device = engine.stem.removeprefix(f"{PurePath(ENGINE).stem}-")
    named = device if device != engine.stem else None
    return engine.parent / named_for(FILE, named), engine.parent / named_for(FACTS, named)


def build_and_verify(
    artifact: Artifact, expected: Expected, target: HwProfile, batches: tuple[int, ...]
) -> Built:
    """Check an ONNX file on this processor, build its engine, and verify that where it can be executed.

    No engine is built of a file that fails. Raises NetworkError, DeviceError where the build fails.
    """
    of_file = verify(artifact, expected, target, CHECKED_HERE)
    if not of_file.passed:
        return Built(of_file, of_file)
    reason = why_not_here(target) or replayed(target)
    if reason and not target.traits.ahead_of_time:
        reason = f"no engine was built, which TensorRT does only on the device itself: {reason}"
        return Built(of_file.model_copy(update={"not_verified": reason}), of_file)
    builder = builder_of(target)
    with working("building the engine"):
        engine = builder.build(artifact.content, batches)
    if reason:
        reason = f"the engine was built ahead of time and not executed: {reason}"
        ahead = {"not_verified": reason, "size_bytes": len(engine.content)}
        return Built(of_file.model_copy(update=ahead), of_file, engine)
    full = full_engine(builder, artifact.full, batches)
    alone = None if artifact.alone is None else builder.build(artifact.alone, batches).content
    executed = Artifact(artifact.proto, full, engine.content, alone)
    return Built(verify(executed, expected, target), of_file, engine)


def full_engine(builder: Runtime, full: bytes, batches: Sequence[int]) -> bytes:
    """The unpruned network's engine, built in the same way; empty where that cannot be."""
    with working("building the full network's engine"):
        try:
            return builder.build(full, batches).content
        except NetworkError:
            return b""


def facts_of(
    built: Engine, content: bytes, target: HwProfile, batches: tuple[int, ...], inputs: Mapping[str, str]
) -> dict[str, Any]:
    """engine.json: what the runtime tells of an engine, from which ONNX file it was built, and for what.

    Of export's `inputs` it keeps what says which network it is: an engine may be carried elsewhere.
    """
    return {
        **built.info,
        "precision": target.precision,
        "batches": list(batches) or [target.batch],
        "dynamic": bool(batches),
        "device": target.name,
        "size_bytes": len(built.content),
        "sha256": hashlib.sha256(built.content).hexdigest(),
        "onnx_sha256": hashlib.sha256(content).hexdigest(),
        "search": inputs["search"],
        "slice": inputs["slice"],
    }


def beside_report(built: Built, profile: HwProfile) -> dict[str, Any]:
    """What verify.json has for an engine besides its report: that of its ONNX file on this processor."""
    keys = ("backend", "precision", "output_error", "top1_agreement", "accuracy", "size_bytes")
    return {
        "predicted_for": profile.runtime,
        "onnx_file": {key: getattr(built.of_file, key) for key in keys},
    }


def how_to_verify(
    file: str, proto: ModelProto, profile: HwProfile, target: HwProfile, batches: tuple[int, ...], run: str
) -> str:
    """What to do about a file that was not verified on its device; `run` is " --run NAME", or nothing.

    `target` is the device's `profile` with the runtime that is to read the engine.
    """
    if file.endswith(ENGINE_SUFFIX):
        return f"run `bcnet verify --engine {file}{run}` on the device, or here with --host user@device"
    sizes = f" --batch {','.join(map(str, batches))}" if batches else ""
    flavour = f" --flavour {target.traits.flavour}"
    flags = f"{'' if target.runtime == profile.runtime else flavour}{sizes}{run}"
    line = trtexec_line(file, proto, target, batches)
    return (
        f"build it on the device: `bcnet export --trt --device {target.name} --host user@device{flags}`, "
        f"or there, without checks: `{line}`"
    )


def trtexec_line(file: str, proto: ModelProto, target: HwProfile, batches: tuple[int, ...]) -> str:
    """The command that builds the engine of an ONNX file with TensorRT's own program."""
    words = ["trtexec", f"--onnx={file}", f"--saveEngine={file.removesuffix('.onnx')}{ENGINE_SUFFIX}"]
    if not target.number_format.full:
        # The types are in the file; TensorRT 8 uses them only with the precision's own flag.
        has_tensorrt_8 = target.opset <= NEWEST_OF_TENSORRT_8
        words.append(f"--{target.precision}" if has_tensorrt_8 else "--stronglyTyped")
    if batches:
        named = zip(("min", "opt", "max"), min_opt_max(batches), strict=True)
        words += [f"--{key}Shapes={_shapes(proto, size)}" for key, size in named]
    return " ".join(words)


def _shapes(proto: ModelProto, size: int) -> str:
    """All inputs' shapes at a batch, as trtexec reads them."""
    fixed: Mapping[str, list[int]] = {
        entry.name: [side.dim_value for side in entry.type.tensor_type.shape.dim[1:]]
        for entry in proto.graph.input
    }
    return ",".join(f"{name}:{'x'.join(map(str, [size, *sides]))}" for name, sides in fixed.items())
