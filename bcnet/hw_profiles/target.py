"""The targets of a run: devices and settings. In: a configuration. Out: profiles, the first one's target."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bcnet.config import Config
from bcnet.errors import ConfigError
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.plain import counted


@dataclass(frozen=True)
class Target:
    """A device and the setting of its latencies; how the device is reached does not matter."""

    device: str
    batch: int
    threads: int
    precision: str

    def __str__(self) -> str:
        threads = counted(self.threads, "thread")
        return f"{self.device} ({self.precision}, batch {self.batch}, {threads})"

    def to_json(self, host: Sequence[str] = (), further: Sequence[str] = ()) -> dict[str, Any]:
        """JSON values which, read as settings, name this target and the `further` devices again."""
        device = {"device": [self.device, *further]} if further else {}
        return {**asdict(self), **device, **({"host": list(host)} if host else {})}


def target_profile(config: Config) -> HwProfile:
    """The first configured device's profile, with the configuration's own batch, threads and so on."""
    own: dict[str, Any] = {
        "batch": config.batch,
        "threads": config.threads,
        "precision": config.precision,
        "table_noise": config.table_noise,
    }
    if config.host:
        own["host"] = config.host
    profile = load_profile(config.device[0])
    return profile.model_copy(update={key: value for key, value in own.items() if value is not None})


def further_profiles(config: Config) -> tuple[HwProfile, ...]:
    """The unchanged profiles of further configured devices. Raises ConfigError if one is there twice."""
    found = [load_profile(name) for name in config.device]
    names = [profile.name for profile in found]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"device: {', '.join(config.device)} name one device twice; for another setting of it, write a "
            "profile of its own (hw_profiles/NAME.toml)"
        )
    return tuple(found[1:])


def each_device(config: Config) -> tuple[tuple[HwProfile, Config], ...]:
    """The profile of each configured device, with its configuration.

    Raises ConfigError where devices and budgets do not fit: a device twice, or without a budget, or a budget
    without its device.
    """
    profiles = (target_profile(config), *further_profiles(config))
    _check_named(config, profiles)
    return tuple((own, _single_device(config, number, own)) for number, own in enumerate(profiles))


def for_targets(config: Config) -> Config:
    """The configuration without the budgets of devices that are not its targets, if one of these has any."""
    profiles = [load_profile(name) for name in config.device]
    names = {name for own in profiles for name in (own.name, *own.aliases)} | set(config.device)
    return config.model_copy(update={"search": config.search.for_devices(names)})


def _single_device(config: Config, number: int, profile: HwProfile) -> Config:
    """The configuration for one of its devices, with only that device's budget."""
    given = config.device[number]
    try:
        search = config.search.of_device(dict.fromkeys((given, profile.name, *profile.aliases)))
    except ValueError as reason:
        raise ConfigError(f"search: {reason}") from None
    if number == 0:
        return config if search is config.search else config.model_copy(update={"search": search})
    own = {"batch": None, "threads": None, "precision": None, "host": ()}
    return config.model_copy(update={"device": (profile.name,), "search": search, **own})


def _check_named(config: Config, profiles: Sequence[HwProfile]) -> None:
    """Raise ConfigError for a budget of a device that is not a target."""
    known = {name for profile in profiles for name in (profile.name, *profile.aliases)} | set(config.device)
    for name in config.search.named_devices:
        if name not in known:
            raise ConfigError(
                f"search: a budget is for '{name}', which is not among the target devices "
                f"({', '.join(config.device)}); add --device {name}, or leave it out"
            )


def target_json(config: Config) -> dict[str, Any]:
    """The targets as settings of a configuration (see `Target.to_json`)."""
    return target_of(config).to_json(config.host, [profile.name for profile in further_profiles(config)])


def target_of(config: Config) -> Target:
    """The first configured device and setting; the profile provides what the configuration does not name."""
    profile = target_profile(config)
    return Target(profile.name, profile.batch, profile.threads, profile.precision)
