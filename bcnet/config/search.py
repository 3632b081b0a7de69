"""[search]: the budget, and how the best widths are found."""

import math
from collections.abc import Collection
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AllowInfNan, Field, field_validator, model_validator

from bcnet.config.section import Section, checked_ms, checked_share, each_device
from bcnet.registry import AUTO, METHODS
from bcnet.traits import PrecisionName

LATENCY_BUDGETS = ("latency_ms", "fps", "p90_ms", "latency")  # one value for all devices, or one for each
AnyNumber = Annotated[float, AllowInfNan(True)]
BUDGETS = (*LATENCY_BUDGETS, "min_accuracy")  # only one of these is given for a device


class SearchConfig(Section):
    """The budget, and how the best widths are found."""

    method: Annotated[str, AfterValidator(METHODS.checked)] = Field(
        AUTO,
        description="evolution (scores in a supernet); on a trained network itself, without a supernet: "
        f"{', '.join(METHODS.own())}, or a method of another package; auto: where weights are given, the "
        "best network of several of these, else evolution; docs/guides/choosing-a-method.md describes them",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of `method` that have no key here, as a method of another package may have",
    )

    # Values that are not finite are left to the check below, whose message is clearer.
    latency_ms: AnyNumber | dict[str, AnyNumber] | None = Field(
        None,
        description="latency budget in milliseconds; with several devices, this and other latency "
        "budgets are one for all or one for each",
        examples=[5.0],
    )
    fps: AnyNumber | dict[str, AnyNumber] | None = Field(
        None,
        description="latency budget as images per second, one call after the other: each call of `batch` "
        "images may take batch * 1000 / fps milliseconds",
        examples=[30.0],
    )
    p90_ms: AnyNumber | dict[str, AnyNumber] | None = Field(
        None,
        description="latency budget in milliseconds for the 90th percentile of the measured calls, instead "
        "of their median",
        examples=[8.0],
    )
    latency: str | dict[str, str] | None = Field(
        None,
        description="latency budget as a percentage of the original network's latency, which is measured "
        "alternating with the small networks (predicted where nothing is measured); 60% if no budget is "
        "given",
        examples=["60%"],
    )
    min_accuracy: float | None = Field(
        None,
        allow_inf_nan=True,
        description="instead of a budget: the fastest network with at least this accuracy (0 to 1), or value "
        "of task.metric, on the validation images before it is fine-tuned",
        examples=[0.9],
    )
    max_params: int | None = Field(
        None,
        ge=1,
        description="maximum number of parameters, without buffers; beside a latency budget or alone",
        examples=[1_500_000],
    )
    max_macs: int | None = Field(
        None,
        ge=1,
        description="maximum number of multiply-accumulates per image, in convolutions and linear layers",
        examples=[100_000_000],
    )
    max_size_mb: float | None = Field(
        None,
        gt=0,
        description="maximum size of the weights in the exported file, in megabytes (1,000,000 bytes), at "
        "the device's precision; a binary weight counts one bit where the device's runtime has 1-bit kernels",
        examples=[6.0],
    )
    precisions: tuple[PrecisionName, ...] = Field(
        (),
        strict=False,
        description="precisions to search besides the device's own, each by its own latency table and inside "
        "the same budget; the network with the lowest validation loss as exported wins; a budget in per cent "
        "refers to the original network in the device's own precision; with several devices, each of these "
        "precisions is searched on all of them",
        examples=[["int8"]],
    )
    pareto: bool = Field(
        False,
        description="search the whole front of accuracy against latency (NSGA-II); a budget then only "
        "chooses the winner, and `bcnet slice --latency-ms` takes any point of the front",
    )
    fitness: Literal["hard", "soft"] = Field(
        "hard",
        description="hard: most accurate inside the budget; soft: accuracy * (latency / budget) ** "
        "latency_exponent, for networks beyond the budget, too",
    )
    latency_exponent: float = Field(
        -0.07, le=0, description="soft only: exponent of latency / budget; MnasNet's is -0.07"
    )
    inside_exponent: float | None = Field(
        None,
        le=0,
        description="soft only: the exponent inside the budget, latency_exponent if not given; 0: accuracy "
        "alone",
        examples=[0.0],
    )
    over_budget: bool = Field(
        False, description="soft only: the winner may be over the budget, which is then not verified"
    )
    population: int = Field(16, ge=2, le=100_000, description="candidates per generation")
    generations: int = Field(4, ge=0, le=100_000, description="generations after the first")
    mutation: float = Field(0.15, gt=0, le=1, description="probability that a group's width is drawn again")
    mutate_from: Literal["choices", "prior"] | None = Field(
        None,
        description="how a mutation draws a width: from choices (all equally likely) or from prior (the "
        "distribution of the first generation); if not given, prior for train.method = psenet, else choices",
        examples=["prior"],
    )
    exchange: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of mutations that move channels from the group where they are worth least per "
        "millisecond to the one where they are worth most, at equal latency",
    )
    measured: int = Field(
        5,
        ge=1,
        le=100_000,
        description="best candidates measured as whole networks before one wins; of several methods, the "
        "best one of every further method is measured, too",
    )
    trials: int = Field(
        3,
        ge=0,
        le=1000,
        description="on a trained network: number of the best measured candidates that, with the uniform "
        "one, are fine-tuned briefly before one wins; 0: their losses without fine-tuning decide",
    )
    trial_epochs: int = Field(
        1, ge=1, le=100_000, description="passes over the training images for each of these"
    )
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
        description="group-fisher: removals are ranked by information per saved latency, "
        "multiply-accumulates (macs) or memory of activations",
    )
    margin: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the budget that measured networks leave free for the machine's noise; "
        "if not given, the noise seen in the table's calibration, at most 5 %",
        examples=[0.02],
    )
    recalibration_images: int = Field(
        128,
        ge=2,
        le=10_000_000,
        description="training images for batch-norm recalibration, augmented as in training",
    )

    free_sets: int = Field(
        4,
        ge=1,
        le=1024,
        description="cafenet only (train.method): assignments of free channels that are compared for each "
        "network on one half of the validation images; the best is scored on the other half, and sliced if "
        "it wins",
    )

    _share = field_validator("latency", mode="before")(partial(each_device, checked_share))
    _ms = field_validator("latency_ms", "p90_ms", mode="before")(partial(each_device, checked_ms))

    @property
    def budgets(self) -> dict[str, Any]:
        """The given latency budgets by their keys: each one value for all devices, or a table by device."""
        return {key: own for key in LATENCY_BUDGETS if (own := getattr(self, key)) is not None}

    @property
    def named_devices(self) -> tuple[str, ...]:
        """The devices that have budgets of their own."""
        return tuple(device for own in self.budgets.values() if isinstance(own, dict) for device in own)

    def for_devices(self, names: Collection[str]) -> "SearchConfig":
        """The same without budgets of devices of other names; unchanged if that would leave none."""
        if self.named_devices and not set(self.named_devices) & set(names):
            return self
        values = {
            key: {name: value for name, value in own.items() if name in names} or None
            for key, own in self.budgets.items()
            if isinstance(own, dict)
        }
        return self.model_copy(update=values)

    def of_device(self, names: Collection[str]) -> "SearchConfig":
        """The same with the budget of only one device, which is known by these names.

        Raises ValueError if other devices have budgets and this one has none.
        """
        if not self.named_devices:
            return self
        values: dict[str, Any] = dict.fromkeys(LATENCY_BUDGETS)
        for key, own in self.budgets.items():
            values[key] = next((value for name, value in own.items() if name in names), None)
        if not any(values.values()):
            raise ValueError(f"no latency budget for {next(iter(names))}, but for other devices: add one")
        return self.model_copy(update=values)

    def given_ms(self, batch: int) -> float | None:
        """The budget in milliseconds per call of `batch` images; None where it is none, or a share."""
        given = next((own for key, own in self.budgets.items() if key != "latency"), None)
        assert not isinstance(given, dict), "budgets of several devices: see `of_device`"
        return given if given is None or self.fps is None else batch * 1000 / given

    @property
    def share(self) -> str | None:
        """The budget as a percentage of the original's latency, as it is written; None where it is none."""
        assert not isinstance(self.latency, dict), "budgets of several devices: see `of_device`"
        return self.latency

    @property
    def within_latency(self) -> bool:
        """Whether a latency budget is given, in whatever form."""
        return bool(self.budgets)

    @property
    def bounded(self) -> bool:
        """Whether there are bounds beside a latency, or in place of one."""
        return any(value is not None for value in (self.max_params, self.max_macs, self.max_size_mb))

    @property
    def beyond_a_budget(self) -> bool:
        """Whether only an evolution finds what is wanted: no networks within a latency."""
        without_budget = self.bounded and not self.within_latency
        return self.min_accuracy is not None or self.fitness == "soft" or without_budget

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        given = [own for key in BUDGETS if (own := getattr(self, key)) is not None]
        if len(given) > 1 and not all(isinstance(own, dict) for own in given):
            raise ValueError(f"give only one of {', '.join(BUDGETS[:-1])} and {BUDGETS[-1]}")
        if len(set(self.named_devices)) < len(self.named_devices):
            raise ValueError(
                f"a device has two budgets; they are for {', '.join(self.named_devices)}: leave one out"
            )
        for key in ("latency_ms", "fps", "p90_ms"):
            own = getattr(self, key)
            for value in own.values() if isinstance(own, dict) else [own]:
                if value is not None and not (math.isfinite(value) and value > 0):
                    raise ValueError(f"{key} must be a number above zero, not {value}")
        if self.min_accuracy is not None and not math.isfinite(self.min_accuracy):
            raise ValueError(f"min_accuracy must be above 0 and at most 1, not {self.min_accuracy}")
        if self.fitness == "soft" and (self.min_accuracy is not None or self.pareto):
            raise ValueError(
                "fitness 'soft' weighs latency against a budget: not with min_accuracy or pareto"
            )
        if self.method not in METHODS.reserved and (self.pareto or self.beyond_a_budget):
            raise ValueError(
                f"method '{self.method}' finds one network within a latency: for a front, a minimum "
                "accuracy, a soft fitness or bounds alone, use auto or evolution"
            )
        if self.precisions and (self.min_accuracy is not None or self.fitness == "soft"):
            raise ValueError(
                "precisions need a latency budget, such as latency_ms, and cannot be combined with "
                "min_accuracy or fitness 'soft'; leave one of these out"
            )
        if self.over_budget and self.fitness == "hard":
            raise ValueError("over_budget is for fitness 'soft': set that, or raise the budget")
        return self
