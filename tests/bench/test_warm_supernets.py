"""Supernets that start from a trained network, in their smallest form."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.bench.small_networks import CONFIG, run_benchmark


def ranked(monkeypatch: pytest.MonkeyPatch, rate: float = 1e-9) -> None:
    given = ["--truth", "truth.json", "--ways", "0+1", "2+1", "--rate", str(rate), "--seeds", "1"]
    run_benchmark(monkeypatch, "warm_supernets.py", *given)


def test_supernets_start_from_the_trained_network_and_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bcnet.bench.channel_bench_macro.RESAMPLES", 20)
    keys = ["-".join(map(str, own)) for own in np.random.default_rng(0).integers(1, 5, (12, 7))]
    Path("bcnet.toml").write_text(CONFIG, encoding="utf-8")
    truth = {"scratch": {key: [own / 20, 1.0] for own, key in enumerate(keys)}}
    Path("truth.json").write_text(json.dumps(truth), encoding="utf-8")
    ranked(monkeypatch)
    shown = json.loads(capsys.readouterr().out)
    found = json.loads(Path("warm_supernets.json").read_text(encoding="utf-8"))
    assert found["figures"] == shown
    assert list(found["supernets"]["2+1"]["0"]["scores"]) == keys
    assert shown["0+1"]["plain loss"]["gain"] == 0
    # The same widths are drawn in both; the whole network is the most expensive one.
    assert 0 < shown["0+1"]["cost"] < 1
    assert shown["2+1"]["cost"] == pytest.approx(2 + shown["0+1"]["cost"], abs=0.02)
    # At a rate of nearly zero, the supernet's weights stay those of the trained network.
    start = load_file("starts/2-0.safetensors")
    cold, warm = (load_file(f"runs/{name}/train/supernet.safetensors") for name in ("0-1-0", "2-1-0"))
    weights = [name for name, own in start.items() if own.ndim > 1]
    assert weights
    assert all(np.allclose(warm[name], start[name], atol=1e-5) for name in weights)
    assert not any(np.allclose(cold[name], start[name], atol=1e-5) for name in weights)
    before = found["supernets"]["2+1"].pop("0")
    Path("warm_supernets.json").write_text(json.dumps(found), encoding="utf-8")
    ranked(monkeypatch)
    printed = capsys.readouterr()
    assert "whole network" not in printed.err  # it is not trained again
    assert json.loads(printed.out) == shown
    again = json.loads(Path("warm_supernets.json").read_text(encoding="utf-8"))["supernets"]["2+1"]["0"]
    assert again["scores"] == before["scores"]
    with pytest.raises(SystemExit, match="is of other settings"):
        ranked(monkeypatch, rate=0.5)


@pytest.mark.parametrize("way", ["24", "0+0", "0+24:l1", "-1+2", "8+x"])
def test_a_way_that_cannot_be_is_refused(
    way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_benchmark(monkeypatch, "warm_supernets.py", "--truth", "truth.json", f"--ways={way}")
    assert f"'{way}' is not as 8+16" in capsys.readouterr().err
