"""Target devices, one TOML file each: `hw_profiles/NAME.toml` in the working folder, else shipped here."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bcnet.errors import DeviceError
from bcnet.toml_files import read_toml
from bcnet.traits import PRECISIONS, RUNTIMES, Precision, PrecisionName, RuntimeName, RuntimeTraits

SHIPPED = Path(__file__).parent
OWN = Path("hw_profiles")

Positive = Annotated[float, Field(gt=0)]


def _short(provider: str) -> str:
    """`CUDAExecutionProvider` is `cuda`: one name, since rows are kept under it."""
    return provider.lower().removesuffix("executionprovider")


def _several(hosts: object) -> object:
    """One host may be written without a list."""
    return (hosts,) if isinstance(hosts, str) else hosts


class Peaks(BaseModel):
    """The peaks of a device, from its data sheet: dense operations, without other accelerators."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    fp32_tflops: Positive | None = Field(None, description="10^12 operations per second")
    fp16_tflops: Positive | None = Field(None, description="10^12 operations per second")
    int8_tops: Positive | None = Field(None, description="10^12 operations per second")
    bandwidth_gb_s: Positive = Field(description="10^9 bytes per second, of the device's memory")
    launch_us: Annotated[float, Field(ge=0)] | None = Field(
        None, description="fixed cost of a layer, in microseconds; if not given, that of the fitted table"
    )
    cores: int | None = Field(None, ge=1, description="number of threads that the peaks are for")
    source: str = Field(min_length=1, description="where these figures come from")

    def teraops(self, precision: str) -> float | None:
        """10^12 operations per second at a precision; None if the device does not support it."""
        found: float | None = getattr(self, PRECISIONS[precision].peak)
        return found


class HwProfile(BaseModel):
    """A device, and how it is measured. Part of the key of every row that is measured on it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    name: str
    description: str
    aliases: Annotated[tuple[str, ...], Field(strict=False)] = Field((), description="other names for it")
    runtime: RuntimeName = Field(description="the runtime that executes the network")
    provider: Annotated[str, AfterValidator(_short)] = Field(
        "cpu",
        min_length=1,
        description="ONNX Runtime's execution provider, or OpenVINO's device: cpu, gpu, npu",
    )
    precision: PrecisionName = "fp32"
    batch: int = Field(1, ge=1, description="images per inference")
    threads: int = Field(1, ge=1, description="threads that the runtime may use")
    power_mode: str = Field(
        "default", description="name of the power mode on the device; speeds differ between modes"
    )
    host: Annotated[tuple[str, ...], BeforeValidator(_several), Field(strict=False)] = Field(
        (),
        description="where it is reached over ssh, e.g. user@name; several of one kind share the work",
    )
    host_python: str = Field("python3", min_length=1, description="the Python interpreter on that device")
    host_folder: str = Field("~/.cache/bcnet", min_length=1, description="the agent's folder on that device")
    recording: str | None = Field(
        None, min_length=1, description="a file of recorded answers that are replayed; nothing is run"
    )
    record_to: str | None = Field(
        None, min_length=1, description="a file that the device's answers are added to, to be replayed"
    )
    machine: str | None = Field(
        None, description="the kind of processor, as `uname -m` prints it on the device"
    )
    compute_capability: str | None = Field(
        None, pattern=r"^\d+\.\d+$", description="of an NVIDIA GPU, e.g. 8.7"
    )
    opset: Literal[17, 18] = Field(18, description="of the ONNX files; TensorRT 8 supports at most 17")
    channel_multiple: int = Field(8, ge=1, description="widths are multiples of this")
    warmup_ms: float = Field(
        100.0, ge=0, description="time in ms for which a network is run before it is timed"
    )
    seconds: float = Field(1.0, gt=0, description="minimum time for which a network is timed")
    iterations: int = Field(100, ge=2, description="minimum number of runs that are timed")
    table_noise: float = Field(
        0.05,
        ge=0,
        description="largest allowed relative difference between two measurements of one network: a noisier "
        "latency table is measured again once, then refused",
    )
    roofline: Peaks | None = Field(None, description="the peaks that an estimate is calculated from")

    @property
    def traits(self) -> RuntimeTraits:
        """What its runtime can do."""
        return RUNTIMES[self.runtime]

    @property
    def number_format(self) -> Precision:
        """What its precision is."""
        return PRECISIONS[self.precision]

    @property
    def setting(self) -> tuple[str, str, int, int, str]:
        """What latencies depend on besides the layer: runtime, precision, batch, threads, power mode.

        With another provider than the CPU's, the runtime is "onnxruntime:NAME" or "openvino:NAME".
        """
        runtime = self.traits.key
        if self.provider != "cpu":
            runtime = f"{runtime}:{self.provider}"
        return runtime, self.precision, self.batch, self.threads, self.power_mode


def load_profiles() -> tuple[dict[str, HwProfile], dict[str, str]]:
    """All profiles by name, custom ones before shipped ones, and the errors of those that are not valid."""
    profiles, broken = {}, {}
    for name, path in sorted(_files().items()):
        try:
            profiles[name] = _read(path)
        except DeviceError as reason:
            broken[name] = str(reason)
    return profiles, broken


def load_profile(name: str) -> HwProfile:
    """The profile of that name or alias. Only its own file has to be valid.

    Raises DeviceError, with the known names, if it is unknown, or if its file is not valid.
    """
    return _read(profile_file(name))


def profile_file(name: str) -> Path:
    """The file of the profile of that name or alias. Raises DeviceError, with the known names."""
    files = _files()
    if name in files:
        return files[name]
    aliases = _aliases()
    if name in aliases:
        return files[aliases[name]]
    names = known_names()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    if re.fullmatch(r"(gpu|cuda)(:\d+)?", name.lower()):
        hint = " (to train on a GPU: --train-device cuda)"
    raise DeviceError(
        f"unknown device '{name}'{hint}; known: {', '.join(names)}. "
        f"A device of your own is one file, {OWN}/{name}.toml"
    )


def known_names() -> list[str]:
    """Names and aliases of all profiles, in alphabetical order."""
    return sorted({*_files(), *_aliases()})


def _aliases() -> dict[str, str]:
    """The profile's name of each alias; of several profiles with one alias, a custom one's."""
    files = _files()
    profiles, _ = load_profiles()
    custom_last = sorted(profiles.values(), key=lambda profile: files[profile.name].parent == OWN)
    return {alias: profile.name for profile in custom_last for alias in profile.aliases}


def _files() -> dict[str, Path]:
    return {path.stem: path for folder in (SHIPPED, OWN) for path in sorted(folder.glob("*.toml"))}


def _read(path: Path) -> HwProfile:
    try:
        values = read_toml(path, DeviceError)
        if "name" in values:
            raise DeviceError(f"{path}: a device is named by its file; remove 'name'")
        profile = HwProfile.model_validate({"name": path.stem, **values})
    except ValidationError as cause:
        error = cause.errors()[0]
        where = ".".join(str(part) for part in error["loc"])
        raise DeviceError(f"{path}: {where}: {error['msg']}") from None
    if profile.recording and profile.record_to:
        raise DeviceError(f"{path}: recording and record_to: what is replayed is not recorded; remove one")
    if profile.provider != "cpu" and not profile.traits.providers:
        raise DeviceError(f"{path}: provider: only ONNX Runtime and OpenVINO have providers; remove it")
    return profile
