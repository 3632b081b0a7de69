"""[train]: how the supernet is trained."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from bcnet.config.section import Section
from bcnet.registry import SUPERNETS

RENAMED_STEPS = {"turns": "alternating", "taught": "distilled"}  # old names, which still work


def _renamed_step(value: object) -> object:
    """A step under its name in bcnet.toml; for two of them, also the name of earlier versions."""
    if not isinstance(value, str) or value not in RENAMED_STEPS:
        return value
    from bcnet.progress import say  # rich with it, which `--help` does without

    say(f'train.step = "{value}" is now called "{RENAMED_STEPS[value]}"; please rename it')
    return RENAMED_STEPS[value]


class TrainConfig(Section):
    """The supernet, and the settings that fine-tuning shares with it."""

    epochs: int = Field(5, ge=1, le=100_000, description="passes over the training images")
    supernets: int = Field(
        1,
        ge=1,
        le=16,
        description="number of supernets, each trained for all epochs from a seed of its own; widths are "
        "scored by their mean",
    )
    learning_rate: float = Field(0.1, gt=0, description="highest learning rate")
    method: Annotated[str, AfterValidator(SUPERNETS.checked)] = Field(
        "bcnet",
        description=f"which channels a width takes: {', '.join(SUPERNETS.own())}, or a method of another "
        "package",
    )
    step: Literal["plain", "alternating", "sandwich", "distilled", "us-nets", "interleaved"] = Field(
        "plain",
        description="paths of a step: plain (drawn widths on both sides), alternating (on one side, left and "
        "right in alternate steps), sandwich (plain, the widest and the narrowest), distilled (plain and the "
        "widest, from which the others learn by in-place distillation), us-nets (sandwich and distilled), "
        "interleaved (plain, but every second step, or every third with `complementary`, trains the widest "
        "alone, as in BCNet's released trainer)",
    )
    _step = field_validator("step", mode="before")(_renamed_step)
    draws: int = Field(1, ge=1, le=64, description="widths drawn for each step")
    complementary: bool = Field(
        False,
        description="bcnet and bcnetv2 only: follow widths c by their complements, l - c or l + b - c, as in "
        "the papers",
    )
    parallel: int = Field(
        4,
        ge=1,
        le=64,
        description="psenet only: widths drawn for each step, in place of `draws`; each is trained on its "
        "part of the batch",
    )
    free_offset: int = Field(
        1,
        ge=0,
        le=64,
        description="cafenet only: number of free channels on each side of a width's edge, in steps of the "
        "width choices",
    )
    free_sets: int = Field(
        2,
        ge=1,
        le=64,
        description="cafenet only: assignments of free channels that each step compares by their loss on the "
        "previous batch; the best one is trained",
    )
    free_random: float = Field(
        0.25,
        ge=0,
        le=1,
        description="cafenet only: share of the steps, at the start, that train a random assignment of free "
        "channels",
    )
    rate_decay: Literal["cosine", "linear"] = Field(
        "cosine", description="how the learning rate falls to zero after warm-up: cosine or linear"
    )
    optimizer: Literal["sgd", "adamw", "adam"] = Field(
        "sgd",
        description="sgd (Nesterov), adamw, or adam, whose weight decay is a part of the gradient",
    )
    batch_size: int = Field(64, ge=1, le=65_536, description="images per step")
    base_batch: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="the batch size that learning rates are meant for: all of them, also that of [slice], "
        "are multiplied by batch_size / base_batch; if not given, they are used as they are",
        examples=[256],
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay, except on biases and normalisation")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up")
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="label smoothing")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of the moving average of the weights over the steps, which is then what is kept",
        examples=[0.999],
    )
    clip_gradients: float | None = Field(
        None,
        gt=0,
        description="maximum norm of the gradients of a step, of all parameters together",
        examples=[1.0],
    )
    channel_order: Literal["as-is", "l1", "l2", "bn-scale", "fpgm", "taylor", "fisher"] = Field(
        "as-is",
        description="for trained weights: order of the channels, so that narrow paths begin with the most "
        "important ones by l1, l2, bn-scale, fpgm, taylor or fisher; if not given, by the criterion that is "
        "best at half widths",
    )
    teacher: Literal["auto", "original", "none"] = Field(
        "auto",
        description="teacher of all paths: original (the given network, frozen; temperature and weight as "
        "in slice), none (labels, or the widest path as set by `step`); auto: original where its weights "
        "are trained",
    )
    amp: bool | None = Field(
        None,
        description="train in bfloat16 if the training device supports it, on other GPUs in float16 with "
        "scaled losses; if not given, bfloat16 on a CPU and float16 are used only if faster than float32",
        examples=[True],
    )
    train_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to train: auto, cpu or cuda; this is not the target device"
    )
    cuda_graph: bool = Field(
        False,
        description="on a GPU: train the supernet with a CUDA graph, where that gives the same results and "
        "is faster, as it is for small networks",
    )
