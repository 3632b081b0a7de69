"""bcnet.toml and the flags, checked, as one configuration. Unknown keys and wrong types are errors.

In: a TOML file (or nothing) and values from flags. Out: `Config`. Each field's description is also the
comment that `bcnet init` writes, so the documentation cannot drift from what is read.
"""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from bcnet.errors import ConfigError, UsageError
from bcnet.plain import shown
from bcnet.progress import say
from bcnet.toml_files import is_there, read_toml

CONFIG_FILE = Path("bcnet.toml")
PRETRAINED = "pretrained"  # as model.weights: those of the network's library
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# What the template shows, in a comment, for keys that it does not set.
EXAMPLES = {
    "device": '"jetson"',
    "host": '["user@jetson"]',
    "batch": "1",
    "threads": "1",
    "precision": '"fp32"',
    "table_noise": "0.05",
    "image_size": "32",
    "mean": '"imagenet"',
    "std": '"imagenet"',
    "train_limit": "5000",
    "test_limit": "1000",
    "channel_multiple": "8",
    "weights": '"weights.safetensors"',
    "latency_ms": "5.0",
    "latency": '"60%"',
    "min_accuracy": "0.9",
    "margin": "0.02",
    "max_params": "1_500_000",
    "max_macs": "100_000_000",
    "max_size_mb": "6.0",
    "inside_exponent": "0.0",
    "transforms": '"package.module:function"',
    "collate": '"package.module:function"',
    "train_step": '"package.module:function"',
}


def latency_share(text: str) -> float:
    """`"60%"` as 0.6."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = math.nan
    if not text.strip().endswith("%") or not (math.isfinite(share) and share > 0):
        raise ValueError(f"a latency share is written as 60%, above zero, not '{text}'")
    return share


def _budget_share(value: object) -> object:
    """A share of a latency as it is written; a number, or one with a unit, is probably milliseconds."""
    instead = "for milliseconds, give latency_ms (--latency-ms), as 5.0"
    if value is not None and not isinstance(value, str):
        raise ValueError(f'a latency share is written as "60%", with quotes, not {shown(value)}; {instead}')
    try:
        if value is not None:
            latency_share(value)
    except ValueError as cause:
        raise ValueError(f"{cause}; {instead}") from None
    return value


def _budget_ms(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(
            f"milliseconds are a number, as 5.0, not '{value}'; a share of the full network's latency is "
            'given as latency (--latency), as "60%"'
        )
    return value


RENAMED_STEPS = {"turns": "alternating", "taught": "distilled"}  # old names, which still work


class Section(BaseModel):
    """A table of bcnet.toml."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The network."""

    name: str = Field(
        "digits",
        description="digits, cbm-mobilenet, cbm-resnet, torchvision:NAME, timm:NAME, package.module:function",
    )
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for the network")
    weights: str | None = Field(
        None,
        description="trained weights: a file of the same network, .safetensors or saved by torch.save; "
        "'pretrained' for the libraries' own weights of torchvision and timm networks",
    )


class DataConfig(Section):
    """The images."""

    name: str = Field("digits", description="digits, cifar10, imagefolder:PATH or package.module:function")
    image_size: int | None = Field(
        None, ge=8, le=4096, description="side in pixels; the dataset's own if not given"
    )
    train_limit: int | None = Field(None, ge=2, description="at most so many training images, of all classes")
    test_limit: int | None = Field(None, ge=1, description="at most so many test images, of all classes")
    val_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of the training images held out to score candidates; unused where a folder has "
        "both test/ and val/",
    )
    mean: tuple[float, ...] | None = Field(
        None,
        strict=False,
        description="mean of each channel, of pixels scaled to 0..1, as [0.5, 0.5, 0.5], or 'imagenet': what "
        "the network was trained with; if not given, that of pretrained weights or of the training images",
    )
    std: tuple[float, ...] | None = Field(
        None, strict=False, description="standard deviation of each channel; needed together with mean"
    )
    skip_broken: bool = Field(
        False, description="leave out image files that cannot be read, and report how many"
    )
    flip: bool = Field(False, description="mirror training images at random, masks with them")
    shift: int = Field(
        2, ge=0, le=512, description="shift training images, masks with them, by up to so many pixels"
    )
    transforms: str | None = Field(
        None,
        description="package.module:function(input, target) -> (input, target), for each training item",
    )
    collate: str | None = Field(
        None,
        description="package.module:function(list of (input, target)) -> (inputs, targets): "
        "how a batch is made",
    )

    @model_validator(mode="before")
    @classmethod
    def _named_statistics(cls, values: Any) -> Any:
        if isinstance(values, dict) and "imagenet" in (values.get("mean"), values.get("std")):
            named = {key: values.get(key, "imagenet") for key in IMAGENET}
            values = {**values, **{k: IMAGENET[k] if v == "imagenet" else v for k, v in named.items()}}
        for key in IMAGENET:
            value = values.get(key) if isinstance(values, dict) else None
            if isinstance(value, str):
                raise ValueError(
                    f"{key} is 'imagenet', or one number per channel, as [0.5, 0.5, 0.5], not {shown(value)}"
                )
        return values

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        if self.mean is None or self.std is None:
            return self
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: one per channel")
        if not all(value > 0 for value in self.std):
            raise ValueError("each value of std must be above 0")
        if not all(0 <= value <= 1 for value in self.mean) or not all(0 < value <= 1 for value in self.std):
            raise ValueError("mean and std are for pixels scaled to 0..1: divide those for 0..255 by 255")
        return self


class TaskConfig(Section):
    """What the network is trained for."""

    loss: str = Field(
        "cross-entropy",
        description="cross-entropy, or package.module:function(outputs, targets) -> scalar tensor",
    )
    metric: str = Field(
        "accuracy",
        description="accuracy, mean-iou, or package.module:function(batches of (outputs, targets)) -> a "
        "number, larger is better",
    )
    train_step: str | None = Field(
        None,
        description="in place of loss: package.module:function(model, inputs, targets) -> scalar tensor",
    )


class SpaceConfig(Section):
    """The widths to choose from."""

    bins: int = Field(8, ge=2, le=4096, description="width choices per group")
    channel_multiple: int | None = Field(
        None, ge=1, description="widths are multiples of this; the device profile's if not given"
    )
    min_width: float = Field(
        0.125, gt=0, le=1, description="narrowest choice, as a part of a group's channels"
    )
    expand: float = Field(
        1.0, ge=1, le=4, description="the supernet's widths over the network's: 1.5 searches wider ones, too"
    )
    freeze: tuple[str, ...] = Field(
        (), strict=False, description='groups or layers that keep their width, as ["stem", "layer1.*"]'
    )
    tie: tuple[Annotated[tuple[str, str], Strict(False)], ...] = Field(
        (), strict=False, description='pairs of groups with one width, as [["left.conv", "right.conv"]]'
    )


def _renamed_step(value: object) -> object:
    """A step by its name in bcnet.toml: earlier versions had other names for two of them."""
    if not isinstance(value, str) or value not in RENAMED_STEPS:
        return value
    say(f'train.step = "{value}" is now called "{RENAMED_STEPS[value]}"; please rename it')
    return RENAMED_STEPS[value]


class TrainConfig(Section):
    """The supernet, and the settings that fine-tuning shares with it."""

    epochs: int = Field(5, ge=1, le=100_000, description="times that all training images are gone through")
    supernets: int = Field(
        1,
        ge=1,
        le=16,
        description="so many supernets, each trained for `epochs` from a seed of its own: so many times the "
        "training; widths are scored by the mean of all",
    )
    learning_rate: float = Field(0.1, gt=0, description="highest learning rate (cosine after warm-up)")
    method: Literal["unilateral", "bcnet", "bcnetv2"] = Field(
        "bcnet", description="which channels a width takes: unilateral, bcnet, bcnetv2"
    )
    step: Literal["plain", "alternating", "sandwich", "distilled", "us-nets"] = Field(
        "plain",
        description="paths of a step: plain (drawn widths on both sides), alternating (on one side, left and "
        "right step by step), sandwich (and the widest and narrowest), distilled (and the widest, from whose "
        "outputs the others learn), us-nets (both)",
    )
    _step = field_validator("step", mode="before")(_renamed_step)
    draws: int = Field(1, ge=1, le=64, description="widths drawn for each step")
    complementary: bool = Field(
        False,
        description="follow widths c by l - c (bcnet) or l + b - c (bcnetv2), as the papers do",
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd (Nesterov) or adamw")
    batch_size: int = Field(64, ge=1, le=65_536, description="images a step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay, not on biases and normalisation")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up")
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="label smoothing")
    channel_order: Literal["as-is", "l1", "l2", "bn-scale", "fpgm", "taylor", "fisher"] = Field(
        "as-is",
        description="for trained weights: paths begin with the most important channels, "
        "by l1, l2, bn-scale, fpgm, taylor or fisher; if not given, by the one that is best at half widths",
    )
    teacher: Literal["auto", "original", "none"] = Field(
        "auto",
        description="whose outputs all paths learn from: original (the given network, frozen; temperature "
        "and weight as in slice), none (labels, or the widest path where `step` says so); auto: the original "
        "where its weights are trained",
    )
    amp: bool = Field(True, description="bfloat16 where the training device computes in it")
    train_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto, cpu or cuda: where to train"
    )
    cuda_graph: bool = Field(
        False,
        description="on a GPU: train the supernet by a recorded CUDA graph, where that is right and faster, "
        "as for small networks",
    )


class SearchConfig(Section):
    """The budget, and how the best widths are found."""

    method: Literal[
        "auto",
        "evolution",
        "latency-greedy",
        "latency-milp",
        "adapruner",
        "uniform",
        "network-adjustment",
        "group-fisher",
    ] = Field(
        "auto",
        description="evolution (scores in a supernet); on a trained network itself, without a supernet: "
        "latency-greedy, latency-milp, adapruner, uniform; auto: all of these where weights are given, the "
        "best of their networks wins, else evolution; network-adjustment: moves channels between groups in "
        "rounds; group-fisher: removes channels while it trains",
    )

    # Not finite is let through to the check below, which says it better.
    latency_ms: float | None = Field(None, allow_inf_nan=True, description="budget in milliseconds")
    latency: str | None = Field(
        None, description='budget as a percentage of the original network\'s latency, as "60%"'
    )
    min_accuracy: float | None = Field(
        None,
        allow_inf_nan=True,
        description="instead of a budget: the fastest network with at least this accuracy (0 to 1), or value "
        "of task.metric",
    )
    max_params: int | None = Field(
        None,
        ge=1,
        description="at most so many parameters, beside a budget or alone; buffers are not counted",
    )
    max_macs: int | None = Field(
        None,
        ge=1,
        description="at most so many multiply-accumulates an image, of convolutions and linear layers",
    )
    max_size_mb: float | None = Field(
        None,
        gt=0,
        description="at most so many megabytes (1,000,000 bytes) of weights in the exported file, at the "
        "device's precision",
    )
    pareto: bool = Field(
        False,
        description="search the whole front of accuracy against latency (NSGA-II); a budget says who wins",
    )
    fitness: Literal["hard", "soft"] = Field(
        "hard",
        description="hard: most accurate inside the budget; soft: accuracy * (latency / budget) ** "
        "latency_exponent, scored beyond the budget, too",
    )
    latency_exponent: float = Field(
        -0.07, le=0, description="soft only: what latency is worth; MnasNet's is -0.07"
    )
    inside_exponent: float | None = Field(
        None,
        le=0,
        description="soft only: the same inside the budget, latency_exponent if not given; 0: accuracy alone",
    )
    over_budget: bool = Field(
        False, description="soft only: the winner may be over the budget, which is then not verified"
    )
    population: int = Field(16, ge=2, le=100_000, description="candidates a generation")
    generations: int = Field(4, ge=0, le=100_000, description="generations after the first")
    mutation: float = Field(0.15, gt=0, le=1, description="probability that a group's width is redrawn")
    exchange: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of mutations that move channels from the group where they are worth least per "
        "millisecond to the one where they are worth most, at equal latency",
    )
    measured: int = Field(
        5, ge=1, le=100_000, description="best candidates measured as whole networks before one wins"
    )
    trials: int = Field(
        3,
        ge=0,
        le=1000,
        description="on a trained network: so many of the best measured candidates, and the uniform one, are "
        "fine-tuned briefly before one wins; 0: their losses without fine-tuning decide",
    )
    trial_epochs: int = Field(1, ge=1, le=100_000, description="passes of each of these")
    prune_epochs: int = Field(
        2,
        ge=1,
        le=100_000,
        description="group-fisher: passes over which removals are spread, at a tenth of slice.learning_rate",
    )
    adjust_by: Literal["latency", "macs"] = Field(
        "latency",
        description="network-adjustment: groups are compared by the loss of one choice per millisecond, or "
        "(macs, as published) by the loss of channels dropped at random per multiply-accumulate",
    )
    prune_by: Literal["latency", "macs", "memory"] = Field(
        "latency",
        description="group-fisher: removals are ranked by information per latency, per multiply-accumulates "
        "or per memory of activations that they save",
    )
    margin: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the budget that measured networks leave free for the machine's noise; "
        "if not given, the noise seen in the table's calibration, at most 5 %",
    )
    recalibration_images: int = Field(
        128,
        ge=2,
        le=10_000_000,
        description="training images for batch-norm statistics, augmented as in training",
    )

    _share = field_validator("latency", mode="before")(_budget_share)
    _ms = field_validator("latency_ms", mode="before")(_budget_ms)

    @property
    def bounded(self) -> bool:
        """Whether there are bounds beside a latency, or in place of one."""
        return any(value is not None for value in (self.max_params, self.max_macs, self.max_size_mb))

    @property
    def beyond_a_budget(self) -> bool:
        """Whether only an evolution finds what is wanted: not one network within a latency."""
        without_budget = self.bounded and self.latency_ms is None and self.latency is None
        return self.pareto or self.min_accuracy is not None or self.fitness == "soft" or without_budget

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        if sum(value is not None for value in (self.latency_ms, self.latency, self.min_accuracy)) > 1:
            raise ValueError("give only one of latency_ms, latency and min_accuracy")
        if self.latency_ms is not None and not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            raise ValueError(f"latency_ms must be a number above zero, not {self.latency_ms}")
        if self.min_accuracy is not None and not math.isfinite(self.min_accuracy):
            raise ValueError(f"min_accuracy must be above 0 and at most 1, not {self.min_accuracy}")
        if self.fitness == "soft" and (self.min_accuracy is not None or self.pareto):
            raise ValueError(
                "fitness 'soft' weighs latency against a budget: not with min_accuracy or pareto"
            )
        if self.method not in ("auto", "evolution") and self.beyond_a_budget:
            raise ValueError(
                f"method '{self.method}' finds one network within a latency: for a front, a minimum "
                "accuracy, a soft fitness or bounds alone, use auto or evolution"
            )
        if self.over_budget and self.fitness == "hard":
            raise ValueError("over_budget is for fitness 'soft': set that, or raise the budget")
        return self


class SliceConfig(Section):
    """Fine-tuning of the winner."""

    epochs: int = Field(8, ge=0, le=100_000, description="passes over the training images")
    learning_rate: float = Field(
        0.05,
        gt=0,
        description="highest learning rate; for what is inherited from trained weights 0.02 if not given",
    )
    from_scratch: bool = Field(
        False, description="train the winner anew at train.learning_rate instead: give it more epochs"
    )
    inherit: Literal["auto", "supernet", "l1", "l2", "bn-scale", "taylor", "fpgm", "fisher"] = Field(
        "auto",
        description="where the winner's weights come from: supernet, or the trained network's most important "
        "channels by l1, l2, bn-scale, taylor, fpgm or fisher; auto: what scores best after batch-norm "
        "recalibration",
    )
    teacher: str = Field(
        "auto",
        description="whose outputs the winner learns from while it is fine-tuned: original, none, or "
        "package.module:function() -> network; auto: original where trained weights are given",
    )
    teacher_temperature: float = Field(4.0, gt=0, description="temperature of the teacher's probabilities")
    teacher_weight: float = Field(
        0.9, ge=0, le=1, description="share of the teacher in the loss; the labels have the rest"
    )
    teacher_features: tuple[str, ...] = Field(
        (),
        strict=False,
        description='names of modules whose outputs are learned, too, as ["layer3"]',
    )
    teacher_feature_weight: float = Field(
        1.0, ge=0, description="weight of the features' relative squared error in the loss"
    )
    latency_ms: float | None = Field(
        None,
        gt=0,
        description="slice the most accurate point of the search's front inside so many ms, not its winner",
    )
    latency: str | None = Field(
        None, description='the same as a percentage of the original network\'s latency, as "60%"'
    )

    _share = field_validator("latency", mode="before")(_budget_share)
    _ms = field_validator("latency_ms", mode="before")(_budget_ms)

    @property
    def of_front(self) -> bool:
        """Whether a point of the search's front is sliced, and not the search's winner."""
        return self.latency_ms is not None or self.latency is not None

    @model_validator(mode="after")
    def _check(self) -> "SliceConfig":
        if self.latency_ms is not None and self.latency is not None:
            raise ValueError("give only one of latency_ms and latency")
        return self


class ExportConfig(Section):
    """What the exported file is held to."""

    output_tolerance: float = Field(
        1e-3, gt=0, description="largest allowed output error of fp32, relative to the largest output"
    )
    fp16_output_tolerance: float = Field(
        0.01, gt=0, description="the same at fp16, and in TensorRT, whose fp32 is TF32 on newer GPUs"
    )
    accuracy_tolerance: float = Field(
        0.005, ge=0, description="largest allowed drop of accuracy against PyTorch"
    )
    fp16_accuracy_tolerance: float = Field(0.005, ge=0, description="the same at fp16")
    int8_accuracy_tolerance: float = Field(
        0.02, ge=0, description="the same at int8, where outputs differ and accuracy alone decides"
    )
    latency_tolerance: float = Field(
        0.05, ge=0, description="how far the measured latency may exceed the budget (machines are noisy)"
    )


class Config(Section):
    """Everything that a run is made from."""

    seed: int = Field(0, ge=0, lt=2**32, description="one seed for splits, training and search")
    device: str = Field(
        "cpu", description="target: see `bcnet devices`; if not given the last table's, or cpu"
    )
    batch: int | None = Field(
        None, ge=1, le=65_536, description="images an inference on the device; its profile's if not given"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads of the device's runtime; its profile's if not given"
    )
    precision: Literal["fp32", "fp16", "int8"] | None = Field(
        None, description="fp32, fp16 or int8 on the device; its profile's if not given"
    )
    table_noise: float | None = Field(
        None,
        ge=0,
        description="by so much may measuring one network twice differ, as a share: a noisier latency table "
        "is measured again once, then refused; its profile's, 0.05, if not given",
    )
    host: tuple[str, ...] = Field(
        (),
        strict=False,
        description='over ssh, as ["user@jetson"], or several of one kind; the profile\'s if not given',
    )
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    space: SpaceConfig = Field(default_factory=SpaceConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    slice: SliceConfig = Field(default_factory=SliceConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)

    @model_validator(mode="after")
    def _check(self) -> "Config":
        task = self.task
        if self.train.step in ("distilled", "us-nets") and (task.loss != "cross-entropy" or task.train_step):
            raise ValueError(
                f"train: step = {self.train.step} learns from the widest network's class probabilities, "
                "which needs task.loss = cross-entropy; use alternating, plain or sandwich"
            )
        wanted = self.search.min_accuracy
        # A metric of the user's own has a scale of its own.
        if wanted is not None and ":" not in self.task.metric and not 0 < wanted <= 1:
            raise ValueError(f"search: min_accuracy must be above 0 and at most 1, not {wanted}")
        return self


def is_example(file: Path | None) -> bool:
    """Whether nothing is configured: no file is named and there is no bcnet.toml. Then the defaults apply,
    which are those of the built-in example, a small network for handwritten digits.
    """
    return file is None and not is_there(CONFIG_FILE)


def load_config(file: Path | None, flags: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """The configuration from `file` (default: bcnet.toml if it is there), overridden by `flags`.

    `flags` maps a section's name ("" for the top level) to `{key: value}`; values of None are left out.
    Raises ConfigError for the file, UsageError for flags.
    """
    path = file if file is not None else CONFIG_FILE
    values: dict[str, Any] = {}
    if is_there(path):  # a broken link is an error; the defaults are never used then
        values = read_toml(path, ConfigError)
    elif file is not None:
        raise ConfigError(f"{file} does not exist; create one with `bcnet init`")
    try:
        config = Config.model_validate(values)
    except ValidationError as cause:
        raise ConfigError(f"{path}: {_explain(cause)}") from None
    given = {name: {k: v for k, v in keys.items() if v is not None} for name, keys in (flags or {}).items()}
    if "search" in given and {"latency_ms", "latency", "min_accuracy"} & given["search"].keys():
        # A budget from a flag takes the place of the file's, whichever kind that was.
        values["search"] = {
            key: value
            for key, value in values.get("search", {}).items()
            if key not in ("latency_ms", "latency", "min_accuracy")
        }
    if {"latency_ms", "latency"} & given.get("slice", {}).keys():
        own = values.get("slice", {}).items()
        values["slice"] = {key: value for key, value in own if key not in ("latency_ms", "latency")}
    for name, keys in given.items():
        if name:
            values[name] = {**values.get(name, {}), **keys}
        else:
            values |= keys
    try:
        config = Config.model_validate(values)
    except ValidationError as cause:
        raise UsageError(_explain(cause)) from None
    return config


def _explain(cause: ValidationError) -> str:
    """One line for the first of pydantic's errors, with the nearest known key for an unknown one."""
    error = cause.errors()[0]
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys_of(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"unknown key '{where}'; {hint}"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, not {shown(error['input'])}"


def _keys_of(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Config
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return list(section.model_fields)


def template() -> str:
    """A commented bcnet.toml that holds every key with its default."""
    lines = ["# bcnet.toml: every key with its default. Delete what you do not change.", ""]
    sections = []
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            sections.append((name, field.annotation))
        else:
            lines += _lines(name, field)
    for name, section in sections:
        title = (section.__doc__ or "").splitlines()[0]
        lines += ["", f"# {title}", f"[{name}]"]
        for key, field in section.model_fields.items():
            lines += _lines(key, field)
    return "\n".join(lines) + "\n"


def _lines(key: str, field: FieldInfo) -> list[str]:
    default = field.get_default(call_default_factory=True)
    if key in EXAMPLES:  # no default, or one that, written down, would win over the run's last table
        return [f"# {field.description}", f"# {key} = {EXAMPLES[key]}"]
    if isinstance(default, bool):
        value = str(default).lower()
    elif isinstance(default, str):
        value = f'"{default}"'
    elif isinstance(default, dict):
        value = "{}"
    elif isinstance(default, tuple):
        value = "[]"
    else:
        value = repr(default)
    return [f"# {field.description}", f"{key} = {value}"]
