"""[model], [task] and [space]: the network, what it is trained for, and the widths to choose from."""

from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from bcnet.config.section import Section

PRETRAINED = "pretrained"  # as model.weights: those of the network's library


class ModelConfig(Section):
    """The network."""

    name: str = Field(
        "digits",
        description="digits, digit-scenes, cbm-mobilenet, cbm-resnet, reactnet-a, reactnet-small, "
        "torchvision:NAME, timm:NAME, package.module:function",
    )
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for the network")
    weights: str | None = Field(
        None,
        description="trained weights: a file of the same network, .safetensors or saved by torch.save; "
        "'pretrained' for the libraries' own weights of torchvision and timm networks, and for those of "
        "digit-scenes",
        examples=["weights.safetensors"],
    )


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
        examples=["package.module:function"],
    )


class SpaceConfig(Section):
    """The widths to choose from."""

    bins: int = Field(8, ge=2, le=4096, description="width choices per group")
    bins_by: Literal["channels", "latency", "macs"] = Field(
        "channels",
        description="space width choices at equal steps of channels; or of the latency (by the device's "
        "table) or multiply-accumulates (macs) of the network with one group narrowed: a group that costs "
        "more then has more choices, and `bins` is the mean number per group",
    )
    channel_multiple: int | None = Field(
        None,
        ge=1,
        description="widths are multiples of this; if not given, that of the device profile",
        examples=[8],
    )
    min_width: float = Field(
        0.125, gt=0, le=1, description="narrowest choice, as a fraction of a group's channels"
    )
    expand: float = Field(
        1.0,
        ge=1,
        le=4,
        description="factor from the network's widths to the supernet's: above 1, wider networks are "
        "searched, too",
    )
    freeze: tuple[str, ...] = Field(
        (),
        strict=False,
        description="groups or layers that keep their width, by name or pattern",
        examples=[["stem", "layer1.*"]],
    )
    tie: tuple[Annotated[tuple[str, str], Strict(False)], ...] = Field(
        (),
        strict=False,
        description="pairs of groups that share one width",
        examples=[[["left.conv", "right.conv"]]],
    )
