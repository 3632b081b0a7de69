"""What every stage starts from: the data, the network, its space and the target device of a configuration."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path

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
from bcnet.progress import working
from bcnet.supernet.discover import discover_space
from bcnet.supernet.fit import keep_freed_memory
from bcnet.supernet.measure import setting_of
from bcnet.supernet.onnx_graph import OnnxSupernet
from bcnet.supernet.space import WidthSpace

TABLES = Path("latency_tables")


@dataclass(frozen=True)
class Project:
    """A configuration, loaded."""

    config: Config
    data: ImageData
    model: nn.Module
    space: WidthSpace
    profile: HwProfile

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
    def total_epochs(self) -> int:
        """Passes over the training images that a winner has had in all: each side of the supernet counts."""
        config = self.config
        return config.train.epochs * len(self.space.rule.sides) + config.slice.epochs

    def inputs(self) -> dict[str, str]:
        """Digests of what a supernet is made from; a stage made from others is stale."""
        config = self.config
        return {
            "model": digest(config.model.model_dump()),
            "data": _data_digest(self.data),
            "space": digest(self.space.to_json()),
        }

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
        return model


def model_key(slots: tuple[LayerSlot, ...], choices: tuple[tuple[int, ...], ...]) -> str:
    """A short hash of a network's layers and of the choices of its groups."""
    return digest([repr([(slot.template, slot.in_terms, slot.out_terms) for slot in slots]), choices])


def load_project(config: Config) -> Project:
    """Load what the configuration names, once a process. Raises what is wrong with it."""
    return _load(config.model_dump_json())


@lru_cache(maxsize=1)
def _load(text: str) -> Project:
    keep_freed_memory()
    config = Config.model_validate_json(text)
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
    space = discover_space(
        model,
        example,
        bins=config.space.bins,
        channel_multiple=config.space.channel_multiple or profile.channel_multiple,
        min_width=config.space.min_width,
        method=config.train.method,
    )
    return Project(config, data, model, space, profile)


def fresh_model(config: Config, data: ImageData) -> nn.Module:
    """The configured network with its initial weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_model(config.model, data.input_shape[0], len(data.classes))


def _data_digest(data: ImageData) -> str:
    """A hash of the labels and of some hundred images: tells datasets and splits apart."""
    found = sha256()
    for split in (data.train, data.val, data.test):
        found.update(str(tuple(split.images.shape)).encode())
        found.update(split.labels.numpy().tobytes())
        found.update(split.images[:: max(1, len(split) // 100)].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
