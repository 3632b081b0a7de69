"""`digit-scenes`: what the images are made from, and that they are the same in every call."""

import pytest
import torch

from bcnet.config import DataConfig, ModelConfig
from bcnet.data.dataset import load_data
from bcnet.data.sources.digit_scenes import TEST, TRAINING, digit_scenes, scans, scenes
from bcnet.data.splits import Split
from bcnet.models import PACKAGED, build_model, statistics


@pytest.fixture(scope="module")
def parts() -> tuple[Split, Split]:
    train, test, names = digit_scenes(32)
    assert names == tuple("0123456789")
    return train, test


def test_training_and_test_images_are_made_from_different_scans(parts: tuple[Split, Split]) -> None:
    own = [{image.numpy().tobytes() for image in part.images} for part in scans()]
    assert [len(part) for part in scans()] == [899, 898]
    assert own[0].isdisjoint(own[1])
    for part, count, of in zip(parts, (TRAINING, TEST), scans(), strict=True):
        assert part.images.shape == (count * len(of), 1, 32, 32)
        assert part.images.dtype == torch.uint8
        assert part.sources is not None
        assert torch.equal(part.sources.bincount(), torch.full((len(of),), count))
        assert torch.equal(part.labels, of.labels[part.sources])
        # The statistics that the packaged weights expect.
        pixels = part.images.float() / 255
        assert (pixels.mean().item(), pixels.std().item()) == pytest.approx((0.18, 0.17), abs=0.005)


def test_images_depend_on_the_seed_alone_and_show_a_scan_differently_each_time() -> None:
    few = scans()[0].take(torch.arange(3))
    first, again, other = (scenes(few, 2, seed) for seed in (5, 5, 6))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.sources.tolist() == [0, 1, 2, 0, 1, 2]  # type: ignore[union-attr]
    assert not torch.equal(first.images[0], first.images[3])
    assert scenes(few, 1, 0, size=16).images.shape == (3, 1, 16, 16)


def test_a_limited_test_part_still_knows_its_sources() -> None:
    data = load_data(DataConfig(name="digit-scenes", image_size=16, train_limit=40, test_limit=60), 0)
    assert data.input_shape == (1, 16, 16)
    assert isinstance(data.test, Split)
    assert data.test.sources is not None
    assert len(data.test.sources) == len(data.test) == 60


def test_the_packaged_weights_are_small_and_as_accurate_as_documented(parts: tuple[Split, Split]) -> None:
    assert PACKAGED["digit-scenes"].file.stat().st_size <= 500_000
    config = ModelConfig(name="digit-scenes", weights="pretrained")
    model = build_model(config, 1, 10).eval()
    (mean,), (std,) = statistics(config) or ((), ())
    some = parts[1].take(torch.arange(898))  # each scan once
    with torch.inference_mode():
        answers = model((some.images.float() / 255 - mean) / std).argmax(1)
    assert (answers == some.labels).float().mean().item() == pytest.approx(0.9216, abs=0.02)
