"""Short trainings of single subnets, in their smallest form."""

import json
from pathlib import Path

import numpy as np
import pytest

from bcnet.space.width_space import Widths
from tests.bench import small_networks
from tests.bench.small_networks import run_benchmark

CONFIG = small_networks.CONFIG.replace("[train]", '[train]\nmethod = "unilateral"\nepochs = 1')


def corrected(monkeypatch: pytest.MonkeyPatch, count: int = 6) -> None:
    given = ["--truth", "truth.json", "--others", "others.json", "--count", str(count)]
    run_benchmark(monkeypatch, "short_trainings.py", *given)


def test_subnets_are_trained_shortly_and_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bcnet.bench.channel_bench_macro.RESAMPLES", 20)
    rng = np.random.default_rng(0)
    keys = [str(Widths(own)) for own in rng.integers(1, 5, (12, 7))]
    Path("bcnet.toml").write_text(CONFIG, encoding="utf-8")
    truth = {"scratch": {key: [own / 20, 1.0] for own, key in enumerate(keys)}}
    others = {"supernets": {"first": {key: [own / 30, 2 - own / 20, 0.5] for own, key in enumerate(keys)}}}
    for name, record in (("truth", truth), ("others", others)):
        Path(f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    corrected(monkeypatch)
    shown = json.loads(capsys.readouterr().out)
    found = json.loads(Path("short_trainings.json").read_text(encoding="utf-8"))
    assert found["figures"] == shown
    assert [own["supernets"] for own in shown["together"]] == [2]
    assert shown["together"][0]["passes"] == 48
    assert list(found["known"]) == keys
    # The narrowest and widest choices, each network followed by its complement.
    some = [[int(width) for width in key.split("-")] for key in found["short"]]
    assert len(some) == 6
    assert {width for own in some for width in own} == {1, 4}
    assert [[5 - width for width in own] for own in some[::2]] == some[1::2]
    first, *_ = found["short"]
    before = found["short"].pop(first)
    Path("short_trainings.json").write_text(json.dumps(found), encoding="utf-8")
    corrected(monkeypatch)
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if " of 6, " in line] == [
        f"1 of 6, {first}: {before[0]:.3f}"
    ]
    assert json.loads(printed.out) == shown  # the same weights, images and steps
    with pytest.raises(SystemExit, match="is of other settings"):
        corrected(monkeypatch, count=8)
