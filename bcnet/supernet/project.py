"""What every stage starts from: the data, the network, its space and the target device of a configuration."""

import ast
import copy
import inspect
import random
import textwrap
from dataclasses import dataclass, replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bcnet.artifacts import digest
from bcnet.config import Config
from bcnet.data import ImageData, load_data
from bcnet.errors import ModelError, TableError, one_line
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.latency_tables.model import LatencyModel, LayerSlot
from bcnet.latency_tables.table import LatencyTable
from bcnet.models import build_model
from bcnet.progress import say, working
from bcnet.runtimes import runtime_named
from bcnet.supernet.discover import discover_space
from bcnet.supernet.fit import keep_freed_memory
from bcnet.supernet.measure import setting_of
from bcnet.supernet.onnx_graph import OnnxSupernet
from bcnet.supernet.space import WidthSpace
from bcnet.supernet.widen import widened

TABLES = Path("latency_tables")


@dataclass(frozen=True)
class Project:
    """A configuration, loaded."""

    config: Config
    data: ImageData
    model: nn.Module
    space: WidthSpace
    profile: HwProfile
    narrow: WidthSpace | None = None  # that of the network as it was given, where it was widened

    @cached_property
    def graph(self) -> OnnxSupernet:
        """The network's ONNX graph at the profile's batch size; exported on first use (seconds)."""
        with working("exporting the network to ONNX"):
            return OnnxSupernet(self.model, self.space, (self.profile.batch, *self.data.input_shape))

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
    def total_epochs(self) -> int:
        """Passes over the training images that a winner has had in all: each side of the supernet counts."""
        config = self.config
        return config.train.epochs * len(self.space.rule.sides) + config.slice.epochs

    def fresh_model(self) -> nn.Module:
        """The network of this space with its initial weights, as wide as the supernet's."""
        return _widened(self.config, fresh_model(self.config, self.data), self.narrow)

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
            if not kind.__module__.startswith(("torch.", "torchvision.")):
                found.update(_code_of(kind).encode())
        return found.hexdigest()[:16]

    @cached_property
    def _data_digest(self) -> str:
        """Every image and label, and the classes' names."""
        found = sha256(repr(self.data.classes).encode())
        for split in (self.data.train, self.data.val, self.data.test):
            found.update(repr(tuple(split.images.shape)).encode())
            found.update(split.labels.numpy().tobytes())
            found.update(split.images.contiguous().numpy().data)
        return found.hexdigest()[:16]

    def latency_model(self) -> LatencyModel:
        """The device's table bound to this space. Raises TableError where rows lack, naming `build-lut`."""
        table = LatencyTable.load(self.table_path)
        if table.device != self.profile.name:
            raise TableError(
                f"{self.table_path} was measured on '{table.device}', not on '{self.profile.name}'; "
                f"run `bcnet build-lut --device {self.profile.name}` in another folder"
            )
        setting = setting_of(self.profile)
        calibration = table.calibrations.get((self.model_key, setting))
        model = LatencyModel(table, setting, self.graph.slots, self.choices, calibration)
        if calibration is None or calibration.rows != table.digest_of(model.used(), setting):
            raise TableError(
                f"{self.table_path} is not calibrated for this network at {setting}; "
                f"run `bcnet build-lut --device {self.profile.name}`"
            )
        _compare_versions(self.table_path, table, model, runtime_named(self.profile.runtime).fingerprint())
        return model


def _compare_versions(path: Path, table: LatencyTable, model: LatencyModel, here: dict[str, str]) -> None:
    """Say it where rows were measured with another runtime or processor than this one."""
    used = {
        table.rows[spec, model.setting].session
        for spec in model.used()
        if (spec, model.setting) in table.rows
    }
    for number in sorted(used):
        then = table.sessions[number].provenance
        for key, value in here.items():
            if then.get(key) != value:
                _say_once(
                    f"{path}: layers were measured with {key} {then.get(key)}, here it is {value}; "
                    "delete the file and run `bcnet build-lut` to measure them anew"
                )


@cache
def _say_once(message: str) -> None:
    say(message)


def _code_of(kind: type) -> str:
    """What a class does, whatever its comments and its layout; nothing where its source is not at hand."""
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(kind))))
    except (OSError, TypeError, SyntaxError):
        return ""


def model_key(slots: tuple[LayerSlot, ...], choices: tuple[tuple[int, ...], ...]) -> str:
    """A short hash of a network's layers and of the choices of its groups."""
    return digest([repr([(slot.template, slot.in_terms, slot.out_terms) for slot in slots]), choices])


_loaded: list[Project] = []  # the last one: the stages of a run share it


def load_project(config: Config) -> Project:
    """What the configuration names, loaded; kept until another one is asked for. Raises what is wrong."""
    if not _loaded or _loaded[0].config != config:
        _loaded[:] = [_load(config)]
    return _loaded[0]


def forget_project() -> None:
    """Let the next `load_project` load anew, whatever has changed behind the same configuration."""
    _loaded.clear()


def _load(config: Config) -> Project:
    keep_freed_memory()
    profile = load_profile(config.device)
    data = load_data(config.data, config.seed)
    model = fresh_model(config, data)
    example = torch.zeros(1, *data.input_shape)
    try:
        with torch.no_grad():
            output = model.eval()(example)
    except Exception as cause:
        raise ModelError(
            f"model '{config.model.name}' does not run on images of {tuple(data.input_shape)}: "
            f"{one_line(cause)}"
        ) from None
    if isinstance(output, Tensor) and output.shape != (1, len(data.classes)):
        raise ModelError(
            f"model '{config.model.name}' gives outputs of shape {tuple(output.shape)}, "
            f"the data has {len(data.classes)} classes: set num_classes in [model] args"
        )
    _check_training_mode(config, model, torch.zeros(2, *data.input_shape))
    with working("looking for channels that can be searched"):
        model, space, narrow = searched_space(config, profile, model, example)
    return Project(config, data, model, space, profile, narrow)


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
        channel_multiple=_multiple(config, load_profile(config.device)),
        copies=config.train.channel_order != "as-is",
        seed=config.seed,
    )


def fresh_model(config: Config, data: ImageData) -> nn.Module:
    """The configured network with its initial weights, the same for the same seed."""
    kept = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            random.seed(config.seed)
            np.random.seed(config.seed)
            return build_model(config.model, data.input_shape[0], len(data.classes))
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


def _check_training_mode(config: Config, model: nn.Module, images: Tensor) -> None:
    """Some networks return more than their outputs while they are trained. Raises ModelError for those."""
    copied = copy.deepcopy(model).train()
    try:
        with torch.no_grad():
            output = copied(images)
    except ValueError:
        return  # batch statistics of so few values: batches in training are larger
    if not isinstance(output, Tensor):
        raise ModelError(
            f"model '{config.model.name}' returns {type(output).__name__} in training, not one tensor; for "
            "torchvision's GoogLeNet and Inception set args = {aux_logits = false, init_weights = true}"
        )
