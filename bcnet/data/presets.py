"""Augmentation of images by torchvision.transforms.v2, as presets. In: training images. Out: augmented ones.

Items are changed one by one, in the processes that read them, masks with their images; batches are mixed
afterwards. Random numbers belong to an item, and to a batch by its first item, of a seed and an epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bcnet.data.splits import Item, Split
from bcnet.errors import DataError, one_line
from bcnet.seeds import seed_of, seeded

MIXING = "imagenet-strong"  # the preset whose targets become probabilities
ITEM, BATCH = 1, 2  # what random numbers are for: those of data.transforms and data.collate are others


@dataclass(frozen=True)
class Preset:
    """`items` changes a uint8 image (C, H, W), and a mask (H, W) with it; `batches` mixes whole batches."""

    items: Callable[..., Any]
    batches: Callable[..., Any] | None = None

    def changed(self, part: Split, numbers: Tensor, seeds: tuple[int, int]) -> Split:
        """The images of a part, and their masks, each changed by its own random numbers."""
        from torchvision import tv_tensors

        images, labels = [], []
        with seeded(*seeds):
            for image, label, number in zip(part.pixels, part.labels, numbers.tolist(), strict=True):
                # Transforms use PyTorch's generator only; seeding all takes a third of a crop's time.
                torch.default_generator.manual_seed(seed_of(*seeds, number, ITEM))
                if part.masked:
                    image, label = self.items(tv_tensors.Image(image), tv_tensors.Mask(label))
                else:
                    image = self.items(tv_tensors.Image(image))
                images.append(image.as_subclass(Tensor))
                labels.append(label.as_subclass(Tensor))
        return Split(torch.stack(images), torch.stack(labels))

    def mixed(self, batch: Item, numbers: Tensor, seeds: tuple[int, int]) -> Item:
        """Normalised images (N, C, H, W) and class indices (N,), mixed; targets are then (N, classes).

        They are probabilities. Raises DataError where data.transforms has given something else.
        """
        if self.batches is None:
            return batch
        with seeded(*seeds, int(numbers[0]), BATCH):
            try:
                images, targets = self.batches(*batch)
            except (TypeError, ValueError, RuntimeError) as cause:
                raise DataError(
                    f"data.augment = '{MIXING}' cannot mix this batch ({one_line(cause)}): data.transforms "
                    "must leave images and class indices"
                ) from cause
        return images.contiguous(memory_format=torch.channels_last), targets


def preset(name: str, shape: tuple[int, ...], mean: tuple[float, ...], classes: int) -> Preset | None:
    """The preset of a name for images of a `shape` (C, H, W); None for those that are not made of these.

    Crops and mirrors are those of torchvision's reference training for ImageNet (Szegedy et al., arXiv
    1409.4842), within the images as they are kept. The strong one adds RandAugment (arXiv 1909.13719, N = 2,
    M = 9, as for ResNet-50), and as in torchvision's recipe of 2021 random erasing (arXiv 1708.04896), and of
    each batch mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899). What is erased gets the `mean` of each
    channel, which is zero in what the network sees.
    """
    if name not in ("imagenet", MIXING):
        return None
    from torchvision.transforms import v2  # slow to import

    height, width = shape[1:]
    ratio = (3 / 4 * width / height, 4 / 3 * width / height)
    moved = [
        v2.RandomResizedCrop((height, width), scale=(0.08, 1.0), ratio=ratio, antialias=True),
        v2.RandomHorizontalFlip(0.5),
    ]
    if name != MIXING:
        return Preset(v2.Compose(moved))
    erased = v2.RandomErasing(
        0.1, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=[round(255 * value) for value in mean]
    )
    return Preset(
        v2.Compose([*moved, v2.RandAugment(num_ops=2, magnitude=9), erased]),
        v2.RandomChoice(
            [v2.MixUp(alpha=0.2, num_classes=classes), v2.CutMix(alpha=1.0, num_classes=classes)]
        ),
    )
