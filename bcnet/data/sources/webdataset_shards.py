"""WebDataset shards: tar archives in which files of one name and several suffixes are a sample.

In: a pattern with {0..9} or *; the package `webdataset`, an extra, expands it and fetches remote shards. Out:
where each image is in them, with its class, by default from files `.cls`. Shards are of training, validation
or test by a word in their name, or in that of their folder.
"""

import glob
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from bcnet.config import DataConfig
from bcnet.data.stored import PARTS, Found, Listed, Part, file_list_digest, indexed, part_of, with_test_set
from bcnet.errors import FOREIGN, DataError, one_line
from bcnet.progress import progress_bar, say
from bcnet.runs import write_file

SUFFIXES = ("jpg", "jpeg", "png", "ppm", "pgm", "bmp", "tif", "tiff", "webp")
LABEL = "cls"
FETCHED = Path(".cache/webdataset")
INDEX = 1  # raised when the same shards give another index than before


@dataclass(frozen=True)
class _Samples:
    """The images of a part: (shard, offset, bytes, key) of each."""

    shards: tuple[Path, ...]
    entries: Sequence[tuple[int, int, int, str]]

    def image(self, number: int) -> BytesIO:
        """The content of the member."""
        shard, offset, size, _ = self.entries[number]
        with open(self.shards[shard], "rb", buffering=0) as file:
            return BytesIO(os.pread(file.fileno(), size, offset))

    def name(self, number: int) -> str:
        """The name of the shard, and the key of the sample."""
        shard, _, _, key = self.entries[number]
        return f"{self.shards[shard].name}/{key}"

    def place(self, number: int) -> str:
        """The same with the path of the shard."""
        shard, _, _, key = self.entries[number]
        return f"{self.shards[shard]}/{key}"

    def digest(self, numbers: Sequence[int]) -> str:
        """A hash of the shards' names, sizes and times, with the samples."""
        return sha256(repr((_digest(self.shards), numbers)).encode()).hexdigest()[:16]


def webdataset_shards(argument: str, config: DataConfig) -> Listed:
    """The samples of shards. Raises DataError: not installed, no shards, damaged ones, no classes."""
    source = f"wds:{argument}"
    found = Found(source)
    shards: dict[str, list[Path]] = {}
    for shard in _shards(argument, source):
        shards.setdefault(_part(shard), []).append(shard)
    if "" in shards and len(shards) > 1:
        raise DataError(f"'{source}': {shards[''][0]} is neither of train, validation nor test by its name")
    parts = {name or "train": tuple(own) for name, own in shards.items()}
    if "train" not in parts:
        raise DataError(f"'{source}' has shards of {' and '.join(parts)}, but none of train")
    indexes = {part: _index(parts[part], config, source) for part in PARTS if part in parts}
    labels = {part: [_value(label) for *_, label in own] for part, own in indexes.items()}
    indices, classes = indexed(labels, None, source)
    listed = {
        part: Part.all(_Samples(parts[part], [entry[:4] for entry in own]), indices[part])
        for part, own in indexes.items()
    }
    return Listed(with_test_set(listed, {part: part for part in listed}, found), classes, found)


def _shards(pattern: str, source: str) -> list[Path]:
    """The files that a pattern names, remote ones fetched."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as cause:
        raise DataError(f"'{source}' needs webdataset ({cause}): pip install 'bcnet[wds]'") from None
    shards: list[Path] = []
    for one in expand_urls(pattern):
        if urlparse(one).scheme:
            shards.append(_fetched(one))
        elif glob.has_magic(one) and not Path(one).exists():
            shards += map(Path, sorted(glob.glob(one)))
        else:
            shards.append(Path(one))
    missing = [shard for shard in shards if not shard.is_file()]
    if missing or not shards:
        what = f"there is no file {missing[0]}" if missing else "no file matches"
        raise DataError(f"'{source}': {what}; give tar archives, as in wds:shards/train-{{000..127}}.tar")
    return shards


def _fetched(url: str) -> Path:
    """The copy of a remote shard in the working folder, fetched now if it is not there."""
    from webdataset.cache import download

    above, _, name = urlparse(url).path.rpartition("/")
    path = FETCHED / sha256(above.encode()).hexdigest()[:8] / name
    if not path.exists():
        say(f"fetching {url} into {path.parent}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download(url, str(path))
        except FOREIGN as cause:
            raise DataError(f"{url} cannot be fetched ({one_line(cause)}): fetch it by hand") from None
    return path


def _part(shard: Path) -> str:
    """The part that a shard belongs to, by a word of its name or else of its folder's; "" if none."""
    for name in (shard.stem, shard.parent.name):
        for word in re.split(r"[^A-Za-z]+", name):
            if part := part_of(word):
                return part
    return ""


def _index(shards: tuple[Path, ...], config: DataConfig, source: str) -> list[tuple[int, int, int, str, str]]:
    """(shard, offset, bytes, key, label) of each sample; kept beside decoded images, since it takes long."""
    asked = json.dumps([INDEX, _digest(shards), config.image_column, config.label_column])
    path = Path(config.cache) / f"shards-{sha256(asked.encode()).hexdigest()[:16]}.json"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = []
        with progress_bar("listing shards", len(shards)) as advance:
            for number, shard in enumerate(shards):
                found += [(number, *sample) for sample in _samples(shard, config, source)]
                advance("")
        write_file(path, json.dumps(found).encode())
    return [tuple(entry) for entry in found]


def _samples(shard: Path, config: DataConfig, source: str) -> list[tuple[int, int, str, str]]:
    """(offset, bytes, key, label) of each sample of a shard."""
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    found = []
    try:
        with tarfile.open(shard, "r:") as archive:  # not a compressed one
            for member in archive:
                key, suffix = base_plus_ext(member.name)
                if member.isfile() and key is not None:
                    samples.setdefault(key, {})[suffix.lower()] = member
            for key, members in samples.items():
                image, label = _members(members, config, f"'{source}': {shard}/{key}")
                content = archive.extractfile(label)
                text = content.read().decode().strip() if content else ""
                found.append((image.offset_data, image.size, key, text))
    except (tarfile.TarError, OSError, UnicodeDecodeError) as cause:
        raise DataError(
            f"{shard} cannot be read ({one_line(cause)}): give tar archives that are whole and not compressed"
        ) from None
    return found


def _members(
    members: dict[str, tarfile.TarInfo], config: DataConfig, where: str
) -> tuple[tarfile.TarInfo, tarfile.TarInfo]:
    """The image and the label of a sample."""
    images = [config.image_column] if config.image_column else [name for name in SUFFIXES if name in members]
    label = config.label_column or LABEL
    if len(images) != 1 or not {*images, label} <= {*members}:
        raise DataError(
            f"{where} has the members {', '.join(members)}: an image and a class (.{LABEL}) are needed; set "
            "data.image_column and data.label_column to their suffixes"
        )
    return members[images[0]], members[label]


def _value(label: str) -> Any:
    """A class as a number, or as a name."""
    return int(label) if label.isdecimal() else label


def _digest(shards: tuple[Path, ...]) -> str:
    return file_list_digest(shards, Path(os.path.commonpath([shard.parent for shard in shards])))
