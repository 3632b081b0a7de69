"""Check a device step by step. In: its profile. Out: what was found, and how to fix what is missing."""

from dataclasses import dataclass
from typing import Any

from bcnet.errors import DeviceError
from bcnet.hw_profiles import HwProfile
from bcnet.measure.network_latency import runtime_of, why_not_here
from bcnet.plain import counted
from bcnet.runtimes.device import Device, LocalDevice
from bcnet.runtimes.ssh import SshDevice
from bcnet.runtimes.ssh_line import check_host

ROOM_MB = 500  # free space for a network's files, an engine and a timing cache
STEADY = 0.10  # a reference microbenchmark that varies by more indicates a busy machine, or varying clocks
READINGS = 9
LIMIT_S = 60.0


@dataclass(frozen=True)
class Step:
    """One requirement for measuring. `passed` is None if unknown, or where the step is only advice."""

    name: str
    passed: bool | None
    found: str
    fix: str = ""


def examine(profile: HwProfile) -> list[Step]:
    """All steps for each host of the profile, for this machine, or for a recording that replaces the device.

    A host that cannot be reached, or whose connection is lost, ends only its own steps.
    """
    if profile.recording:
        return [_recording(profile)]
    steps = []
    for host in profile.host:
        steps += [_named(host, step) for step in _host(profile, host)]
    return steps or _machine(profile, LocalDevice(), ".")


def _recording(profile: HwProfile) -> Step:
    try:
        found = runtime_of(profile).fingerprint()
    except DeviceError as cause:
        return Step("recording", False, str(cause))
    device = f"{found.get('processor')}, {profile.runtime} {found.get('runtime_version')}"
    return Step("recording", True, f"{profile.recording} replaces the device: {device}")


def _named(host: str, step: Step) -> Step:
    return Step(f"{host}: {step.name}", step.passed, step.found, step.fix)


def _host(profile: HwProfile, host: str) -> list[Step]:
    try:
        check_host(host)
    except DeviceError as cause:
        return [Step("name", False, str(cause))]
    device = SshDevice(host, python=profile.host_python, folder=profile.host_folder)
    try:
        hello = device.hello()
    except DeviceError as cause:
        return [Step("reached over ssh, agent started", False, str(cause))]
    reached = Step("reached over ssh, agent started", True, f"Python {hello['python']} in {hello['folder']}")
    try:
        return [reached, *_machine(profile, device, hello["folder"])]
    except DeviceError as cause:
        return [reached, Step("examined", False, str(cause))]
    finally:
        device.close()


def _machine(profile: HwProfile, device: Device, folder: str) -> list[Step]:
    facts = device.call({"do": "look", "folder": folder}, LIMIT_S)
    return [
        _kind(profile, facts),
        _runtime(profile, device, facts),
        _disk(facts),
        _power_mode(profile, facts),
        _clocks(facts),
        _steadiness(device),
    ]


def _kind(profile: HwProfile, facts: dict[str, Any]) -> Step:
    wrong = profile.machine not in (None, facts["machine"])
    over = "" if profile.host else ", or reach it over ssh: --host user@name"
    fix = f"the profile says {profile.machine}: choose another --device{over}" if wrong else ""
    cores = counted(facts["cores"], "core")
    return Step("machine", not wrong, f"{facts['machine']}, {cores}, {facts['system']}", fix)


def _runtime(profile: HwProfile, device: Device, facts: dict[str, Any]) -> Step:
    """Whether the profile's runtime can start; for TensorRT, the Python module or trtexec."""
    if not profile.traits.over_ssh:  # only in this process
        reason = why_not_here(profile)
        return Step("runtime", reason is None, reason or f"torch {facts['torch']}")
    reasons = []
    for name in profile.traits.programs:
        settings = {"runtime": name, "provider": profile.provider, "precision": profile.precision}
        job = {"do": "missing", "runtime": name, "settings": settings}
        reason = device.call(job, LIMIT_S)["missing"]
        if reason is None:
            version = facts.get(name.replace("-", "_"))
            return Step("runtime", True, f"{name} {version}" if version else name)
        reasons.append(str(reason))
    return Step("runtime", False, "; ".join(reasons))


def _disk(facts: dict[str, Any]) -> Step:
    free_mb = facts["free_bytes"] / 1e6
    enough = free_mb >= ROOM_MB
    fix = "" if enough else f"free {ROOM_MB} MB, or set host_folder in the profile to another disk"
    return Step("disk", enough, f"{free_mb:,.0f} MB free", fix)


def _power_mode(profile: HwProfile, facts: dict[str, Any]) -> Step:
    """A Jetson's speed differs up to tenfold between power modes, so a table is for one of them."""
    there, wanted = facts["power_mode"], profile.power_mode
    if there is None:
        known = None if wanted != "default" else True
        return Step("power mode", known, "nvpmodel is missing" if known is None else "none on this machine")
    same = there == wanted
    fix = "" if same else f"the table is for {wanted}: `sudo nvpmodel -m ...`, or power_mode in the profile"
    return Step("power mode", same, there, fix)


def _clocks(facts: dict[str, Any]) -> Step:
    governors = facts["governors"]
    if not governors:
        return Step("clocks", None, "the system does not report them")
    fixed = governors == ["performance"]
    fix = (
        "" if fixed else "`sudo jetson_clocks` on a Jetson, else `sudo cpupower frequency-set -g performance`"
    )
    return Step("clocks", fixed or None, f"governor {', '.join(governors)}", fix)


def _steadiness(device: Device) -> Step:
    """Whether the reference microbenchmark is repeatable: the spread of its first part over some readings."""
    readings = [device.call({"do": "probe"}, LIMIT_S)["probe"] for _ in range(READINGS)]
    part = next(iter(readings[0]))
    values = sorted(reading[part] for reading in readings)
    spread = values[-2] / values[1] - 1
    steady = spread <= STEADY
    fix = "" if steady else "stop other work there; fix the clocks"
    return Step("steady", steady or None, f"{part} varies by {spread:.0%} in {READINGS} readings", fix)
