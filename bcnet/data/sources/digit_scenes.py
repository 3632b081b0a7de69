"""`digit-scenes`: handwritten digits among fragments of others. In: scans, a seed. Out: images as bytes.

One digit of 12 to 20 pixels lies anywhere in an image of 32, turned by up to 25 degrees, beside halves of two
other digits and under noise; the target is its class. The training images are made from one half of
scikit-learn's 1,797 scans, the test images from the other.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from bcnet.data.splits import Split, stratified

SIDE = 32  # pixels of an image, unless another size is asked for
TRAINING, TEST = 4, 5  # images from each scan
SEEDS = (1, 2)  # of the training and of the test images
DIGIT = (0.375, 0.625)  # smallest and largest side of a digit, relative to the image's
TURN, SHEAR = 25.0, 0.2  # maximum rotation in degrees; maximum shift of a digit's rows
FRAGMENTS = 2
CONTRAST = (0.5, 1.0)
BACKGROUND, SPAN, NOISE = 0.1, 0.8, 0.08  # grey level, that of a digit above it, standard deviation


def digit_scenes(size: int) -> tuple[Split, Split, tuple[str, ...]]:
    """Training and test images, (N, 1, size, size), and the classes' names. The same in every call."""
    parts = [
        scenes(own, count, seed, size)
        for own, count, seed in zip(scans(), (TRAINING, TEST), SEEDS, strict=True)
    ]
    return parts[0], parts[1], tuple(str(digit) for digit in range(10))


def scans() -> tuple[Split, Split]:
    """The scans of digits, (N, 1, 8, 8) of 0 to 16, for training and for test images: one half each."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    whole = Split(
        torch.from_numpy(bunch.images)[:, None].to(torch.uint8), torch.from_numpy(bunch.target).long()
    )
    test, train = stratified(whole.labels, len(whole) // 2, seed=0)
    return whole.take(train), whole.take(test)


def scenes(own: Split, count: int, seed: int, size: int = SIDE) -> Split:
    """`count` images with each of the scans; fragments are of the same scans. `sources` are the scans."""
    random = _Random(len(own) * count, seed)
    digits = own.pixels.float() / 16
    index = torch.arange(random.count) % len(own)
    images = random.scale(CONTRAST) * _placed(digits[index], size, TURN, random)
    for _ in range(FRAGMENTS):
        other = digits[torch.randint(len(own), (random.count,), generator=random.generator)]
        images = images.maximum(
            random.scale(CONTRAST) * _placed(_halved(other, random), size, 180, random, inside=False)
        )
    noise = NOISE * torch.randn(images.shape, generator=random.generator)
    levels = (BACKGROUND + SPAN * images + noise).clamp(0, 1) * 255
    return Split(levels.round().to(torch.uint8), own.labels[index], sources=index)


class _Random:
    """Uniform random numbers, one for each of `count` images."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.generator = count, torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float) -> Tensor:
        """(N,)"""
        return low + (high - low) * torch.rand(self.count, generator=self.generator)

    def scale(self, limits: tuple[float, float]) -> Tensor:
        """(N, 1, 1, 1), to multiply images with."""
        return self.between(*limits)[:, None, None, None]


def _halved(digits: Tensor, random: _Random) -> Tensor:
    """The part of each digit on one side of a random line through its centre."""
    angle = random.between(0, 2 * math.pi)[:, None, None]
    axis = torch.linspace(-1, 1, digits.shape[-1])
    return digits * (angle.cos() * axis + angle.sin() * axis[:, None] > 0)[:, None]


def _placed(digits: Tensor, size: int, turn: float, random: _Random, inside: bool = True) -> Tensor:
    """Digits (N, 1, 8, 8) in images (N, 1, size, size); wholly, if `inside`, except for turned corners."""
    side = random.between(*DIGIT)
    angle, shear = random.between(-turn, turn) * (math.pi / 180), random.between(-SHEAR, SHEAR)
    room = 1 - side if inside else torch.ones_like(side)
    centre = torch.stack([random.between(-1, 1) * room, random.between(-1, 1) * room], 1)[:, :, None]
    cosine, sine = angle.cos() / side, angle.sin() / side
    matrix = torch.stack([torch.stack([cosine, shear / side - sine], 1), torch.stack([sine, cosine], 1)], 1)
    grid = affine_grid(
        torch.cat([matrix, -matrix @ centre], 2), [random.count, 1, size, size], align_corners=False
    )
    return grid_sample(digits, grid, align_corners=False)
