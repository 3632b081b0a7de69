"""Trained weights are loaded from files of tensors, and nothing else is."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bcnet.config import ModelConfig
from bcnet.errors import ModelError
from bcnet.models import build_model
from bcnet.models.weights import load_weights

pytestmark = pytest.mark.usefixtures("folder")


def network(classes: int = 3, width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 1), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, classes)
    )


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_loaded(name: str, prefix: str) -> None:
    trained, model = network(), network()
    state = {prefix + key: tensor for key, tensor in trained.state_dict().items()}
    save_file(state, name) if name.endswith(".safetensors") else torch.save(state, name)
    assert not same(trained, model)
    load_weights(model, Path(name))
    assert same(trained, model)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_scripts_checkpoint_is_looked_into(key: str) -> None:
    trained, model = network(), network()
    torch.save({"epoch": 7, key: trained.state_dict()}, "w.pt")
    load_weights(model, Path("w.pt"))
    assert same(trained, model)


def test_another_number_of_classes_keeps_the_new_output_layer_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained, model = network(classes=5), network(classes=3)
    head = model[3].weight.clone()
    torch.save(trained.state_dict(), "w.pt")
    load_weights(model, Path("w.pt"))
    assert torch.equal(model[0].weight, trained[0].weight)
    assert torch.equal(model[3].weight, head)
    assert "w.pt: '3' has 5 outputs there and 3 here: it begins anew" in capsys.readouterr().err


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("sprung", "w")


def test_a_pickled_object_is_refused_and_not_run() -> None:
    Path("w.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError, match=r"cannot be read as weights|holds more than tensors"):
        load_weights(network(), Path("w.pt"))
    torch.save({"model": Trap()}, "w2.pt")
    with pytest.raises(ModelError, match=r"w2.pt holds more than tensors.*save model.state_dict\(\) instead"):
        load_weights(network(), Path("w2.pt"))
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0.weight": torch.zeros(4, 1, 1, 1)}, r"it lacks '0.bias' \(7 missing, 0 unknown tensors\)"),
        (
            {**network().state_dict(), "4.weight": torch.zeros(1)},
            "it has '4.weight', which the network lacks",
        ),
        (network(width=5).state_dict(), r"'0.weight' has the shape \(5, 1, 1, 1\), in the network it is"),
        ({"epoch": 3}, "is not a state_dict"),
        ([1, 2], "is not a state_dict"),
    ],
)
def test_weights_of_another_network_are_refused_with_the_first_difference(
    content: object, message: str
) -> None:
    torch.save(content, "w.pt")
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        load_weights(model, Path("w.pt"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_missing_file_and_a_damaged_one_are_named() -> None:
    with pytest.raises(ModelError, match=r"model\.weights: there is no file w\.pt"):
        load_weights(network(), Path("w.pt"))
    Path("w.safetensors").write_bytes(b"1234")
    with pytest.raises(ModelError, match=r"w\.safetensors cannot be read as weights"):
        load_weights(network(), Path("w.safetensors"))


def test_a_configured_file_is_loaded_into_the_configured_network() -> None:
    first = build_model(ModelConfig(name="digits"), 1, 10)
    torch.save(first.state_dict(), "w.pt")
    second = build_model(ModelConfig(name="digits", weights="w.pt"), 1, 10)
    assert same(first, second)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "googlenet"])
def test_torchvisions_networks_are_built_without_downloads_or_warnings(name: str) -> None:
    model = build_model(ModelConfig(name=f"torchvision:{name}"), 3, 4)
    assert any(parameter.shape[0] == 4 for parameter in model.parameters())
