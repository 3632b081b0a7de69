"""The problem of a configuration, for all stages: its data, network, space and target device."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import onnx
from onnx import ModelProto
from torch import Tensor, nn

from bcnet.config import Config
from bcnet.data.image_data import ImageData
from bcnet.errors import ModelError, explaining
from bcnet.hw_profiles import HwProfile
from bcnet.models.content import network_content
from bcnet.models.fresh import Fresh, fresh_network
from bcnet.onnx_export.exportable import not_deliverable
from bcnet.onnx_export.int8 import unsigned_activations
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.onnx_export.precision import at_precision
from bcnet.onnx_export.preprocess import Preprocessing
from bcnet.pipeline.binary_layers import not_in_single_bits
from bcnet.pipeline.device_table import DeviceTable
from bcnet.pipeline.networks import channel_multiple, fresh_model, given_model, widened_as_configured
from bcnet.pipeline.raw_images import RawImages, preprocessing_of
from bcnet.progress import working
from bcnet.runs import digest
from bcnet.space.free_channels import Assignments
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import WidthSpace
from bcnet.training.step_plan import StepPlan
from bcnet.training.task import Task
from bcnet.traits import PrecisionName


@dataclass(frozen=True)
class Exported:
    """A graph with what it was exported from: ids of objects that are gone would be those of others."""

    model: nn.Module
    space: WidthSpace
    graph: OnnxSupernet


@dataclass(frozen=True)
class Problem:
    """What any method is handed: a configuration with all that it names, loaded. See `open_problem`."""

    config: Config
    data: ImageData
    model: nn.Module
    space: WidthSpace
    profile: HwProfile
    narrow: WidthSpace | None = None  # that of the network as it was given, where it was widened
    fresh_heads: tuple[str, ...] = ()  # those that `model.weights` has with another number of outputs
    further: "tuple[Problem, ...]" = ()  # the same for further devices, each with its profile and its budget
    targets: tuple[str, ...] = ()  # names of all devices, if there are several
    _graphs: dict[tuple[Any, ...], Exported] = field(default_factory=dict, compare=False, repr=False)

    @property
    def graph(self) -> OnnxSupernet:
        """The network's ONNX graph at the profile's batch size; exported on first use (seconds).

        Devices with the same batch, precision, opset and kind of INT8 activations share it.
        """
        own, unsigned = self.profile, unsigned_activations(self.profile)
        key = id(self.model), id(self.space), own.batch, own.precision, unsigned, own.opset
        if key not in self._graphs:
            self._graphs[key] = Exported(self.model, self.space, self._exported(unsigned))
        return self._graphs[key].graph

    def _exported(self, unsigned: bool) -> OnnxSupernet:
        failed = "the network's ONNX graph cannot be made"
        with working("exporting the network to ONNX"), explaining(ModelError, failed):
            return OnnxSupernet(
                self.model,
                self.space,
                self.data.example(self.profile.batch),
                self.profile.precision,
                unsigned=unsigned,
                opset=self.profile.opset,
            )

    def not_deliverable(self) -> str | None:
        """Why the narrowest network cannot be exported or run, see `exportable.py`; None where it can.

        Nor can a binary one at a precision that a device's 1-bit kernels do not have.
        """
        reason = not_deliverable(lambda: self.graph, self.model, self.data.example(self.profile.batch))
        every = (own.at(name) for own in self.devices for name in own.precisions)
        refused = (not_in_single_bits(own.graph, own.profile) for own in every if own.profile.traits.one_bit)
        return reason or next((found for found in refused if found), None)

    def at_precision(self, proto: ModelProto) -> ModelProto:
        """An exported network at the profile's opset and precision; INT8 is calibrated (seconds)."""
        return at_precision(proto, self.data, self.profile, self.config.seed)

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """The pre-processing in the delivered file; None if the file takes normalised images."""
        return preprocessing_of(self.config, self.data, self.profile)

    @cached_property
    def raw_images(self) -> RawImages | None:
        """The test images as such a file takes them."""
        return RawImages(self.data, self.preprocessing) if self.preprocessing else None

    @property
    def tested(self) -> ImageData | RawImages:
        """The test images in the form that the delivered file takes."""
        return self.raw_images or self.data

    def delivered(self, proto: ModelProto) -> ModelProto:
        """An exported network as it is delivered: with pre-processing, if that is configured."""
        return self.preprocessing.before(proto) if self.preprocessing else proto

    def delivered_original(self) -> bytes:
        """The original network's file in the same form, against which delivered ones are timed."""
        original = self.graph.variant(self.space.original())
        if self.preprocessing is None:
            return original
        content: bytes = self.delivered(onnx.load_from_string(original)).SerializeToString()
        return content

    @cached_property
    def task(self) -> Task:
        """The loss, the metric and the training step."""
        return Task.of(self.config.task)

    @cached_property
    def _others(self) -> "dict[str, Problem]":
        return {}

    def at(self, precision: PrecisionName) -> "Problem":
        """The same problem with every device at this precision; always the same object.

        At the first device's own precision, further devices keep theirs: that is this problem.
        """
        if precision == self.profile.precision:
            return self
        if precision not in self._others:
            profile = self.profile.model_copy(update={"precision": precision})
            config = self.config.model_copy(update={"precision": precision})
            further = tuple(own.at(precision) for own in self.further)
            self._others[precision] = replace(self, profile=profile, config=config, further=further)
        return self._others[precision]

    def of_model(self, model: nn.Module) -> "Problem":
        """The same problem with another network of the same space and tensors, exported by itself."""
        return replace(self, model=model, _graphs={})

    @property
    def precisions(self) -> tuple[PrecisionName, ...]:
        """The precisions that the network may have: the device's own, then the further ones of the search."""
        return tuple(dict.fromkeys((self.profile.precision, *self.config.search.precisions)))

    def table_inputs(self) -> dict[str, str]:
        """What the manifest of a table's build records, for all precisions and devices."""
        inputs = self.table.inputs()
        for name in self.precisions[1:]:
            inputs[f"table at {name}"] = self.at(name).table.inputs()["table"]
        for own in self.further:
            inputs |= {f"{key} on {own.profile.name}": value for key, value in own.table_inputs().items()}
        return inputs

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """Each group's width choices."""
        return tuple(group.choices for group in self.space.groups)

    @cached_property
    def table(self) -> DeviceTable:
        """The target device's latency table."""
        return DeviceTable(self.profile, lambda: self.graph, self.targets)

    @property
    def devices(self) -> "tuple[Problem, ...]":
        """The problem for each device; the first is this one."""
        return (self, *self.further)

    @property
    def on_device(self) -> str:
        """Where there are several devices, " on NAME" for messages about this one; else nothing."""
        return f" on {self.profile.name}" if self.targets else ""

    @property
    def device_key(self) -> str:
        """The target device (or devices), and everything that a latency on it depends on."""
        keys = [own.table.device_key for own in self.devices]
        return digest(keys) if self.further else keys[0]

    @property
    def channel_multiple(self) -> int:
        """The channel multiple of widths."""
        return channel_multiple(self.config, [own.profile for own in self.devices])

    @property
    def supernet_passes(self) -> int:
        """Passes over the training images that all supernets take: each path of a step counts.

        Paths that share a batch count as one.
        """
        train = self.config.train
        passes = StepPlan.of(train).passes(len(self.space.rule.sides))
        return round(train.supernets * train.epochs * passes)

    @property
    def winner_passes(self) -> int:
        """Passes behind a winner's weights: the supernets', unless it begins from scratch, and its own."""
        own = self.config.slice
        return own.epochs + (0 if own.from_scratch else self.supernet_passes)

    def supernet(self, state: Mapping[str, Tensor]) -> Supernet:
        """The supernet with these tensors; its widths take channels as configured."""
        train, assignments = self.config.train, None
        if self.space.rule.free:
            scored = self.config.search.free_sets
            assignments = Assignments(train.free_offset, train.free_sets, scored, train.free_random)
        return Supernet(self.model, self.space, state, assignments)

    def given_model(self, seed: int) -> nn.Module:
        """The network of this space as it is given, as wide as the supernet's, from another seed.

        Trained weights are the same for every seed.
        """
        config = self.config.model_copy(update={"seed": seed})
        return widened_as_configured(
            config, given_model(config, self.data), self.narrow, self.channel_multiple
        )

    def fresh_model(self) -> nn.Module:
        """The network of this space with freshly initialised weights, as wide as the supernet's.

        The weights that still hold trained values are in `fresh.kept`.
        """
        return widened_as_configured(
            self.config, copy.deepcopy(self.fresh.model), self.narrow, self.channel_multiple
        )

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
        for piece in network_content(self.model):
            found.update(piece)
        return found.hexdigest()[:16]

    @cached_property
    def _data_digest(self) -> str:
        return self.data.digest()
