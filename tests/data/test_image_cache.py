"""Images of a large folder are decoded once into a file, which all processes use, or each time."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bcnet.config import DataConfig
from bcnet.data import image_cache
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.data.pixels import ImagesOnDisk
from bcnet.data.splits import Split
from bcnet.data.stored import Part
from bcnet.errors import DataError

SIDE = 10
BYTES = 3 * SIDE * SIDE


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random images of two classes, 10 of each in train and 4 in test, in blocks of four."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image_cache, "BLOCK", 4)
    rng = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 4)):
        for label in ("cat", "dog"):
            Path("pets", part, label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (SIDE, SIDE + 3, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(f"pets/{part}/{label}/{number}.png")
    return tmp_path


def load(storage: str, **settings: object) -> ImageData:
    return load_data(DataConfig(name="imagefolder:pets", storage=storage, **settings), 0)  # type: ignore[arg-type]


def contents(data: ImageData) -> list[tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]]:
    found = []
    for part in (data.train, data.val, data.test):
        assert isinstance(part, Split)
        found.append((part.pixels, part.labels, part.names))
    return found


def assert_same(one: ImageData, other: ImageData) -> None:
    for (pixels, labels, names), (others, other_labels, other_names) in zip(
        contents(one), contents(other), strict=True
    ):
        assert torch.equal(pixels, others)
        assert torch.equal(labels, other_labels)
        assert names == other_names


def caches() -> list[Path]:
    return sorted(path for path in Path(".cache/images").iterdir() if path.is_dir())


def of_train() -> Path:
    return max(caches(), key=lambda path: (path / "pixels.u8").stat().st_size)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_all(part: Part, side: int) -> None:
        raise AssertionError(f"{len(part)} files are decoded")

    monkeypatch.setattr(image_cache, "decode_all", decode_all)


@pytest.mark.parametrize("storage", ["disk", "stream"])
def test_images_on_disk_are_those_in_memory(storage: str) -> None:
    data = load(storage)
    assert isinstance(data.train, Split)
    assert isinstance(data.train.images, ImagesOnDisk)
    assert_same(data, load("memory"))
    assert (data.mean, data.std) == (load("memory").mean, load("memory").std)


def test_images_are_in_memory_unless_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("auto")
    assert isinstance(data.train, Split)
    assert isinstance(data.train.images, torch.Tensor)
    monkeypatch.setattr("bcnet.data.stored_splits.MEMORY", 28 * BYTES - 1)
    assert isinstance(load("auto").train.images, ImagesOnDisk)  # type: ignore[union-attr]


def test_a_file_that_cannot_be_read_is_left_out_and_others_keep_their_classes() -> None:
    Path("pets/train/cat/3.png").write_bytes(b"no image")
    for _ in range(2):  # decoded, then as it was found
        with pytest.raises(DataError, match=r"3\.png cannot be read as an image"):
            load("disk")
    data = load("disk", skip_broken=True)
    assert_same(data, load("memory", skip_broken=True))
    assert "skipped 1 unreadable: pets/train/cat/3.png" in str(data)


def test_decoded_images_are_used_again_until_a_file_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load("disk")
    with monkeypatch.context() as without:
        forbid_decoding(without)
        again = load("disk")
        assert_same(again, before)
        assert again.digest() == before.digest()
    Image.new("RGB", (SIDE, SIDE), "red").save("pets/train/cat/3.png")
    changed = load("disk")
    assert changed.digest() != before.digest()
    assert_same(changed, load("memory"))


def test_the_digest_is_that_of_the_images_wherever_the_folder_lies() -> None:
    before = load("disk").digest()
    shutil.copytree("pets", "copy")
    os.utime("copy/train/cat/3.png", (1, 1))
    other = load_data(DataConfig(name="imagefolder:copy", storage="disk"), 0)
    assert other.digest() == before
    assert len(caches()) == 3  # test/ has the same files, names, sizes and times


def test_a_killed_decoding_continues_after_its_last_block(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = image_cache.decode_all

    def killed(part: Part, side: int) -> object:
        asked.append(len(part))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(part, side)

    with monkeypatch.context() as patched:
        patched.setattr(image_cache, "decode_all", killed)
        with pytest.raises(KeyboardInterrupt):
            load("disk")
        assert asked == [4, 4, 4]
        data = load("disk")
    assert asked == [4, 4, 4, *[4] * 3, *[4] * 2]  # the other 12 of train, then test
    assert_same(data, load("memory"))


@pytest.mark.parametrize("damage", ["cut short", "gone", "edited log"])
def test_damaged_caches_are_decoded_again(damage: str) -> None:
    load("disk")
    own = of_train()
    if damage == "cut short":
        os.truncate(own / "pixels.u8", 9 * BYTES + 5)
    elif damage == "gone":
        (own / "pixels.u8").unlink()
    else:
        log = own / "images.jsonl"
        log.write_text(log.read_text().replace('"count": 4', '"count": 3', 1))
    assert_same(load("disk"), load("memory"))


def test_a_cache_that_is_cut_short_while_it_is_used_is_reported() -> None:
    data = load("disk")
    os.truncate(of_train() / "pixels.u8", BYTES)
    with pytest.raises(DataError, match=r"pixels\.u8 is cut short: remove its folder"):
        contents(data)


def test_a_cache_that_is_removed_while_it_is_used_stays_readable() -> None:
    data = load("disk")
    before = contents(data)
    shutil.rmtree(".cache/images")
    assert torch.equal(contents(data)[0][0], before[0][0])


def test_too_many_images_for_the_cache_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forbid_decoding(monkeypatch)
    with pytest.raises(DataError, match=r"20 decoded images take 0\.0 GB, data\.cache_gb allows .*'stream'"):
        load("disk", cache_gb=19 * BYTES / 1e9)


def test_caches_that_were_not_used_for_longest_make_room(capfd: pytest.CaptureFixture[str]) -> None:
    load("disk")
    train, (test,) = of_train(), [path for path in caches() if path != of_train()]
    os.utime(train / "images.jsonl", (1, 1))
    room = sum(file.stat().st_size for file in test.iterdir()) + 28 * 3 * 8 * 8
    load("disk", image_size=8, cache_gb=(room + 2000) / 1e9)  # and the logs
    assert f"removed {train}" in " ".join(capfd.readouterr().err.split())
    assert (train.exists(), test.exists(), len(caches())) == (False, True, 3)


def test_a_streamed_file_that_cannot_be_read_is_named() -> None:
    data = load("stream")
    Path("pets/test/dog/1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^pets/test/dog/1\.png cannot be read as an image .*remove it$"):
        contents(data)
