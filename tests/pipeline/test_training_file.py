"""A supernet's files: killed between any two writes, edited, or of an earlier version."""

import base64
import gc
import json
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bcnet.errors import ArtifactError
from bcnet.pipeline import training_file
from bcnet.pipeline.training_file import (
    Checkpoint,
    CheckpointFiles,
    Finished,
    finished_files,
    lines_beside,
    load_finished,
)
from bcnet.runs import write_files
from bcnet.sealed import SealedLines, seal_tensors
from bcnet.space.width_space import Widths
from bcnet.training.checkpoints import Snapshot

INPUTS = {"model": "a", "seed": "0"}


def record(step: int) -> tuple[Widths, float]:
    return Widths((step + 1, 8)), round(2.0 / (step + 1), 5)


STEPS = 3  # an epoch


def after(epoch: int) -> Checkpoint:
    """Where a training stands after an epoch."""
    tensors = {"weight": torch.full((2, 2), float(epoch))}
    return Checkpoint(Snapshot(epoch, tensors), tuple(1.0 / (n + 1) for n in range(epoch)))


def records(*epochs: int) -> list[tuple[Widths, float]]:
    """Those of the steps of these epochs, from 1."""
    return [record(STEPS * (epoch - 1) + step) for epoch in epochs for step in range(STEPS)]


def save(files: CheckpointFiles, *epochs: int) -> CheckpointFiles:
    for epoch in epochs:
        files.save(after(epoch), records(epoch))
    return files


def is_after(files: CheckpointFiles, epoch: int) -> bool:
    """Whether what is loaded is all that was saved after an epoch."""
    found, wanted = files.load(), after(epoch)
    return found is not None and (
        (found.curve, found.snapshot.epoch, files.steps().count) == (wanted.curve, epoch, STEPS * epoch)
        and torch.equal(found.snapshot.tensors["weight"], wanted.snapshot.tensors["weight"])
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A training's tensors after two epochs, its lines beside them."""
    return save(CheckpointFiles(tmp_path / "checkpoint.safetensors", INPUTS), 1, 2).path


def test_steps_are_lines_beside_the_tensors_and_not_in_their_header(path: Path) -> None:
    lines = lines_beside(path).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line[17:]) for line in lines[1:]] == [[list(w), loss] for w, loss in records(1, 2)]
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["bcnet"])["about"]
    assert (about["records"], about["seal"]) == (6, lines[-1][:16])
    assert is_after(CheckpointFiles(path, INPUTS), 2)


def test_a_training_killed_between_its_two_files_goes_on_from_the_epoch_before(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = CheckpointFiles(path, INPUTS)
    assert is_after(files, 2)
    with monkeypatch.context() as patched:
        patched.setattr(training_file, "write_file", lambda *_: interrupted())
        with pytest.raises(KeyboardInterrupt):
            save(files, 3)
    assert len(SealedLines(lines_beside(path), INPUTS).values) == 9
    again = CheckpointFiles(path, INPUTS)
    assert is_after(again, 2)
    save(again, 3)
    whole = save(CheckpointFiles(path.with_name("whole.safetensors"), INPUTS), 1, 2, 3)
    assert path.read_bytes() == whole.path.read_bytes()
    assert lines_beside(path).read_bytes() == lines_beside(whole.path).read_bytes()


def test_lines_cut_anywhere_after_those_of_the_tensors_change_nothing(path: Path) -> None:
    beside = lines_beside(path)
    size = beside.stat().st_size
    files = CheckpointFiles(path, INPUTS)
    files.load()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training_file, "write_file", lambda *_: None)
        save(files, 3)
    content = beside.read_bytes()
    for end in range(size, len(content) + 1):
        beside.write_bytes(content[:end])
        assert is_after(CheckpointFiles(path, INPUTS), 2)


@pytest.mark.parametrize("place", [0, 20, 60, -30, -2])
def test_a_changed_line_is_refused(path: Path, place: int) -> None:
    beside = lines_beside(path)
    content = bytearray(beside.read_bytes())
    content[place] ^= 1
    beside.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"checkpoint\.jsonl is not what was written: .*to train from"):
        CheckpointFiles(path, INPUTS).load()


def test_missing_lines_are_refused(path: Path) -> None:
    lines_beside(path).unlink()
    with pytest.raises(ArtifactError, match=r"checkpoint\.jsonl is not what was written: cut short or"):
        CheckpointFiles(path, INPUTS).load()


def test_another_training_replaces_both_files_at_once_or_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**INPUTS, "seed": "1"}
    files = CheckpointFiles(path, other)
    assert files.load() is None
    with monkeypatch.context() as patched:
        patched.setattr(training_file, "write_files", lambda *_: interrupted())
        with pytest.raises(KeyboardInterrupt):
            save(files, 1)
    assert is_after(CheckpointFiles(path, INPUTS), 2)
    before = path.read_bytes()
    save(files, 1)
    assert is_after(CheckpointFiles(path, other), 1)
    path.write_bytes(before)  # as if killed when one was in its place
    assert CheckpointFiles(path, INPUTS).load() is None
    assert CheckpointFiles(path, other).load() is None


def inside(checkpoint: Checkpoint, epoch: int | None) -> bytes:
    """A file as earlier versions wrote it: the records compressed, among the tensors' metadata."""
    own = records(*range(1, checkpoint.snapshot.epoch + 1))
    steps = base64.b85encode(zlib.compress(json.dumps(own).encode())).decode()
    about = {"inputs": INPUTS, "epoch": epoch, "records": steps, "curve": list(checkpoint.curve)}
    return seal_tensors(checkpoint.snapshot.tensors, about)


def test_a_checkpoint_of_an_earlier_version_goes_on(path: Path) -> None:
    lines_beside(path).unlink()
    path.write_bytes(inside(after(2), 2))
    files = CheckpointFiles(path, INPUTS)
    assert is_after(files, 2)
    save(files, 3)
    assert is_after(CheckpointFiles(path, INPUTS), 3)
    assert SealedLines(lines_beside(path), INPUTS).values == [[list(w), loss] for w, loss in records(1, 2, 3)]


def test_a_finished_supernet_is_read_from_either_version(tmp_path: Path) -> None:
    path, end = tmp_path / "supernet.safetensors", after(3)
    files = save(CheckpointFiles(tmp_path / "checkpoint.safetensors", INPUTS), 1, 2, 3)
    finished = Finished(end.snapshot.tensors, end.curve, files.steps())
    path.write_bytes(inside(end, None))
    earlier = load_finished(path, INPUTS)
    for own in (earlier, finished):
        assert own is not None
        write_files({tmp_path / name: at for name, at in finished_files(path.name, own, INPUTS).items()})
        assert lines_beside(path).read_bytes() == lines_beside(files.path).read_bytes()
        found = load_finished(path, INPUTS)
        assert found is not None
        assert (found.curve, found.steps.count) == (end.curve, 3 * STEPS)
    assert load_finished(path, {**INPUTS, "seed": "1"}) is None
    lines_beside(path).write_bytes(lines_beside(path).read_bytes()[:-1])
    assert load_finished(path, INPUTS) is None


def interrupted() -> None:
    raise KeyboardInterrupt


def traced(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that are allocated after some work more than before, and meanwhile at the most."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        gc.collect()
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_the_memory_for_records_does_not_grow_with_their_number(tmp_path: Path) -> None:
    """While they are written, from the first to number 100,000, and when they are opened again."""
    files = CheckpointFiles(tmp_path / "supernet.safetensors", INPUTS)
    many = 2_000

    def write() -> None:
        files.save(after(0), [record(many + step) for step in range(many)])

    def open_again(most: int) -> None:
        assert SealedLines(lines_beside(files.path), INPUTS, most, last=0).count == most

    write()
    written = []
    for number in range(1, 50):
        if number in (5, 49):
            written.append(traced(write))
        else:
            write()
    assert files.steps().count == 100_000
    opened = [traced(lambda most=most: open_again(most))[1] for most in (many, 5 * many)]
    # A record takes more than 100 bytes: those of one call 200,000.
    assert max(kept for kept, _ in written) < 20_000
    assert written[1][1] < written[0][1] + 20_000
    assert opened[1] < opened[0] + 20_000
