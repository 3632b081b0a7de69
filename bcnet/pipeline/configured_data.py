"""The data of a configuration, as every stage of a run uses it. In: a configuration. Out: its images."""

from bcnet.config import Config
from bcnet.data import dataset
from bcnet.data.image_data import ImageData
from bcnet.models import statistics


def load_data(config: Config, *, pixels: bool = True) -> ImageData:
    """The configured data, split, limited and normalised; the same for the same seed.

    Images are normalised by `data.mean` and `data.std`. If these are not configured, it is by the statistics
    that pretrained weights expect, else by those of the training images. Without `pixels`, stored images are
    a few blank ones of their size. Raises DataError.
    """
    expected = statistics(config.model) if config.data.mean is None else None
    return dataset.load_data(config.data, config.seed, pixels=pixels, trained_with=expected)
