"""The original network is named for what it is, and a warning says where it is no better than guessing."""

from pathlib import Path

import pytest
import torch
from conftest import CONFIG, PROFILE
from PIL import Image

from bcnet.cli import main
from bcnet.config import ModelConfig, load_config
from bcnet.models import build_model
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.original import state_of_original

GUESSING = "this is no better than guessing among 10 classes (95 % interval "


@pytest.fixture(autouse=True)
def _configured(folder: Path) -> None:
    (folder / "bcnet.toml").write_text('model.weights = "own.pt"\n' + CONFIG, encoding="utf-8")
    (folder / "hw_profiles").mkdir()
    (folder / "hw_profiles/cpu.toml").write_text(PROFILE, encoding="utf-8")


def weights(classes: int, channels: int = 1) -> None:
    """Initial weights of a network for so many classes, as if they were trained ones."""
    torch.manual_seed(0)
    torch.save(build_model(ModelConfig(), channels, classes).state_dict(), "own.pt")


def test_weights_that_fit_are_given_and_a_warning_says_that_they_only_guess(
    capfd: pytest.CaptureFixture[str],
) -> None:
    weights(10)
    assert main(["train"]) == 0
    err = capfd.readouterr().err
    assert "the network's weights are given: they are evaluated and kept, nothing has to be trained" in err
    assert GUESSING in err
    assert "and data.mean and data.std; no smaller network can be better" in err  # no training would help
    assert state_of_original(open_problem(load_config(None))) == "given"


@pytest.mark.parametrize("chosen", ["", "image_size = 16\n"])
def test_of_a_folder_the_image_size_is_named_where_the_accuracy_is_low(
    chosen: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Networks run on many sizes, so a size other than that of the training shows only in the accuracy."""
    for part in ("train", "test"):
        for value, label in enumerate(("cat", "dog")):
            folder = Path("pets", part, label)
            folder.mkdir(parents=True)
            for file in range(10):
                Image.new("RGB", (24, 24), (90 * value + file,) * 3).save(folder / f"{file}.png")
    folder_of_images = 'name = "imagefolder:pets"\nmean = "imagenet"\nstd = "imagenet"\n'
    own = CONFIG.replace("image_size = 16\n", folder_of_images + chosen)
    own = own.replace("batch_size = 32", "batch_size = 4").replace("train_limit = 120\ntest_limit = 60\n", "")
    Path("bcnet.toml").write_text('model.weights = "own.pt"\n' + own, encoding="utf-8")
    weights(2, channels=3)
    assert main(["train"]) == 0
    err = capfd.readouterr().err
    size = "the image size (data.image_size, now 24)"
    assert (f"on 20 test images; if it should be higher, set {size}\n" in err) is not bool(chosen)
    assert f"the order of the classes, {size.replace('24', '16') if chosen else size}, and data.mean" in err


def test_a_network_whose_head_is_new_is_compared_after_that_was_trained(
    capfd: pytest.CaptureFixture[str],
) -> None:
    weights(5)
    assert main(["train"]) == 0
    err = capfd.readouterr().err
    assert "the network itself is trained first, because its layers '6' (5 outputs there, 10 here) are" in err
    assert state_of_original(open_problem(load_config(None))) == "head trained"


def test_a_network_without_trained_weights_is_compared_after_it_was_trained() -> None:
    Path("bcnet.toml").write_text(CONFIG, encoding="utf-8")
    method = {"search": {"method": "latency-milp"}}
    assert state_of_original(open_problem(load_config(None, method))) == "trained"
    assert state_of_original(open_problem(load_config(None))) == "given"  # of a supernet: never trained
