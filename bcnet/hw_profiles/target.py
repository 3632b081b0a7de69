"""The target of a run: a device and a setting. In: a configuration. Out: its profile, its target."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bcnet.config import Config
from bcnet.hw_profiles import HwProfile, load_profile


@dataclass(frozen=True)
class Target:
    """A device and the setting of its latencies; how the device is reached does not matter."""

    device: str
    batch: int
    threads: int
    precision: str

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.device} ({self.precision}, batch {self.batch}, {threads})"

    def to_json(self, host: Sequence[str] = ()) -> dict[str, Any]:
        """JSON values that, as settings of a configuration, name this target again."""
        return {**asdict(self), **({"host": list(host)} if host else {})}


def target_profile(config: Config) -> HwProfile:
    """The configured device's profile, with the configuration's own batch, threads and so on."""
    own: dict[str, Any] = {
        "batch": config.batch,
        "threads": config.threads,
        "precision": config.precision,
        "table_noise": config.table_noise,
    }
    if config.host:
        own["host"] = config.host
    profile = load_profile(config.device)
    return profile.model_copy(update={key: value for key, value in own.items() if value is not None})


def target_of(config: Config) -> Target:
    """The configured device and setting; the profile provides what the configuration does not name."""
    profile = target_profile(config)
    return Target(profile.name, profile.batch, profile.threads, profile.precision)
