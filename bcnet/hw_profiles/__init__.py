"""Target devices, one TOML file each: `hw_profiles/NAME.toml` in the working folder, else shipped here."""

import difflib
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bcnet.errors import DeviceError

SHIPPED = Path(__file__).parent
OWN = Path("hw_profiles")


class HwProfile(BaseModel):
    """What a device is and how it is measured. Part of the key of every row measured on it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    name: str
    description: str
    runtime: Literal["onnxruntime"] = Field(description="the runtime that executes the network")
    provider: str = Field("cpu", min_length=1, description="ONNX Runtime's execution provider")
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    batch: int = Field(1, ge=1, description="images an inference")
    threads: int = Field(1, ge=1, description="threads that the runtime may use")
    power_mode: str = Field("default", description="as the device names it; speeds differ between modes")
    channel_multiple: int = Field(8, ge=1, description="widths are multiples of this")
    warmup_ms: float = Field(100.0, ge=0, description="run this long before timing a network")
    seconds: float = Field(1.0, gt=0, description="time a network for at least this long")
    iterations: int = Field(100, ge=2, description="and at least so often")

    @property
    def setting(self) -> tuple[str, str, int, int, str]:
        """What latencies depend on beside the layer: runtime, precision, batch, threads, power mode.

        With another execution provider than the CPU's, the runtime reads "onnxruntime:NAME".
        """
        runtime = self.runtime if self.provider == "cpu" else f"{self.runtime}:{self.provider}"
        return runtime, self.precision, self.batch, self.threads, self.power_mode


def load_profiles() -> dict[str, HwProfile]:
    """All profiles by name; a user's own replaces a shipped one of the same name."""
    files = {path.stem: path for folder in (SHIPPED, OWN) for path in sorted(folder.glob("*.toml"))}
    return {name: _read(path) for name, path in files.items()}


def load_profile(name: str) -> HwProfile:
    """The profile called `name`. Raises DeviceError with what there is."""
    profiles = load_profiles()
    if name not in profiles:
        near = difflib.get_close_matches(name, profiles, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise DeviceError(
            f"unknown device '{name}'{hint}; there is: {', '.join(profiles)}. "
            f"A device of your own is one file, {OWN}/{name}.toml"
        )
    return profiles[name]


def _read(path: Path) -> HwProfile:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        if "name" in values:
            raise DeviceError(f"{path}: a device is named by its file; remove 'name'")
        return HwProfile.model_validate({"name": path.stem, **values})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise DeviceError(f"{path} is not TOML: {cause}") from None
    except ValidationError as cause:
        error = cause.errors()[0]
        where = ".".join(str(part) for part in error["loc"])
        raise DeviceError(f"{path}: {where}: {error['msg']}") from None
