"""[data]: the images, how they are split and normalised."""

from typing import Any, Literal

from pydantic import Field, model_validator

from bcnet.config.section import Section
from bcnet.plain import shown

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class DataConfig(Section):
    """The images."""

    name: str = Field(
        "digits",
        description="digits, digit-scenes, cifar10, imagefolder:PATH, hf:NAME, wds:PATTERN, torchvision:NAME "
        "or package.module:function",
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="side in pixels; the dataset's own if not given",
        examples=[32],
    )
    train_limit: int | None = Field(
        None, ge=2, description="maximum number of training images, over all classes", examples=[5000]
    )
    test_limit: int | None = Field(
        None, ge=1, description="maximum number of test images, over all classes", examples=[1000]
    )
    val_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of the training images held out to score candidates; unused where a folder has "
        "both test/ and val/",
    )
    val_images: int | None = Field(
        None,
        ge=1,
        description="number of training images held out to score candidates, in place of val_fraction",
        examples=[50000],
    )
    image_column: str | None = Field(
        None,
        min_length=1,
        description="hf: the column of images; wds: the suffix of image files; needed if there are several",
        examples=["image"],
    )
    label_column: str | None = Field(
        None,
        min_length=1,
        description="hf: the column of classes, needed if there are several; wds: the suffix of the files "
        "that hold the number or name of the class, cls if not given",
        examples=["label"],
    )
    storage: Literal["auto", "memory", "disk", "stream"] = Field(
        "auto",
        description="where a folder's images are while they are used: 'memory'; 'disk', decoded once into "
        "data.cache; 'stream', decoded each time; 'auto' is memory for up to 1 GB of pixels, else disk",
    )
    cache: str = Field(
        ".cache/images", min_length=1, description="folder of decoded images, for all runs and commands"
    )
    cache_gb: float = Field(
        100.0,
        gt=0,
        description="maximum size of that folder in GB (10^9 bytes); the least recently used images are "
        "removed first",
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=256,
        description="number of processes that read data; if not given, none for images in memory, else one "
        "fewer than the machine's cores, at most 8",
        examples=[4],
    )
    mean: tuple[float, ...] | None = Field(
        None,
        strict=False,
        description="mean of each channel, of pixels scaled to 0..1, e.g. [0.5, 0.5, 0.5], or 'imagenet': "
        "what the network was trained with; if not given, that of pretrained weights or of the training "
        "images",
        examples=["imagenet"],
    )
    std: tuple[float, ...] | None = Field(
        None,
        strict=False,
        description="standard deviation of each channel; needed together with mean",
        examples=["imagenet"],
    )
    skip_broken: bool = Field(
        False, description="leave out image files that cannot be read, and report how many"
    )
    augment: Literal["none", "light", "imagenet", "imagenet-strong"] = Field(
        "light",
        description="augmentation of training images, masks with them: none; light (`flip` and `shift`); "
        "imagenet (random resized crops, mirrored); imagenet-strong (also RandAugment, random erasing, mixup "
        "and cutmix)",
    )
    flip: bool = Field(False, description="light: mirror training images at random, masks with them")
    shift: int = Field(
        2,
        ge=0,
        le=512,
        description="light: maximum number of pixels by which training images, and masks with them, are "
        "shifted",
    )
    transforms: str | None = Field(
        None,
        description="package.module:function(input, target) -> (input, target), for each training item",
        examples=["package.module:function"],
    )
    eval_transforms: str | None = Field(
        None,
        description="package.module:function(input, target) -> (input, target), for each validation, "
        "test and calibration item",
        examples=["package.module:function"],
    )
    collate: str | None = Field(
        None,
        description="package.module:function(list of (input, target)) -> (inputs, targets): "
        "how a batch is made",
        examples=["package.module:function"],
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
                    f"{key} is 'imagenet', or one number per channel, e.g. [0.5, 0.5, 0.5], "
                    f"not {shown(value)}"
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
