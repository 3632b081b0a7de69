"""Folders of images: layouts, sizes, broken files, special files, other files."""

import os
import re
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.data.stored_splits import working_side
from bcnet.errors import DataError

pytestmark = pytest.mark.usefixtures("folder")


def picture(path: str, value: int = 0, size: tuple[int, int] = (10, 10)) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def pets(*parts: str, count: int = 5) -> None:
    """Images of two classes in each part; pixel values are the number of the part."""
    for number, part in enumerate(parts):
        for label in ("cat", "dog"):
            for file in range(count):
                picture(f"pets/{part}/{label}/{file}.png", number)


def load(**settings: object) -> ImageData:
    return load_data(DataConfig(name="imagefolder:pets", **settings), 0)  # type: ignore[arg-type]


def values(split: object) -> set[int]:
    assert isinstance(split, Split)
    return set(split.images.unique().tolist())


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "test", "Test", "testing"])
def test_a_validation_folder_is_the_test_set_where_there_is_no_other(name: str) -> None:
    pets("train", name)
    data = load()
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 2, 10]
    assert [values(part) for part in (data.train, data.val, data.test)] == [{0}, {0}, {1}]
    if name.lower().startswith("val"):
        assert f"{name}/ is the test set, candidates are scored on a part of train/" in str(data)


def test_images_too_narrow_or_small_to_be_recognised_are_counted_in_one_warning_with_an_example(
    capfd: pytest.CaptureFixture[str],
) -> None:
    pets("train", "test")
    load(image_size=80)  # eight times as large as they are
    assert "recognise" not in capfd.readouterr().err
    picture("pets/train/cat/stripe.png", size=(3, 900))
    picture("pets/test/dog/dot.png", size=(2, 2))
    data = load(image_size=24)
    assert capfd.readouterr().err == (
        "2 images are so narrow or so small that scaling to 24 x 24 pixels leaves little to recognise, as "
        "pets/test/dog/dot.png (2 x 2 pixels): remove them, or crop them by hand\n"
    )
    assert len(data.test) == 11  # they are used


def test_without_pixels_no_image_is_read_and_its_size_is_known() -> None:
    pets("train", "test")
    Path("pets/train/cat/0.png").write_bytes(b"no image")
    data = load_data(DataConfig(name="imagefolder:pets"), 0, pixels=False)
    assert (data.input_shape, data.classes) == ((3, 10, 10), ("cat", "dog"))
    with pytest.raises(DataError, match=r"pets/train/cat/0.png cannot be read as an image"):
        load()


def test_without_pixels_and_with_a_configured_size_no_file_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    pets("train", "test", count=20)
    settings = DataConfig(name="imagefolder:pets", image_size=24, val_images=30)
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", lambda path: pytest.fail(f"{path} is opened"))
        assert load_data(settings, 0, pixels=False).input_shape == (3, 24, 24)
    assert len(load_data(settings, 0).val) == 30


@pytest.mark.parametrize("name", ["val", "validation"])
def test_with_three_folders_candidates_are_scored_on_the_validation_folder(name: str) -> None:
    pets("train", name, "test")
    data = load()
    assert [len(part) for part in (data.train, data.val, data.test)] == [10, 10, 10]
    assert [values(part) for part in (data.train, data.val, data.test)] == [{0}, {1}, {2}]
    assert f"candidates are scored on {name}/" in str(data)


def test_a_limit_on_training_images_limits_those_of_a_validation_folder_too() -> None:
    pets("train", "val", "test")
    data = load(train_limit=5, test_limit=4)
    assert [len(part) for part in (data.train, data.val, data.test)] == [5, 1, 4]


def test_two_spellings_of_a_part_are_refused() -> None:
    pets("train", "val", "valid")
    with pytest.raises(DataError, match=r"^pets has both val/ and valid/: keep only one of them$"):
        load()


def test_parts_without_a_train_folder_are_no_classes_but_other_names_are() -> None:
    pets("val", "test")
    with pytest.raises(DataError, match=r"^pets has test/ but no train/"):
        load()
    for label in ("valid", "invalid"):
        for number in range(5):
            picture(f"answers/{label}/{number}.png")
    assert load_data(DataConfig(name="imagefolder:answers"), 0).classes == ("invalid", "valid")


def test_a_test_folder_may_lack_a_class_but_has_no_other() -> None:
    pets("train", "test")
    for file in Path("pets/test/cat").iterdir():
        file.unlink()
    Path("pets/test/cat").rmdir()
    data = load()
    assert data.test.labels.tolist() == [1] * 5
    assert "test/ lacks the class 'cat'" in str(data)
    picture("pets/test/cow/0.png")
    with pytest.raises(DataError, match="hold different classes: 'cow' is not in train"):
        load()


def test_the_files_of_each_part_are_known() -> None:
    pets("train", "val", "test", count=2)
    picture("pets/train/cat/deeper/1.png")
    data = load()
    assert data.test.names == ("test/cat/0.png", "test/cat/1.png", "test/dog/0.png", "test/dog/1.png")
    assert "train/cat/deeper/1.png" in data.train.names
    split = load_data(DataConfig(name="imagefolder:pets/train", val_fraction=0.5), 0)
    names = [*split.train.names, *split.val.names, *split.test.names]
    assert len(names) == len(set(names)) == 5
    for part in (split.train, split.val, split.test):
        assert [name.split("/")[0] for name in part.names] == [("cat", "dog")[i] for i in part.labels]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([32] * 10, 32),
        ([600] * 6 + [700] * 4, 600),
        ([16] + [600] * 9, 600),
        ([500] * 3 + [400] * 3 + [300] * 3, 224),
        (list(range(50, 150)), 60),
        ([2, 3, 4], 8),
        ([], 224),
    ],
)
def test_the_size_suits_most_images(sides: list[int], expected: int) -> None:
    assert working_side(sorted(sides)) == expected


def test_the_first_files_size_is_not_everyones() -> None:
    pets("train", "test", count=20)
    picture("pets/train/cat/0.png", 0, (500, 500))
    data = load()
    assert data.input_shape == (3, 10, 10)
    assert "images of 10 x 10 pixels; shorter sides are 10 to 500 pixels, the median 10" in str(data)


def test_images_that_memory_cannot_hold_are_refused_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pets("train", "test")
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 10, "SC_PHYS_PAGES": 100}[name])
    with pytest.raises(
        DataError, match=r"^20 images of 10 x 10 pixels take 0 GB of memory, this machine has 0"
    ):
        load(storage="memory")


def break_files(*paths: str) -> None:
    for path in paths:
        Path(path).write_bytes(b"no image")


def test_broken_files_of_all_parts_are_listed_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    pets("train", "test")
    names = ["pets/test/dog/0.png", "pets/test/dog/1.png"] + [f"pets/train/cat/{i}.png" for i in range(4)]
    break_files(*names)
    with pytest.raises(DataError) as caught:
        load()
    listed = ", ".join(rf"{re.escape(name)} \([^()]+\)" for name in names[:4])
    assert re.fullmatch(
        rf"6 files cannot be read as images: {listed} and 2 more \(all are listed above\); remove "
        r"them, or set data\.skip_broken = true",
        str(caught.value),
    )
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines] == [f"unreadable: {name}" for name in names]


def test_a_class_of_which_no_image_can_be_read_is_refused_though_broken_files_are_skipped() -> None:
    pets("train", "test")
    break_files(*(str(path) for path in Path("pets/train/dog").iterdir()))
    with pytest.raises(
        DataError,
        match=r"^pets: no image of the class 'dog' in train can be read: repair them, or remove ",
    ):
        load(skip_broken=True)


def test_images_outside_the_folders_of_classes_are_counted() -> None:
    pets("train", "test")
    for number in range(3):
        picture(f"pets/train/{number}.png")
    assert "left out: 3 images in pets/train itself, outside the folders of classes" in str(load())


def test_a_broken_file_of_any_name_is_named_in_one_line() -> None:
    pets("train", "test")
    Path(os.fsdecode(b"pets/train/cat/\xff\n.jpg")).write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"^'pets/train/cat/\\udcff\\n\.jpg' cannot be read as an image \([^/]+\); "
    ):
        load()


def test_broken_files_are_left_out_where_that_is_set_and_reported() -> None:
    pets("train", "test")
    break_files("pets/train/cat/0.png", "pets/test/dog/1.png")
    Path("pets/train/cat/gone.png").symlink_to("nowhere.png")
    Path("pets/train/cat/loop.png").symlink_to("loop.png")
    data = load(skip_broken=True)
    assert [len(part) for part in (data.train, data.val, data.test)] == [7, 2, 9]
    assert "test/dog/1.png" not in data.test.names
    assert data.test.labels.tolist() == [0] * 5 + [1] * 4
    assert "skipped 4 unreadable: pets/test/dog/1.png (" in str(data)
    break_files(*(f"pets/test/{label}/{i}.png" for label in ("cat", "dog") for i in range(5)))
    with pytest.raises(DataError, match="pets: no image in test can be read"):
        load(skip_broken=True)


@pytest.mark.parametrize("skip", [False, True])
def test_special_files_among_images_are_refused_and_not_opened(skip: bool) -> None:
    pets("train", "test")
    odd = Path("pets/train/cat/odd.jpg")
    os.mkfifo(odd)
    with pytest.raises(DataError, match=r"^pets/train/cat/odd\.jpg is a FIFO, not an image file: remove it$"):
        load(skip_broken=skip)
    odd.unlink()
    odd.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"odd\.jpg is a device, not an image file: remove it$"):
        load(skip_broken=skip)
    odd.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(odd))
        with pytest.raises(DataError, match=r"odd\.jpg is a socket, not an image file: remove it$"):
            load(skip_broken=skip)


def test_a_folder_that_links_back_to_itself_is_refused_and_one_that_does_not_is_followed() -> None:
    pets("train", "test")
    Path("more").mkdir()
    picture("more/9.png")
    Path("pets/train/cat/more").symlink_to(Path("more").resolve())
    assert len(load().train) + len(load().val) == 11
    Path("more/back").symlink_to(Path("pets/train/cat").resolve())
    with pytest.raises(DataError, match=r"/back is a link to a folder that contains it: remove the link$"):
        load()


def test_what_file_managers_and_notebooks_leave_is_no_class_and_no_image() -> None:
    pets("train", "test")
    before = load()
    for path in ("Thumbs.db", ".DS_Store", "cat/Thumbs.db", "dog/.DS_Store", "dog/._0.png"):
        Path("pets/train", path).write_bytes(b"x")
    picture("pets/train/.ipynb_checkpoints/0.png")
    picture("pets/train/cat/.ipynb_checkpoints/0.png")
    picture("pets/train/__MACOSX/0.png")
    after = load()
    assert after.classes == ("cat", "dog")
    assert after.train.names == before.train.names
    assert str(after) == str(before)


def test_files_that_are_no_images_are_counted() -> None:
    pets("train", "test")
    for name in ("a.heic", "b.HEIC", "c.txt"):
        Path("pets/test/cat", name).write_bytes(b"x")
    assert str(load()).endswith("other files: 2 .heic, 1 .txt")


def test_counts_and_conversions_are_reported_in_one_line() -> None:
    pets("train", "test")
    Image.new("I;16", (10, 10)).save("pets/train/cat/0.png")
    Image.new("RGBA", (10, 10)).save("pets/train/cat/1.png")
    assert str(load()) == (
        "8 training, 2 validation, 10 test images; 2 classes; images of 10 x 10 pixels; "
        "converted: 1 16-bit grey, 1 transparent (on white)"
    )
    assert torch.equal(load(skip_broken=True).train.images, load().train.images)
