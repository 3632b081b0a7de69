"""The project of a configuration, for all stages: its data, network, space and target device."""

import copy
import datetime
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from bcnet.config import Config, TaskConfig
from bcnet.data.dataset import ImageData, load_data
from bcnet.data.splits import Split
from bcnet.errors import FOREIGN, ModelError, TableError, TrainingError, explaining, one_line
from bcnet.hw_profiles import HwProfile
from bcnet.hw_profiles.target import target_profile as target_profile
from bcnet.latency_tables.journal import alone
from bcnet.latency_tables.model import LatencyModel, LayerSlot
from bcnet.latency_tables.noise import refuse_noisy
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.network_latency import replayed, runtime_of, setting_of, why_not_here
from bcnet.models import build_model, statistics
from bcnet.models.fresh import Fresh, fresh_network
from bcnet.models.weights import fresh_heads
from bcnet.onnx_export.exportable import not_deliverable
from bcnet.onnx_export.int8 import unsigned_activations
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.onnx_export.precision import at_precision
from bcnet.pipeline.configured_methods import check_method
from bcnet.progress import say, working
from bcnet.runs import digest
from bcnet.space.discover import discover_space
from bcnet.space.inputs import arguments
from bcnet.space.unsupported import check_initialised
from bcnet.space.widen import widened
from bcnet.space.width_space import WidthSpace
from bcnet.training.loop import keep_freed_memory
from bcnet.training.supernet_step import STEPS
from bcnet.training.task import Task, logits_of
from bcnet.user_code import code_of

TABLES = Path("latency_tables")
OLD_DAYS = 180  # drivers, firmware and systems change while the version of a runtime stays the same


@dataclass(frozen=True)
class Project:
    """A configuration, loaded."""

    config: Config
    data: ImageData
    model: nn.Module
    space: WidthSpace
    profile: HwProfile
    narrow: WidthSpace | None = None  # that of the network as it was given, where it was widened
    fresh_heads: tuple[str, ...] = ()  # those that `model.weights` has with another number of outputs

    @cached_property
    def graph(self) -> OnnxSupernet:
        """The network's ONNX graph at the profile's batch size; exported on first use (seconds)."""
        failed = "the network's ONNX graph cannot be made"
        with working("exporting the network to ONNX"), explaining(ModelError, failed):
            return OnnxSupernet(
                self.model,
                self.space,
                self.data.example(self.profile.batch),
                self.profile.precision,
                unsigned=unsigned_activations(self.profile),
                opset=self.profile.opset,
            )

    def not_deliverable(self) -> str | None:
        """Why the narrowest network cannot be exported or run, see `exportable.py`; None where it can."""
        return not_deliverable(lambda: self.graph, self.model, self.data.example(self.profile.batch))

    def at_precision(self, proto: ModelProto) -> ModelProto:
        """An exported network at the profile's opset and precision; INT8 is calibrated (seconds)."""
        return at_precision(proto, self.data, self.profile, self.config.seed)

    @cached_property
    def task(self) -> Task:
        """The loss, the metric and the training step."""
        return Task.of(self.config.task)

    @property
    def table_path(self) -> Path:
        """The device's latency table in the working folder."""
        return TABLES / f"{self.profile.name}.json"

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """Each group's width choices."""
        return tuple(group.choices for group in self.space.groups)

    @property
    def model_key(self) -> str:
        """Names this network's layers and choices in a latency table's calibrations."""
        return model_key(self.graph.slots, self.choices)

    @property
    def device_key(self) -> str:
        """The target device and all that a latency on it depends on."""
        return digest([self.profile.name, self.profile.setting])

    @property
    def supernet_passes(self) -> int:
        """Passes over the training images that all supernets take: each path of a step counts."""
        train = self.config.train
        paths = STEPS[train.step].paths(len(self.space.rule.sides), train.draws)
        return train.supernets * train.epochs * paths

    @property
    def winner_passes(self) -> int:
        """Passes behind a winner's weights: the supernets', unless it begins from scratch, and its own."""
        own = self.config.slice
        return own.epochs + (0 if own.from_scratch else self.supernet_passes)

    def given_model(self, seed: int) -> nn.Module:
        """The network of this space as it is given, as wide as the supernet's, from another seed.

        Trained weights are the same for every seed.
        """
        config = self.config.model_copy(update={"seed": seed})
        return _widened(config, given_model(config, self.data), self.narrow)

    def fresh_model(self) -> nn.Module:
        """The network of this space with freshly initialised weights, as wide as the supernet's.

        The weights that still hold trained values are in `fresh.kept`.
        """
        return _widened(self.config, copy.deepcopy(self.fresh.model), self.narrow)

    @cached_property
    def fresh(self) -> Fresh:
        """The configured network, freshly initialised under the configuration's seed."""
        config = self.config
        return fresh_network(lambda seed: fresh_model(config, self.data, seed), config.seed)

    @property
    def trained(self) -> bool:
        """Whether the network is given with trained weights: from `model.weights`, or from its function."""
        return self.config.model.weights is not None or self.fresh.trained

    @cached_property
    def untrained_layers(self) -> tuple[str, ...]:
        """Layers of a trained network that are not trained, as a head for other classes; none of another.

        What the network's metric is as it was given then means nothing.
        """
        if self.config.model.weights is not None:
            return self.fresh_heads
        return self.fresh.drawn

    def inputs(self) -> dict[str, str]:
        """Digests of what a supernet is made from; a stage made from others is stale."""
        return {
            "model": self._model_digest,
            "data": self._data_digest,
            "space": digest(self.space.to_json()),
        }

    @cached_property
    def _model_digest(self) -> str:
        """Name and arguments, modules, initial weights, and what the user's own classes do."""
        found = sha256(digest(self.config.model.model_dump()).encode())
        found.update(repr(self.model).encode())
        for tensor in self.model.state_dict().values():
            found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for kind in sorted({type(module) for module in self.model.modules()}, key=repr):
            if not kind.__module__.startswith(("torch.", "torchvision.", "timm.")):
                found.update(code_of(kind).encode())
        return found.hexdigest()[:16]

    @cached_property
    def _data_digest(self) -> str:
        return self.data.digest()

    @contextmanager
    def own_table(self) -> Iterator[LatencyTable]:
        """The device's table, a new one where there is no file, with no other build at it meanwhile.

        Raises TableError where the file is another device's.
        """
        path = self.table_path
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

    def _bound_table(self) -> LatencyModel:
        table = LatencyTable.load(self.table_path)
        if table.device != self.profile.name:
            raise TableError(
                f"{self.table_path} was measured on '{table.device}', not on '{self.profile.name}'; "
                f"run `bcnet build-lut --device {self.profile.name}` in another folder"
            )
        setting = setting_of(self.profile)
        calibration = table.calibrations.get((self.model_key, setting))
        model = LatencyModel(table, setting, self.graph.slots, self.choices, calibration)
        if not model.current:
            raise TableError(
                f"{self.table_path} is not calibrated for this network at {setting}; "
                f"run `bcnet build-lut --device {self.profile.name}`"
            )
        if why_not_here(self.profile) is None and not model.estimate:
            here = runtime_of(self.profile).fingerprint()
            _compare_versions(self.table_path, table, model, here)
        return model

    def table_inputs(self) -> dict[str, str]:
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
            return f"{self.table_path} is an estimate, not measured"
        return why_not_here(self.profile)

    @property
    def replayed(self) -> str | None:
        """Why latencies are not measured now though the device answers: a recording does; None elsewhere."""
        return replayed(self.profile)


def _compare_versions(path: Path, table: LatencyTable, model: LatencyModel, here: dict[str, str]) -> None:
    """Report rows that were measured with another runtime or processor, or long ago."""
    used = {
        table.rows[spec, model.setting].session for spec in model.used if (spec, model.setting) in table.rows
    }
    for number in sorted(used):
        session = table.sessions[number]
        if "recorded" in session.provenance:
            _say_once(f"{path}: layers are of {session.date}, replayed from {session.provenance['recorded']}")
        remedy = f"`bcnet check-lut --device {table.device}` checks whether they are still valid"
        if _days_since(session.date) > OLD_DAYS:
            _say_once(f"{path}: layers were measured on {session.date}; {remedy}")
        for key, value in here.items():
            then = session.provenance.get(key)
            if then != value:
                _say_once(
                    f"{path}: layers were measured on {session.date} with {key} {then}, here it is {value}; "
                    f"{remedy}"
                )


def _days_since(date: str) -> int:
    try:
        return (datetime.datetime.now(datetime.UTC).date() - datetime.date.fromisoformat(date)).days
    except ValueError:
        return 0  # edited by hand: what it says is shown as it is


@cache
def _say_once(message: str) -> None:
    say(message)


def model_key(slots: tuple[LayerSlot, ...], choices: tuple[tuple[int, ...], ...]) -> str:
    """A short hash of a network's layers and of the choices of its groups."""
    return digest([repr([(slot.template, slot.in_terms, slot.out_terms) for slot in slots]), choices])


_loaded: list[Project] = []  # the last one: the stages of a run share it


def load_project(config: Config, *, pixels: bool = True) -> Project:
    """What the configuration names, loaded; kept until another one is asked for. Raises what is wrong.

    Without `pixels`, for what needs only their size, a folder's images are not read; nothing is kept.
    """
    if not pixels:
        return _load(config, pixels=False)
    current = _loaded and _loaded[0].config == config and _loaded[0].profile == target_profile(config)
    if not current:
        _loaded[:] = [_load(config)]
    return _loaded[0]


def forget_project() -> None:
    """Let the next `load_project` load again, whatever has changed behind the same configuration."""
    _loaded.clear()


def _load(config: Config, *, pixels: bool = True) -> Project:
    keep_freed_memory()
    check_method(config)
    profile = target_profile(config)
    data = load_data(config.data, config.seed, pixels=pixels)
    expected = statistics(config.model) if config.data.mean is None else None
    if expected and isinstance(data.train, Split) and len(expected[0]) == data.input_shape[0]:
        data = data.with_statistics(*expected)
        say(
            f"images are normalised as '{config.model.name}' was trained: mean {expected[0]}, "
            f"std {expected[1]}"
        )
    model = given_model(config, data)
    heads = fresh_heads(model)
    example = data.example(1)
    args, kwargs = arguments(example)
    try:
        with torch.no_grad():
            model.eval()
            output = model(*args, **kwargs)
    except FOREIGN as cause:
        raise ModelError(
            f"model '{config.model.name}' does not run on images of {tuple(data.input_shape)}: "
            f"{one_line(cause)}"
        ) from None
    if config.task.loss == TaskConfig().loss and config.task.train_step is None:
        _check_outputs(config, data, output)
    with working("looking for channels that can be searched"):
        model, space, narrow = searched_space(config, profile, model, example)
    if config.task.train_step is None:
        _check_training_mode(config, model, data.example(2))
    return Project(config, data, model, space, profile, narrow, heads)


def searched_space(
    config: Config, profile: HwProfile, model: nn.Module, example: Any
) -> tuple[nn.Module, WidthSpace, WidthSpace | None]:
    """The network, as wide as `space.expand` says, its space, and that of the given network if it grew."""

    def discover(model: nn.Module) -> WidthSpace:
        return discover_space(
            model,
            example,
            bins=config.space.bins,
            channel_multiple=_multiple(config, profile),
            min_width=config.space.min_width,
            method=config.train.method,
            freeze=config.space.freeze,
            tie=config.space.tie,
        )

    narrow = discover(model)
    if config.space.expand == 1:
        return model, narrow, None
    model = _widened(config, model, narrow)
    own = {group.name: group.channels for group in narrow.groups}
    space = discover(model)
    groups = []
    for group in space.groups:
        original = own.get(group.name, group.channels)
        # The given network is among the choices; so is its complement, which keeps the channels' use even.
        complement = space.rule.complement(group.choices, original)
        added = {original, complement or original}
        groups.append(replace(group, original=original, choices=tuple(sorted({*group.choices, *added}))))
    return model, replace(space, groups=tuple(groups)), narrow


def _multiple(config: Config, profile: HwProfile) -> int:
    return config.space.channel_multiple or profile.channel_multiple


def _widened(config: Config, model: nn.Module, narrow: WidthSpace | None) -> nn.Module:
    if narrow is None:
        return model
    return widened(
        model,
        narrow,
        config.space.expand,
        channel_multiple=_multiple(config, target_profile(config)),
        copies=config.train.channel_order != "as-is",
        seed=config.seed,
    )


def given_model(config: Config, data: ImageData) -> nn.Module:
    """The configured network as it is given: with `model.weights`, if set, otherwise with initial weights.

    The same for the same seed.
    """

    def run(model: nn.Module) -> Any:
        args, kwargs = arguments(data.example(1))
        return model(*args, **kwargs)

    kept = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            random.seed(config.seed)
            np.random.seed(config.seed)
            model = build_model(config.model, data.input_shape[0], len(data.classes), run)
            check_initialised(model)
            return model
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


def fresh_model(config: Config, data: ImageData, seed: int | None = None) -> nn.Module:
    """The network that the function returns for a seed (default: the configured), without `model.weights`."""
    own = config.model.model_copy(update={"weights": None})
    seed = config.seed if seed is None else seed
    return given_model(config.model_copy(update={"model": own, "seed": seed}), data)


def _check_outputs(config: Config, data: ImageData, output: Any) -> None:
    """Cross entropy needs one logit a class. Raises ModelError."""
    train, count = data.train, len(data.classes)
    try:
        logits = logits_of(output)
    except TrainingError as cause:
        raise ModelError(f"model '{config.model.name}': {cause}") from None
    classified = isinstance(train, Split) and train.classified and count
    if (classified and logits.shape != (1, count)) or (count and logits.shape[1:2] != (count,)):
        raise ModelError(
            f"model '{config.model.name}' gives outputs of shape {tuple(logits.shape)}, "
            f"the data has {count} classes: set num_classes in [model] args"
        )


def _check_training_mode(config: Config, model: nn.Module, inputs: Any) -> None:
    """Some networks do other things while they are trained. Raises ModelError where that cannot be used."""
    args, kwargs = arguments(inputs)
    name = f"model '{config.model.name}'"
    try:
        with torch.no_grad():
            probe = copy.deepcopy(model)
            probe.train()
            output = probe(*args, **kwargs)
    except ValueError:
        return  # batch statistics of so few values: batches in training are larger
    except FOREIGN as cause:
        raise ModelError(
            f"{name} runs, but not in training mode ({one_line(cause)}); where it takes targets then, "
            "set task.train_step"
        ) from cause
    try:
        if config.task.loss == TaskConfig().loss:
            logits_of(output)
    except TrainingError:
        raise ModelError(
            f"{name} returns {type(output).__name__} in training, not one tensor, logits with auxiliary "
            "ones, or a dict with 'out'; set task.loss or task.train_step to your own"
        ) from None
