"""Commands that measure the device read no images."""

from pathlib import Path

import pytest
from conftest import PROFILE
from PIL import Image

from bcnet.cli import main

CONFIG = """
[data]
name = "imagefolder:pets"
image_size = 16
val_images = 4
[space]
bins = 2
min_width = 0.5
"""
PEAKS = """
[roofline]
fp32_tflops = 0.05
bandwidth_gb_s = 10.0
launch_us = 3.0
source = "assumed"
"""


def test_tables_are_estimated_and_checked_without_opening_an_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            Path("pets", part, label).mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (16, 16), (number, 0, 0)).save(f"pets/{part}/{label}/{number}.png")
    Path("bcnet.toml").write_text(CONFIG, encoding="utf-8")
    Path("hw_profiles").mkdir()
    Path("hw_profiles/cpu.toml").write_text(f"{PROFILE}{PEAKS}", encoding="utf-8")
    opened: list[str] = []
    monkeypatch.setattr(Image, "open", lambda path: opened.append(str(path)))
    assert main(["build-lut", "--estimate"]) == 0
    assert "images" not in capfd.readouterr().err
    assert main(["check-lut"]) == 1
    assert "estimate" in capfd.readouterr().err  # it has opened the data, and refuses the table
    assert opened == []
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    Path("pets/train/cat/0.png").write_bytes(b"no image")
    assert main(["train"]) == 1  # this is where images are read
    assert "pets/train/cat/0.png cannot be read as an image" in capfd.readouterr().err
