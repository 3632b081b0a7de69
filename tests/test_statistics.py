"""Mean and deviation for normalisation: those of the training images, or of a network's own training."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import bcnet
from bcnet.config import Config, DataConfig, load_config
from bcnet.data.dataset import load_data
from bcnet.errors import ConfigError, DataError
from bcnet.pipeline.open_problem import open_problem

pytestmark = pytest.mark.usefixtures("folder")


def colours() -> None:
    for label in ("cat", "dog"):
        for number in range(5):
            Path("pets", label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 51, 102)).save(f"pets/{label}/{number}.png")


@pytest.mark.parametrize("key", ["mean", "std"])
def test_imagenets_statistics_have_a_name(key: str) -> None:
    colours()
    Path("bcnet.toml").write_text(
        f'data.name = "imagefolder:pets"\ndata.{key} = "imagenet"\n', encoding="utf-8"
    )
    config = load_config(None).data
    data = load_data(config, 0)
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = data.normalise(torch.full((1, 3, 8, 8), 51, dtype=torch.uint8))[0, :, 0, 0]
    torch.testing.assert_close(pixels, torch.tensor([-1.24454, -1.14286, -0.91556]), atol=1e-4, rtol=0)
    own = load_data(DataConfig(name="imagefolder:pets"), 0)
    assert own.mean[1:] == pytest.approx((0.2, 0.4))
    assert data.digest() != own.digest()
    assert torch.equal(data.train.images, own.train.images)


def test_data_is_normalised_as_in_a_run_also_where_weights_bring_their_own_statistics() -> None:
    images = {"name": "digit-scenes", "image_size": 16, "train_limit": 40, "test_limit": 20}
    pretrained = {"name": "digit-scenes", "weights": "pretrained"}

    def first_pixel(**settings: object) -> float:
        config = Config.model_validate(settings)
        data, in_run = bcnet.load_data(config), open_problem(config).data
        assert (data.mean, data.std, data.digest()) == (in_run.mean, in_run.std, in_run.digest())
        return float(data.normalise(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8)))

    own = load_data(DataConfig.model_validate(images), 0)
    assert own.mean != pytest.approx((0.18,), abs=1e-3)
    assert first_pixel(model=pretrained, data=images) == pytest.approx((0.2 - 0.18) / 0.17)
    untrained = first_pixel(model={"name": "digit-scenes"}, data=images)
    assert untrained == pytest.approx((0.2 - own.mean[0]) / own.std[0], rel=1e-5)
    configured = {**images, "mean": [0.5], "std": [0.25]}
    assert first_pixel(model=pretrained, data=configured) == pytest.approx((0.2 - 0.5) / 0.25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("mean = [0.5]", "data: give both mean and std, or neither"),
        ("mean = [0.5]\nstd = [0.5, 0.5]", "data: mean has 1 values and std 2: one per channel"),
        ("mean = [127]\nstd = [64]", r"scaled to 0\.\.1: divide those for 0\.\.255 by 255"),
        ("mean = [0.5]\nstd = [0]", "data: each value of std must be above 0"),
        (
            'mean = "coco"',
            r"data: mean is 'imagenet', or one number per channel, e\.g\. \[0\.5, 0\.5, 0\.5\], not 'coco'",
        ),
    ],
)
def test_statistics_that_cannot_be_meant_are_refused(settings: str, message: str) -> None:
    Path("bcnet.toml").write_text(f"[data]\n{settings}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(None)


def test_statistics_of_another_number_of_channels_or_of_a_dataset_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.mean has 3 channels, the images have 1"):
        load_data(DataConfig(mean="imagenet"), 0)  # type: ignore[arg-type]
    Path("own_items.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def data():\n    items = TensorDataset(torch.zeros(9, 1, 4, 4), torch.zeros(9))\n"
        "    return items, items, []\n",
        encoding="utf-8",
    )
    with pytest.raises(DataError, match="a Dataset's inputs are final, except PIL images"):
        load_data(DataConfig(name="own_items:data", mean=(0.5,), std=(0.5,)), 0)
