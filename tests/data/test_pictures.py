"""Image files of every depth and mode are read as a viewer shows them, and scaled as torchvision does."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from bcnet.data.pictures import read_picture, shorter_side, squared
from bcnet.errors import DataError

RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (4, 1))
EIGHT = (RAMP / 257).round().astype(np.uint8)


def pixels(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(read_picture(path).image)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_sixteen_bits_are_scaled_by_their_depth(name: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / name)
    assert read_picture(tmp_path / name).converted == ("16-bit grey",)
    assert np.array_equal(pixels(tmp_path / name), np.repeat(EIGHT[:, :, None], 3, axis=2))


def test_integers_of_32_bits_in_16_and_floats_of_0_to_1_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "int.tif")
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("int.tif", "float.tif"):
        assert np.abs(pixels(tmp_path / name)[:, :, 0].astype(int) - EIGHT).max() <= 1
    assert pixels(tmp_path / "float.tif").max() == 255
    assert read_picture(tmp_path / "float.tif").converted == ("float grey",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.full((2, 2), 70_000, np.int32),
            r"values of 70000 to 70000 are not in 0 to 65535: save it with 8",
        ),
        (np.full((2, 2), -1, np.int32), r"values of -1 to -1 are not in 0 to 65535"),
        (np.full((2, 2), 200.5, np.float32), r"values of 200\.5 to 200\.5 are not in 0 to 1"),
        (np.full((2, 2), np.nan, np.float32), r"values of nan to nan are not in 0 to 1"),
    ],
)
def test_values_of_unknown_range_are_refused(values: object, message: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        read_picture(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, "00"), (2, "01"), (3, "11"), (4, "10"), (5, "00"), (6, "01"), (8, "10")]
)
def test_exifs_orientation_is_applied(orientation: int, corner: str, tmp_path: Path) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = 255  # its upper left quarter is white
    tag = Image.Exif()
    tag[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "x.png", exif=tag)
    shown = pixels(tmp_path / "x.png")
    assert shown.shape[:2] == ((32, 16) if orientation > 4 else (16, 32))
    row, column = (-1 if int(index) else 0 for index in corner)
    assert shown[row, column, 0] == 255
    assert shown.mean() == pytest.approx(255 / 4)
    assert read_picture(tmp_path / "x.png").converted == (("turned by EXIF",) if orientation > 1 else ())
    assert shorter_side(tmp_path / "x.png") == 16


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    image = np.zeros((2, 2, 4), np.uint8)
    image[0] = (10, 20, 30, 255)
    Image.fromarray(image).save(tmp_path / "x.png")
    assert pixels(tmp_path / "x.png").tolist() == [[[10, 20, 30]] * 2, [[255, 255, 255]] * 2]
    assert read_picture(tmp_path / "x.png").converted == ("transparent (on white)",)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([9, 8, 7, 0, 0, 0])
    palette.save(tmp_path / "p.png", transparency=1)
    assert pixels(tmp_path / "p.png").tolist() == [[[9, 8, 7], [255, 255, 255]]]


def test_an_opaque_alpha_channel_changes_nothing(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (10, 20, 30, 255)).save(tmp_path / "x.png")
    assert read_picture(tmp_path / "x.png").converted == ()
    assert pixels(tmp_path / "x.png")[0, 0].tolist() == [10, 20, 30]


def test_cmyk_becomes_rgb_and_is_reported(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "x.tif")
    picture = read_picture(tmp_path / "x.tif")
    assert (picture.image.getpixel((0, 0)), picture.converted) == ((255, 0, 0), ("CMYK",))


@pytest.mark.parametrize("size", [(37, 53), (53, 37), (40, 40), (96, 211), (15, 16)])
def test_scaling_is_that_of_torchvision(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = functional.center_crop(functional.resize(image, 24), [24, 24])
    assert np.array_equal(np.asarray(squared(image, 24)), np.asarray(expected))


@pytest.mark.parametrize(("size", "side"), [((65_000, 1), 224), ((2, 3000), 32), ((600, 30), 24)])
def test_of_a_thin_image_the_centre_alone_is_scaled(size: tuple[int, int], side: int) -> None:
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = np.asarray(squared(Image.fromarray(noise), side)).astype(int)
    assert found.shape == (side, side, 3)
    left, top = ((length - 16 * min(size)) // 2 if length > 16 * min(size) else 0 for length in size)
    inside = Image.fromarray(noise[top : height - top or None, left : width - left or None])
    expected = functional.center_crop(functional.resize(inside, side), [side, side])
    assert np.abs(found - np.asarray(expected).astype(int)).max() == 0
    if side < 200:  # and that is what scaling all of it gives, but for the position by part of a pixel
        whole = functional.center_crop(functional.resize(Image.fromarray(noise), side), [side, side])
        assert np.abs(found - np.asarray(whole).astype(int)).max() <= 1
