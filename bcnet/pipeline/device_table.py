"""The target device's latency table, bound to a network. In: a profile, the network's graph. Out: latencies.

One table a device lies in the working folder, for all networks; it is read again whenever it is asked for.
"""

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bcnet.errors import TableError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.journal import alone
from bcnet.latency_tables.model import LatencyModel, LayerSlot
from bcnet.latency_tables.noise import refuse_noisy
from bcnet.latency_tables.rows import Calibration
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.network_latency import replayed, runtime_of, setting_of, why_not_here
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.progress import say
from bcnet.runs import digest

TABLES = Path("latency_tables")
OLD_DAYS = 180  # drivers, firmware and systems change while the version of a runtime stays the same


@dataclass(frozen=True)
class DeviceTable:
    """The table of a profile's device; `graph` exports the network on first use (seconds).

    `targets` are the names of all devices, if the network is for several.
    """

    profile: HwProfile
    graph: Callable[[], OnnxSupernet]
    targets: tuple[str, ...] = ()
    _said: set[str] = field(default_factory=set)

    @property
    def path(self) -> Path:
        """The file in the working folder."""
        return TABLES / f"{self.profile.name}.json"

    @property
    def device_key(self) -> str:
        """The target device and all that a latency on it depends on."""
        return digest([self.profile.name, self.profile.setting])

    @property
    def model_key(self) -> str:
        """Names this network's layers and choices in a table's calibrations."""
        graph = self.graph()
        return model_key(graph.slots, _choices(graph))

    @contextmanager
    def being_built(self) -> Iterator[LatencyTable]:
        """The device's table, a new one where there is no file, with no other build at it meanwhile.

        Raises TableError where the file is another device's.
        """
        path = self.path
        with alone(path):
            table = LatencyTable.load(path) if path.exists() else LatencyTable(self.profile.name)
            if table.device != self.profile.name:
                raise TableError(
                    f"{path} was measured on '{table.device}'; keep that file under another name"
                )
            yield table

    def latency_model(self) -> LatencyModel:
        """The device's table bound to this space. Raises TableError where rows lack, naming `build-lut`, and
        where it is noisier than is accepted.
        """
        model = self._bound_table()
        again = f"measure it again with `bcnet build-lut --device {self.profile.name} --again`"
        refuse_noisy(model.noise, self.profile.table_noise, again)
        return model

    @property
    def calibration(self) -> Calibration | None:
        """That of this network in the file; the device is not reached. Raises TableError where rows lack."""
        return self._naming_all(self._read).calibration

    def _bound_table(self) -> LatencyModel:
        return self._naming_all(self._bound)

    def _naming_all(self, found: Callable[[], LatencyModel]) -> LatencyModel:
        """What is found; an error names the command for all devices."""
        try:
            return found()
        except TableError as reason:
            # A table of this device alone would be the beginning of a run for it alone.
            alone, every = (
                "build-lut" + "".join(f" --device {name}" for name in names)
                for names in ([self.profile.name], self.targets)
            )
            if not self.targets or alone not in str(reason):
                raise
            raise TableError(str(reason).replace(alone, every)) from None

    def _bound(self) -> LatencyModel:
        model = self._read()
        if why_not_here(self.profile) is None and not model.estimate:
            here = runtime_of(self.profile).fingerprint()
            for message in _other_machine(self.path, model, here):
                self._say_once(message)
        return model

    def _read(self) -> LatencyModel:
        table = LatencyTable.load(self.path)
        if table.device != self.profile.name:
            raise TableError(
                f"{self.path} was measured on '{table.device}', not on '{self.profile.name}'; "
                f"run `bcnet build-lut --device {self.profile.name}` in another folder"
            )
        setting = setting_of(self.profile)
        graph = self.graph()
        calibration = table.calibrations.get((self.model_key, setting))
        model = LatencyModel(table, setting, graph.slots, _choices(graph), calibration)
        if not model.current:
            raise TableError(
                f"{self.path} is not calibrated for this network at {setting}; "
                f"run `bcnet build-lut --device {self.profile.name}`"
            )
        return model

    def inputs(self) -> dict[str, str]:
        """What the manifest of a table's build records; "none" for a table that cannot be used."""
        inputs = {"model": self.model_key, "device": self.device_key}
        try:
            calibration = self._bound_table().calibration
        except TableError:
            return {**inputs, "table": "none"}
        return {**inputs, "table": digest(asdict(calibration) if calibration else None)}

    def not_measured(self, latency: LatencyModel) -> str | None:
        """Why no latency is measured: the table is an estimate, or this is not the device; None if it is."""
        if latency.estimate:
            return f"{self.path} is an estimate, not measured"
        return why_not_here(self.profile)

    @property
    def replayed(self) -> str | None:
        """Why latencies are not measured now though the device answers: a recording does; None elsewhere."""
        return replayed(self.profile)

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            say(message)


def _other_machine(path: Path, model: LatencyModel, here: dict[str, str]) -> Iterator[str]:
    """A line for rows that were measured with another runtime or processor, or long ago."""
    table = model.table
    used = {
        table.rows[spec, model.setting].session for spec in model.used if (spec, model.setting) in table.rows
    }
    for number in sorted(used):
        session = table.sessions[number]
        if "recorded" in session.provenance:
            yield f"{path}: layers are of {session.date}, replayed from {session.provenance['recorded']}"
        remedy = f"`bcnet check-lut --device {table.device}` checks whether they are still valid"
        if _days_since(session.date) > OLD_DAYS:
            yield f"{path}: layers were measured on {session.date}; {remedy}"
        for key, value in here.items():
            then = session.provenance.get(key)
            if then != value:
                yield (
                    f"{path}: layers were measured on {session.date} with {key} {then}, here it is {value}; "
                    f"{remedy}"
                )


def _days_since(date: str) -> int:
    try:
        return (datetime.datetime.now(datetime.UTC).date() - datetime.date.fromisoformat(date)).days
    except ValueError:
        return 0  # edited by hand: what it says is shown as it is


def model_key(slots: tuple[LayerSlot, ...], choices: tuple[tuple[int, ...], ...]) -> str:
    """A short hash of a network's layers and of the choices of its groups."""
    return digest([repr([(slot.template, slot.in_terms, slot.out_terms) for slot in slots]), choices])


def _choices(graph: OnnxSupernet) -> tuple[tuple[int, ...], ...]:
    return tuple(group.choices for group in graph.space.groups)
