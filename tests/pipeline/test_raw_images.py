"""Files that pre-process their images are verified on images as an application has them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from bcnet.cli import main
from bcnet.config import Config, DataConfig
from bcnet.data.dataset import load_data
from bcnet.data.image_data import ImageData
from bcnet.errors import DataError
from bcnet.hw_profiles import HwProfile
from bcnet.models.digits import digits
from bcnet.pipeline import search_ways
from bcnet.pipeline.deployment import KEY, beside_onnx, preprocessing
from bcnet.pipeline.export import export
from bcnet.pipeline.raw_images import RawImages, preprocessing_of
from bcnet.pipeline.verify import Artifact, Expected, verify
from bcnet.space.discover import discover_space
from bcnet.space.supernet import cut
from bcnet.training.task import Task
from tests.test_json_docs import NAMED, keys

QUICK = HwProfile(name="cpu", description="", runtime="onnxruntime", warmup_ms=1, seconds=0.02, iterations=6)
ON = ["--set", "export.preprocess=true"]


def photographs(size: Callable[[int], tuple[int, int]]) -> None:
    """Noise, brighter on one side, of three classes, in files of these sizes (height, width)."""
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 8)):
        for label, name in enumerate(("left", "right", "top")):
            folder = Path("photos", part, name)
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = size(number)
                pixels = random.integers(0, 150, (height, width, 3))
                where = (
                    (slice(None), slice(width // 2)),
                    (slice(None), slice(width // 2, None)),
                    (slice(height // 2),),
                )
                pixels[where[label]] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def folder_data(**data: object) -> tuple[Config, ImageData]:
    own = {"name": "imagefolder:photos", "image_size": 16, **data}
    config = Config.model_validate({"data": own, "export": {"preprocess": True}})
    return config, load_data(config.data, 0)


@pytest.mark.usefixtures("folder")
def test_accuracy_is_measured_on_files_of_their_own_size_and_compared_with_pillow() -> None:
    photographs(lambda number: (40, 56))
    config, data = folder_data()
    raw = preprocessing_of(config, data, QUICK)
    assert raw is not None
    assert (raw.size, raw.side, raw.how) == ((40, 56), 16, "Resize with antialias")
    torch.manual_seed(0)
    full = digits(3, 3).eval()
    space = discover_space(full, data.example(1), bins=2)
    small = cut(full, space, space.smallest()).eval()
    about = {KEY: preprocessing(small, data, 1, raw)}
    plain = export(small, data.example(1), about)
    proto, whole = raw.before(plain), raw.before(export(full, data.example(1), {})).SerializeToString()
    expected = Expected(small, space, space.smallest(), data, config.export, 1.0, raw=RawImages(data, raw))
    found = verify(Artifact(proto, whole, alone=plain.SerializeToString()), expected, QUICK)
    assert found.passed, found.failures
    assert found.output_error < 1e-4
    own = found.preprocess
    assert own is not None
    assert (own.input_size, own.resized_by, own.scaled_first) == ((40, 56), "Resize with antialias", 0)
    assert 0 < own.pixel_error <= 2.001
    assert own.pixel_error_mean < 0.1
    assert own.agreement >= 22 / 24
    assert 0 < own.without.median_ms < found.measured.median_ms
    # A program that has only the files gets the same accuracy.
    onnx.save(proto, "model.onnx")
    files = beside_onnx(data, Task())
    Path("predict.py").write_bytes(files["predict.py"])
    names = [str(Path("photos", name)) for name in json.loads(files["test_files.json"])["test"]]
    done = subprocess.run(
        [sys.executable, "-I", "predict.py", *names], capture_output=True, text=True, check=True
    )
    answers = dict(line.split("\t") for line in done.stdout.splitlines())
    right = sum(answers[name] == Path(name).parent.name for name in names)
    assert right / len(names) == pytest.approx(found.accuracy)


@pytest.mark.usefixtures("folder")
def test_images_of_other_sizes_than_the_cameras_are_scaled_to_it_and_counted() -> None:
    photographs(lambda number: (40, 56) if number % 4 else (64, 50))
    config, data = folder_data()
    with pytest.raises(
        DataError, match=r"different sizes \(40 x 56 to 64 x 50 pixels\): set export.input_size"
    ):
        preprocessing_of(config, data, QUICK)
    sized = config.model_copy(update={"export": config.export.model_copy(update={"input_size": (40, 56)})})
    raw = RawImages(data, preprocessing_of(sized, data, QUICK))
    batches = list(raw.batches())
    assert raw.scaled_first == 6
    assert {batch.pixels.shape[1:] for batch in batches} == {(40, 56, 3)}
    assert sum(len(batch.targets) for batch in batches) == 24
    for batch in batches:
        assert batch.inputs.shape[1:] == (3, 16, 16)
        levels = (batch.inputs - batch.pillow).abs() * torch.tensor(data.std).view(3, 1, 1) * 255
        assert levels.max() <= 2.001


@pytest.mark.parametrize(
    "changed", [{"eval_transforms": lambda image, target: (image, target)}, {"collate": list}]
)
def test_what_custom_functions_do_to_images_cannot_be_in_the_file(changed: dict[str, object]) -> None:
    data = load_data(DataConfig(train_limit=40, test_limit=20), 0)
    config = Config.model_validate({"export": {"preprocess": True}})
    (name,) = changed
    object.__setattr__(data, name, changed[name])
    with pytest.raises(DataError, match=f"data.{name} makes them"):
        preprocessing_of(config, data, QUICK)


def test_without_antialiasing_in_the_runtime_or_the_opset_matrices_scale() -> None:
    data = load_data(DataConfig(train_limit=40, test_limit=20), 0)
    config = Config.model_validate({"export": {"preprocess": True}})
    for profile in (QUICK.model_copy(update={"runtime": "tensorrt"}), QUICK.model_copy(update={"opset": 17})):
        found = preprocessing_of(config, data, profile)
        assert found is not None
        assert not found.by_operator


@pytest.mark.usefixtures("project")
def test_the_budget_is_that_of_the_file_with_its_pre_processing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # For images as small as these, pre-processing may take less than the noise, and be measured as 0 ms.
    measured = search_ways.preprocessing_ms
    monkeypatch.setattr(search_ways, "preprocessing_ms", lambda problem: measured(problem) + 0.01)
    assert main(["export", *ON]) == 1
    assert "was made with another pre-processing; run `bcnet search` again" in capfd.readouterr().err
    for stage in ("search", "slice", "export"):
        capfd.readouterr()
        assert main([stage, *ON, "--json"]) == 0, capfd.readouterr().err
    searched, verified = (
        json.loads(Path("runs/default", name).read_text())
        for name in ("search/result.json", "export/verify.json")
    )
    added = searched["preprocess_ms"]
    assert added > 0
    assert not Path("runs/default/search/preprocessing.jsonl").exists()
    assert verified["preprocess"]["added_ms"] == added
    assert verified["predicted_ms"] == pytest.approx(searched["best"]["predicted_ms"] + added)
    assert verified["budget"]["ms"] == pytest.approx(0.75 * verified["full"]["median_ms"], rel=1e-3)
    assert verified["accuracy"] == verified["accuracy_torch"]
    assert verified["preprocess"]["pixel_error"] == 0
    assert set(keys(searched)) | set(keys(verified)) <= NAMED
    # The file takes uint8 images, and says so.
    session = onnxruntime.InferenceSession(
        "runs/default/export/model.onnx", providers=["CPUExecutionProvider"]
    )
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == ("pixels", "tensor(uint8)", [1, 16, 16, 1])
    about = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
    assert about["inputs"] == [{"name": "pixels", "shape": [1, 16, 16, 1], "dtype": "uint8"}]
    assert (about["format"], about["layout"]) == (2, "NHWC")
    assert "mean" not in about
    # Without it, the whole budget is the network's.
    assert main(["export", "--json"]) == 0
    plain = json.loads(Path("runs/default/export/verify.json").read_text())
    assert "preprocess" not in plain
    assert plain["predicted_ms"] == pytest.approx(searched["best"]["predicted_ms"])
    assert plain["budget"]["ms"] == pytest.approx(0.75 * plain["full"]["median_ms"], rel=1e-3)
