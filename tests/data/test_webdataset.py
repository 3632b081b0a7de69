"""WebDataset shards, which the tests write: parts, classes, the index, remote shards, refusals."""

import io
import os
import re
import shutil
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.data.pixels import ImagesOnDisk
from bcnet.data.sources import webdataset_shards
from bcnet.data.splits import Split
from bcnet.errors import DataError

pytest.importorskip("webdataset")
pytestmark = pytest.mark.usefixtures("folder")


def encoded(number: int, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((10, 14, 3), number, dtype=np.uint8)).save(content, kind)
    return content.getvalue()


def shard(path: str, numbers: range, mode: str = "w", **others: bytes) -> None:
    """Samples whose value is their number, of the classes 0 and 7 alternately; `others` are more members."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for number in numbers:
            members = {"png": encoded(number), "cls": str(7 * (number % 2)).encode(), **others}
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"images/{number:04d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def pets() -> None:
    shard("pets/train-0.tar", range(5))
    shard("pets/train-1.tar", range(5, 8))
    shard("pets/val-0.tar", range(40, 44))


def load(pattern: str = "pets/*.tar", **settings: Any) -> ImageData:
    return load_data(DataConfig(name=f"wds:{pattern}", **settings), 0)


def numbers(split: object) -> list[int]:
    assert isinstance(split, Split)
    return split.pixels[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("storage", ["memory", "disk", "stream"])
def test_samples_of_all_shards_are_read_with_their_classes(storage: str) -> None:
    pets()
    data = load(storage=storage)
    assert isinstance(data.train, Split)
    assert isinstance(data.train.images, ImagesOnDisk) == (storage != "memory")
    assert (data.classes, data.colour, data.input_shape) == (("0", "7"), "RGB", (3, 10, 10))
    assert sorted(numbers(data.train) + numbers(data.val)) == [*range(8)]
    assert numbers(data.test) == [40, 41, 42, 43]
    for part in (data.train, data.val, data.test):
        assert isinstance(part, Split)
        assert part.labels.tolist() == [number % 2 for number in numbers(part)]
    assert data.test.names[0] == "val-0.tar/images/0040"
    assert "val is the test set" in str(data)
    assert load(storage=storage).digest() == data.digest()


def test_parts_are_found_in_braces_and_folders_and_without_them_a_fifth_is_the_test_set() -> None:
    pets()
    shard("pets/test/0.tar", range(60, 64))
    data = load("pets/{train-{0..1},val-0,test/0}.tar")
    assert [numbers(part) for part in (data.train, data.val, data.test)] == [
        [*range(8)],
        [40, 41, 42, 43],
        [60, 61, 62, 63],
    ]
    shard("plain/0.tar", range(10))
    assert [len(part) for part in (lambda d: (d.train, d.val, d.test))(load("plain/0.tar"))] == [6, 2, 2]


def test_a_shard_is_listed_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    pets()
    before = load(storage="stream")
    with monkeypatch.context() as patched:
        patched.setattr(webdataset_shards, "_samples", lambda *_: pytest.fail("a shard is listed again"))
        assert load(storage="stream").digest() == before.digest()
    shard("pets/train-1.tar", range(15, 18))
    os.utime("pets/train-1.tar", (1, 1))
    changed = load(storage="stream")
    assert changed.digest() != before.digest()
    assert sorted(numbers(changed.train) + numbers(changed.val)) == [*range(5), 15, 16, 17]


def test_members_of_other_suffixes_are_chosen_by_settings() -> None:
    shard("pets/0.tar", range(10), jpg=encoded(99, "JPEG"), **{"name.txt": b"pet"})
    with pytest.raises(
        DataError,
        match=r"^'wds:pets/0\.tar': pets/0\.tar/images/0000 has the members png, cls, jpg, name\.txt: an ",
    ):
        load("pets/0.tar")
    data = load("pets/0.tar", image_column="jpg", label_column="name.txt")
    assert data.classes == ("pet",)
    assert {*numbers(data.train)} == {99}


def test_remote_shards_are_fetched_once(capfd: pytest.CaptureFixture[str]) -> None:
    if not shutil.which("curl"):
        pytest.skip("webdataset fetches with curl")
    shard("served/x/train-0.tar", range(10))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory="served"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/x"
    try:
        data = load(f"{url}/train-{{0..0}}.tar")
    finally:
        server.shutdown()
        server.server_close()
    assert f"fetching {url}/train-0.tar into .cache/webdataset/" in capfd.readouterr().err
    assert load(f"{url}/train-0.tar").digest() == data.digest()  # the server is gone
    with pytest.raises(DataError, match=rf"^{url}/train-1\.tar cannot be fetched \(.*\): fetch it by hand$"):
        load(f"{url}/train-1.tar")


def test_what_are_no_shards_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pets()
    shard("pets/more-0.tar", range(3))
    with pytest.raises(
        DataError, match=r": pets/more-0\.tar is neither of train, validation nor test by its n"
    ):
        load()
    with pytest.raises(DataError, match=r"^'wds:pets/val-0\.tar' has shards of val, but none of train$"):
        load("pets/val-0.tar")
    with pytest.raises(
        DataError, match=r"^'wds:none/\*\.tar': no file matches; give tar archives, as in wds:"
    ):
        load("none/*.tar")
    with pytest.raises(
        DataError, match=r"^'wds:pets/train-\{0\.\.2\}\.tar': there is no file pets/train-2\.tar;"
    ):
        load("pets/train-{0..2}.tar")
    shard("packed/0.tar", range(3), "w:gz")
    with pytest.raises(DataError, match=r"^packed/0\.tar cannot be read \(.*whole and not compressed$"):
        load("packed/0.tar")
    shard("cut/0.tar", range(9))
    os.truncate("cut/0.tar", 5000)
    with pytest.raises(DataError, match=r"^cut/0\.tar cannot be read \(.*whole and not compressed$"):
        load("cut/0.tar")
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(DataError, match=re.escape("pip install 'bcnet[wds]'")):
        load()
