"""Augmentation of images in memory: mirrored and shifted, masks with them.

In: a batch, and a random number for each of its items. Out: the augmented batch. Random numbers belong to an
item of an epoch, so that a batch does not depend on what else was drawn, nor on which process made it.
"""

import numpy as np
import torch
from torch import Tensor, nn


def item_draws(seed: int, epoch: int, items: Tensor, count: int) -> Tensor:
    """Uniform random numbers in [0, 1), float64 (N, count), which depend on each item's number alone.

    Each is a hash (SplitMix64) of the seed, the epoch, the number and the column.
    """
    with np.errstate(over="ignore"):
        start = _mixed(np.array([seed, epoch], dtype=np.int64).astype(np.uint64))
        key = _mixed(start[:1] ^ _mixed(start[1:] + np.uint64(1)))
        rows = _mixed(key + items.numpy().astype(np.uint64))[:, None]
        values = _mixed(rows + np.arange(1, count + 1, dtype=np.uint64) * _GAMMA)
    return torch.from_numpy((values >> np.uint64(11)).astype(np.float64) * 2.0**-53)


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), after one step."""
    values = values + _GAMMA
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def moved(images: Tensor, flip: bool, shift: int, draws: Tensor, fill: int = 0) -> Tensor:
    """Mirror and shift each image of a batch (N, C, H, W) randomly; edges are filled with `fill`.

    `draws` are three numbers in [0, 1) for each image, (N, 3): mirrored below 0.5, then rows and columns.
    """
    count, _, height, width = images.shape
    device = images.device
    if flip:
        mirrored = sent(draws[:, 0] < 0.5, device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if shift:
        padded = nn.functional.pad(images, (shift, shift, shift, shift), value=fill)
        offsets = (draws[:, 1:3] * (2 * shift + 1)).long()
        top, left = sent(offsets.T[:, :, None], device)
        rows = (top + torch.arange(height, device=device))[:, :, None]
        columns = (left + torch.arange(width, device=device))[:, None, :]
        # Indexing around the channel axis moves it to the end.
        each = torch.arange(count, device=device)[:, None, None]
        images = padded[each, :, rows, columns].permute(0, 3, 1, 2)
    return images


def sent(tensor: Tensor, device: str | torch.device) -> Tensor:
    """The tensor on a device. The copy to a GPU is asynchronous."""
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
