"""Exported files describe their preprocessing: with the ONNX file alone, a program gets the same accuracy."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import CONFIG, PROFILE, measure_briefly
from PIL import Image
from safetensors import safe_open

from bcnet.cli import main
from bcnet.config import ModelConfig
from bcnet.models import build_model

EXPORT = Path("runs/default/export")
SETTINGS = CONFIG.replace(
    "[data]\nimage_size = 16\ntrain_limit = 120\ntest_limit = 60\n",
    'model.weights = "own.pt"\n'
    '[data]\nname = "imagefolder:photos"\nmean = [0.4, 0.5, 0.6]\nstd = [0.2, 0.3, 0.25]\nimage_size = 24\n',
).replace("[slice]\nepochs = 1", "[slice]\nepochs = 4")
# Which widths are found does not matter here.
SETTINGS = SETTINGS.replace("[search]\n", '[search]\nmethod = "uniform"\ntrials = 0\n')


def photographs() -> None:
    """Noisy images of three classes and many sizes; some rotated by EXIF, 16-bit grey or transparent."""
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 12), ("test", 30)):
        for label, name in enumerate(("disc", "left", "top")):
            folder = Path("photos", part, name)
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(26, 70, 2)
                y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
                shape = (y**2 + x**2 < 0.4, x < 0, y < 0)[label]
                noise = random.normal(110, 45, (height, width, 3))
                image = Image.fromarray((noise + 50 * shape[..., None]).clip(0, 255).astype(np.uint8))
                exif = Image.Exif()
                if number % 5 == 1:
                    image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6
                if number % 7 == 2:
                    grey = np.asarray(image.convert("L")).astype(np.uint16) * 256
                    Image.fromarray(grey).save(folder / f"{number}.png")
                elif number % 7 == 3:
                    image.putalpha(int(random.integers(100, 255)))
                    image.save(folder / f"{number}.png")
                else:
                    image.save(folder / f"{number}.jpg", quality=90, exif=exif)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A working folder in which `bcnet export` succeeded, and what `train` printed."""
    folder = tmp_path_factory.mktemp("delivered")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        measure_briefly(patch)
        photographs()
        Path("hw_profiles").mkdir()
        Path("hw_profiles/cpu.toml").write_text(PROFILE, encoding="utf-8")
        Path("bcnet.toml").write_text(SETTINGS, encoding="utf-8")
        state = build_model(ModelConfig(), 3, 3).state_dict()
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, "own.pt")
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            assert main(["train"]) == 0
        for stage in ("build-lut", "search", "slice", "export"):
            assert main([stage]) == 0
    return folder, err.getvalue()


@pytest.fixture
def folder(delivered: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(delivered[0])
    return delivered[0]


def contract() -> dict[str, object]:
    session = onnxruntime.InferenceSession(EXPORT / "model.onnx", providers=["CPUExecutionProvider"])
    return json.loads(session.get_modelmeta().custom_metadata_map["bcnet.preprocessing"])  # type: ignore[no-any-return]


def test_a_program_without_bcnet_gets_the_promised_accuracy_from_the_files_themselves(folder: Path) -> None:
    tested = json.loads((EXPORT / "test_files.json").read_text())
    assert tested["folder"] == "photos"
    files = [str(Path("photos", name)) for name in tested["test"]]
    assert len(files) == 90
    script = EXPORT / "predict.py"
    assert "bcnet." not in script.read_text().replace('"bcnet.preprocessing"', "")
    command = [sys.executable, "-I", str(script), *files]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    answers = dict(line.split("\t") for line in out.splitlines())
    right = sum(answers[file] == Path(file).parent.name for file in files)
    verified = json.loads((EXPORT / "verify.json").read_text())
    assert right / len(files) == pytest.approx(verified["accuracy"], abs=1e-9)
    assert 0.4 < verified["accuracy"] < 1  # harder than chance, not so easy that every rule is right
    assert len(set(answers.values())) > 1


@pytest.mark.usefixtures("folder")
def test_the_program_refuses_what_is_no_image_in_one_line_and_classifies_the_others(tmp_path: Path) -> None:
    def predict(*arguments: str, script: Path = EXPORT / "predict.py") -> tuple[int, list[str], list[str]]:
        command = [sys.executable, "-I", str(script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()

    good = "photos/test/left/0.jpg"
    (tmp_path / "cut.jpg").write_bytes(Path(good).read_bytes()[:500])
    code, out, err = predict("nowhere.jpg", good, str(tmp_path / "cut.jpg"))
    assert code == 1
    assert [line.split("\t")[0] for line in out] == [good]
    assert len(err) == 2
    assert err[0].startswith("predict.py: nowhere.jpg cannot be read as an image ([Errno 2] No such file")
    assert err[1].startswith(f"predict.py: {tmp_path / 'cut.jpg'} cannot be read as an image (")
    assert predict() == (2, [], ["usage: python predict.py IMAGE ..."])
    assert predict("--help") == (0, ["usage: python predict.py IMAGE ..."], [])
    alone = Path(shutil.copy(EXPORT / "predict.py", tmp_path))
    code, out, err = predict(good, script=alone)
    assert (code, out, len(err)) == (1, [], 1)
    assert "model.onnx is not a model that bcnet exported for a folder of images" in err[0]


def test_the_contract_is_the_same_in_every_file(folder: Path) -> None:
    found = contract()
    assert found == {
        "format": 1,
        "inputs": [{"name": "input", "shape": [1, 3, 24, 24], "dtype": "float32"}],
        "outputs": ["output"],
        "classes": ["disc", "left", "top"],
        "layout": "NCHW",
        "colour": "RGB",
        "pixel_range": [0, 255],
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
        "formula": "(pixel - 255 * mean) / (255 * std)",
        "decode": {"orientation": "EXIF", "grey_16_bit": "value / 257", "transparency": "on white"},
        "resize": {"shorter_side": 24, "filter": "bilinear, antialiased", "crop": "centre"},
    }
    any_batch = {**found, "inputs": [{"name": "input", "shape": ["batch", 3, 24, 24], "dtype": "float32"}]}
    with safe_open("runs/default/slice/model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["bcnet.preprocessing"]) == any_batch
    extra = {"bcnet.preprocessing": ""}
    torch.export.load("runs/default/slice/model.pt2", extra_files=extra)
    assert json.loads(extra["bcnet.preprocessing"]) == any_batch


def test_train_reports_images_weights_and_the_given_networks_accuracy(delivered: tuple[Path, str]) -> None:
    lines = delivered[1].splitlines()
    assert "weights: 56 tensors from own.pt, entry 'state_dict'" in lines
    (data,) = (line for line in lines if line.startswith("data: "))
    assert data.startswith("data: 120 training, 36 validation, 90 test images; 3 classes; images of 24 x 24")
    assert "candidates are scored on val/" in data
    assert "42 turned by EXIF" in data
    (given,) = (line for line in lines if line.startswith("the network as it was given"))
    assert given.endswith("% on 90 test images")


def test_the_files_of_the_validation_part_are_listed(folder: Path) -> None:
    tested = json.loads((EXPORT / "test_files.json").read_text())
    assert len(tested["validation"]) == 36
    assert all(name.startswith("val/") and Path("photos", name).is_file() for name in tested["validation"])
