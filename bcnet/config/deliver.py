"""[slice] and [export]: the fine-tuning of the winner, and the tolerances of its verification."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bcnet.config.section import Section, checked_ms, checked_share


class SliceConfig(Section):
    """Fine-tuning of the winner."""

    epochs: int = Field(8, ge=0, le=100_000, description="passes over the training images")
    learning_rate: float = Field(
        0.05,
        gt=0,
        description="highest learning rate; for what is inherited from trained weights 0.02 if not given",
    )
    from_scratch: bool = Field(
        False,
        description="train the winner from scratch, at train.learning_rate, instead of fine-tuning it; needs "
        "more epochs",
    )
    quantization_aware: bool | None = Field(
        None,
        description="at int8: after fine-tuning, train further through the integers of the exported file, "
        "for a quarter as many passes at a tenth of the rate, and keep the result if the file is better on "
        "the validation images; if not given, only when quantisation raises the validation loss by more "
        "than 2 %",
        examples=[True],
    )
    inherit: Literal[
        "auto", "supernet", "l1", "l2", "bn-scale", "taylor", "fpgm", "fisher", "iterative-taylor"
    ] = Field(
        "auto",
        description="where the winner's weights come from: supernet, or the trained network's most important "
        "channels by l1, l2, bn-scale, taylor, fpgm, fisher, or iterative-taylor, which is calculated again "
        "while channels are removed; auto: what scores best after batch-norm recalibration",
    )
    inherit_by_group: bool = Field(
        False,
        description="with inherit auto: also try a criterion for each group of channels, one group after the "
        "other, for every network that is tried or delivered; costs a score on all validation images for "
        "each group and criterion, hundreds in a deep network",
    )
    teacher: str = Field(
        "auto",
        description="teacher of the winner while it is fine-tuned: original, none, or "
        "package.module:function() -> network; auto: original where trained weights are given",
    )
    teacher_temperature: float = Field(4.0, gt=0, description="temperature of the teacher's probabilities")
    teacher_weight: float = Field(
        0.9, ge=0, le=1, description="share of the teacher in the loss; the labels have the rest"
    )
    teacher_features: tuple[str, ...] = Field(
        (),
        strict=False,
        description="names of modules whose outputs the winner also learns from the teacher's",
        examples=[["layer3"]],
    )
    teacher_feature_weight: float = Field(
        1.0, ge=0, description="weight of the features' relative squared error in the loss"
    )
    latency_ms: float | None = Field(
        None,
        gt=0,
        description="after `bcnet search --pareto`: slice the most accurate point of the front within this "
        "many milliseconds, which is measured first, instead of the winner",
        examples=[5.0],
    )
    latency: str | None = Field(
        None,
        description="the same as a percentage of the original network's latency",
        examples=["60%"],
    )

    _share = field_validator("latency", mode="before")(checked_share)
    _ms = field_validator("latency_ms", mode="before")(checked_ms)

    def decisive(self, *without: str) -> dict[str, Any]:
        """The settings that a network depends on, for digests, all but those `without`.

        Later settings are left out at their defaults: networks of earlier versions remain valid.
        """
        later = () if self.inherit_by_group else ("inherit_by_group",)
        return self.model_dump(exclude={*without, *later}, exclude_none=True)

    @property
    def of_front(self) -> bool:
        """Whether a point of the search's front is sliced, and not the search's winner."""
        return self.latency_ms is not None or self.latency is not None

    @model_validator(mode="after")
    def _check(self) -> "SliceConfig":
        if self.latency_ms is not None and self.latency is not None:
            raise ValueError("give only one of latency_ms and latency")
        if self.inherit_by_group and self.inherit != "auto":
            raise ValueError('inherit_by_group chooses among all criteria: it needs inherit = "auto"')
        return self


class ExportConfig(Section):
    """The inputs of the exported file, and the tolerances of its verification."""

    preprocess: bool = Field(
        False,
        description="put scaling, cropping and normalisation into the file, which then takes uint8 images "
        "(N, height, width, channels); budgets then include them",
    )
    input_size: (
        tuple[Annotated[int, Field(ge=8, le=16_384)], Annotated[int, Field(ge=8, le=16_384)]] | None
    ) = Field(
        None,
        strict=False,
        description="preprocess only: height and width of the application's images; if not given, those of "
        "the test images, which then must all have the same size",
        examples=[[1080, 1920]],
    )
    output_tolerance: float = Field(
        1e-3, gt=0, description="largest allowed output error of fp32, relative to the largest output"
    )
    fp16_output_tolerance: float = Field(
        0.01, gt=0, description="the same at fp16, and in TensorRT, whose fp32 is TF32 on newer GPUs"
    )
    accuracy_tolerance: float = Field(
        0.005, ge=0, description="largest allowed drop of accuracy compared with PyTorch"
    )
    fp16_accuracy_tolerance: float = Field(0.005, ge=0, description="the same at fp16")
    int8_accuracy_tolerance: float = Field(
        0.02, ge=0, description="the same at int8, where outputs differ and accuracy alone decides"
    )
    latency_tolerance: float = Field(
        0.05, ge=0, description="how far the measured latency may exceed the budget (machines are noisy)"
    )
