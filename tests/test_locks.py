"""Lock files lie beside what they protect, so locks hold between processes that share only the folder."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bcnet.latency_tables.table import LatencyTable
from bcnet.locks import Locked, lock_file, locked

ADD_ROWS = """
import sys, time
from pathlib import Path
from bcnet.latency_tables.journal import alone
from bcnet.latency_tables.rows import LatencyStat, LayerSpec, Row, Session, Setting
from bcnet.latency_tables.table import LatencyTable

path, mine = Path(sys.argv[1]), int(sys.argv[2])
setting = Setting("onnxruntime", "fp32", 1, 1, "default")
for number in range(8):
    with alone(path):
        table = LatencyTable.load(path) if path.exists() else LatencyTable("cpu")
        if not table.sessions:
            table.sessions.append(Session("2026-01-01", {}, {}))
        time.sleep(0.01)
        layer = LayerSpec("conv", 8 * (number + 1), 8 * (mine + 1), (3, 3), (1, 1), (1, 1), (1, 1))
        table.rows[layer, setting] = Row(layer, setting, LatencyStat(1.0, 1.0, 0.0, 5), 0)
        table.save(path)
"""


def test_processes_with_other_temporary_folders_lose_no_row_of_one_table(tmp_path: Path) -> None:
    path = tmp_path / "latency_tables" / "cpu.json"
    processes = []
    for number in range(3):
        own = tmp_path / f"tmp{number}"
        own.mkdir()
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", ADD_ROWS, path, str(number)],
                env={**os.environ, "TMPDIR": str(own)},
                stderr=subprocess.PIPE,
            )
        )
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert len(LatencyTable.load(path).rows) == 24
    assert [entry.name for entry in path.parent.iterdir()] == ["cpu.json"]


def test_a_lock_keeps_others_out_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "night" / "train"
    with locked(path):
        assert lock_file(path) == tmp_path / "runs" / "night" / ".train.lock"
        assert lock_file(path).exists()
        with pytest.raises(Locked), locked(path):
            pass
        with locked(path.with_name("search")):
            pass
    assert list(tmp_path.iterdir()) == []
    with locked(path):
        path.mkdir()
    assert list(path.parent.iterdir()) == [path]


def test_shared_holders_keep_only_those_out_who_want_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "night"
    with locked(path, shared=True):
        with locked(path, shared=True):
            with pytest.raises(Locked), locked(path):
                pass
            assert lock_file(path).exists()
        with pytest.raises(Locked), locked(path):
            pass
    with locked(path), pytest.raises(Locked), locked(path, shared=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_a_killed_process_left_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    code = (
        "import os, sys; from pathlib import Path; from bcnet.locks import locked\n"
        "with locked(Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 9
    assert lock_file(path).exists()
    with locked(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_removed_and_made_again_never_let_two_in(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "a" / "cpu.json", [0], [0]

    def work() -> None:
        for _ in range(60):
            with locked(path, wait=True):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0002)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not lock_file(path).exists()


def test_a_folder_that_another_holder_removes_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, calls = os.mkdir, []

    def made_and_removed_by_another(path: Path, mode: int = 0o777) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", made_and_removed_by_another)
    with locked(tmp_path / "a" / "cpu.json"):
        assert (tmp_path / "a").is_dir()
    assert len(calls) == 2


def test_a_link_and_the_file_that_it_points_at_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "own").mkdir()
    real, link = tmp_path / "shared" / "cpu.json", tmp_path / "own" / "cpu.json"
    link.symlink_to(real)
    with locked(real), pytest.raises(Locked), locked(link):
        pass


def test_a_folder_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"a file")
    with pytest.raises(OSError, match=r"'.*/taken'"), locked(tmp_path / "taken" / "cpu.json"):
        pass
