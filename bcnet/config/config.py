"""`Config`: all sections of bcnet.toml and what is set above them."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, field_serializer, model_validator

from bcnet.config.data import DataConfig
from bcnet.config.deliver import ExportConfig, SliceConfig
from bcnet.config.network import ModelConfig, SpaceConfig, TaskConfig
from bcnet.config.presets import PresetName, with_preset
from bcnet.config.search import SearchConfig
from bcnet.config.section import Section, latency_share, one_or_several
from bcnet.config.train import TrainConfig
from bcnet.registry import OBSERVERS
from bcnet.traits import PrecisionName


class Config(Section):
    """Everything that a run is made from."""

    preset: PresetName | None = Field(
        None,
        description="settings of a published system, for everything that is not set here: bcnet-paper or "
        "bcnetv2-paper, the spaces, trainings and searches of the authors' code",
        examples=["bcnet-paper"],
    )
    seed: int = Field(0, ge=0, lt=2**32, description="one seed for splits, training and search")
    device: Annotated[tuple[str, ...], BeforeValidator(one_or_several)] = Field(
        ("cpu",),
        strict=False,
        min_length=1,
        description="target device, one of `bcnet devices`; with a list of several, the network has to meet "
        "a budget on each, and fitness and fronts use the first; if not given, that of the run's last "
        "table, else cpu",
        examples=["jetson"],
    )
    batch: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="images per inference on the device; if not given, that of the device profile; with "
        "several devices, this setting, threads, precision and host apply to the first one only",
        examples=[1],
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="threads of the device's runtime; if not given, that of the device profile",
        examples=[1],
    )
    precision: PrecisionName | None = Field(
        None,
        description="precision on the device: fp32, fp16 or int8; if not given, that of the device profile",
        examples=["fp32"],
    )
    table_noise: float | None = Field(
        None,
        ge=0,
        description="largest allowed relative difference between two measurements of one network: a noisier "
        "latency table is measured again once, then refused; if not given, that of the device profile, 0.05",
        examples=[0.05],
    )
    host: tuple[str, ...] = Field(
        (),
        strict=False,
        description="where the device is reached over ssh; several devices of one kind share the work; if "
        "not given, that of the device profile",
        examples=[["user@jetson"]],
    )
    observers: tuple[Annotated[str, AfterValidator(OBSERVERS.checked)], ...] = Field(
        (),
        strict=False,
        description="what receives the events of each command, in addition to the run's log: tensorboard, "
        "mlflow, or an observer of another package",
        examples=[["tensorboard"]],
    )
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    space: SpaceConfig = Field(default_factory=SpaceConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    slice: SliceConfig = Field(default_factory=SliceConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        return with_preset(values) if isinstance(values, Mapping) else values

    @field_serializer("device")
    def _written(self, device: tuple[str, ...]) -> str | tuple[str, ...]:
        """A single device is written without a list."""
        return device[0] if len(device) == 1 else device

    @model_validator(mode="after")
    def _check(self) -> "Config":
        task = self.task
        if len(set(self.device)) < len(self.device):
            raise ValueError(f"device: one device is named twice in {', '.join(self.device)}")
        if len(self.device) > 1 and not self.search.budgets and self.search.beyond_a_budget:
            raise ValueError(
                "device: several devices need a latency budget (one for all, or one for each); a minimum "
                "accuracy or bounds alone are possible with one device only"
            )
        if self.train.step in ("distilled", "us-nets") and (task.loss != "cross-entropy" or task.train_step):
            raise ValueError(
                f"train: step = {self.train.step} learns from the widest network's class probabilities, "
                "which needs task.loss = cross-entropy; use alternating, plain or sandwich"
            )
        if self.data.augment == "imagenet-strong" and (task.loss != "cross-entropy" or task.train_step):
            raise ValueError(
                "data: augment = imagenet-strong makes probabilities of the classes, which needs task.loss = "
                "cross-entropy; use imagenet"
            )
        shares = self.search.latency
        of_devices = [*shares.values()] if isinstance(shares, dict) else [shares]
        for name, given in (*(("search", own) for own in of_devices), ("slice", self.slice.latency)):
            if given is not None and latency_share(given) > 1 and self.space.expand == 1:
                raise ValueError(
                    f"{name}: latency {given} is above the network's own, so nothing would be removed; give "
                    "less than 100%, or set space.expand above 1 to search wider networks"
                )
        wanted = self.search.min_accuracy
        # A metric of the user's own has a scale of its own.
        if wanted is not None and ":" not in self.task.metric and not 0 < wanted <= 1:
            raise ValueError(f"search: min_accuracy must be above 0 and at most 1, not {wanted}")
        return self
