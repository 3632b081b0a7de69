"""Trained weights are loaded from files of tensors, and nothing else is."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bcnet.config import ModelConfig
from bcnet.errors import ModelError
from bcnet.models import build_model, statistics
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
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model._orig_mod.module."]
)
def test_a_state_dict_is_loaded(name: str, prefix: str) -> None:
    trained, model = network(), network()
    state = {prefix + key: tensor for key, tensor in trained.state_dict().items()}
    save_file(state, name) if name.endswith(".safetensors") else torch.save(state, name)
    assert not same(trained, model)
    load_weights(model, Path(name))
    assert same(trained, model)


@pytest.mark.parametrize("wrap", [lambda inner: nn.ModuleDict({"model": inner}), lambda inner: inner])
def test_a_prefix_of_the_network_itself_is_found_with_and_without_one_in_the_file(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    trained = network()
    for prefix in ("", "model.", "module.model."):
        torch.save({prefix + key: tensor for key, tensor in trained.state_dict().items()}, "w.pt")
        model = network()
        load_weights(wrap(model), Path("w.pt"))
        assert same(trained, model)


def test_a_compiled_part_of_a_network_is_found_under_its_own_name() -> None:
    trained, model = nn.Sequential(network()), nn.Sequential(network())
    torch.save({key.replace("0.", "0._orig_mod.", 1): t for key, t in trained.state_dict().items()}, "w.pt")
    load_weights(model, Path("w.pt"))
    assert same(trained, model)


@pytest.mark.parametrize(
    "keys", ["state_dict", "model", "ema", "model_ema", "ema.state_dict", "nets.encoder"]
)
def test_a_training_scripts_checkpoint_is_looked_into(keys: str, capsys: pytest.CaptureFixture[str]) -> None:
    trained, model = network(), network()
    content: dict[str, object] = dict(trained.state_dict())
    for key in reversed(keys.split(".")):
        content = {key: content}
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)
    torch.save(
        {"epoch": 7, "best": torch.tensor(0.5), "optimizer": optimizer.state_dict(), **content}, "w.pt"
    )
    load_weights(model, Path("w.pt"))
    assert same(trained, model)
    assert capsys.readouterr().err == f"weights: 9 tensors from w.pt, entry '{keys}'\n"


def test_averaged_weights_come_before_the_others_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    plain, averaged, model = network(), network(), network()
    wrapped = {f"module.{key}": tensor for key, tensor in averaged.state_dict().items()}
    content = {"model": plain.state_dict(), "model_ema": {"n_averaged": torch.tensor(3), **wrapped}}
    torch.save(content, "w.pt")
    load_weights(model, Path("w.pt"))
    assert same(averaged, model)
    assert "entry 'model_ema'" in capsys.readouterr().err


def test_counters_of_profilers_and_other_parts_of_a_training_module_are_left_out() -> None:
    trained, model = network(), network()
    state = {f"model.{key}": tensor for key, tensor in trained.state_dict().items()}
    state |= {"model.0.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    state |= {"model.1.num_batches_tracked": torch.tensor([3]), "loss.weight": torch.ones(3)}
    torch.save({"state_dict": state}, "w.pt")
    load_weights(model, Path("w.pt"))
    assert torch.equal(model[3].weight, trained[3].weight)
    assert model[1].num_batches_tracked == 3


class TwoHeads(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(1, 4, 3)
        self.classifier = nn.Linear(4, classes)
        self.mask = nn.ConvTranspose2d(4, classes, 2)


def test_other_numbers_of_classes_keep_the_heads_and_report_them(capsys: pytest.CaptureFixture[str]) -> None:
    trained, model = TwoHeads(5), TwoHeads(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(trained.state_dict(), "w.pt")
    load_weights(model, Path("w.pt"))
    assert torch.equal(model.trunk.weight, trained.trunk.weight)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items() if "trunk" not in n)
    assert capsys.readouterr().err == (
        "weights: 2 tensors from w.pt; start from their initial weights: 'classifier' (5 outputs there, "
        "3 here), 'mask' (5 outputs there, 3 here)\n"
    )


def on_noise(model: nn.Module) -> object:
    return model(torch.randn(2, 1, 6, 6))


class Boxes(nn.Module):
    """A detector's two heads, whose outputs are concatenated; a fixed layer then decodes the boxes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(1, 4, 3)
        self.box, self.scores = nn.Conv2d(4, 8, 1), nn.Conv2d(4, classes, 1)
        self.decode = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        both = torch.cat([self.box(x), self.scores(x)], 1)
        return self.decode(both[:, :8]), both[:, 8:].sigmoid()


def test_a_head_is_one_whatever_is_computed_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Boxes(80).state_dict(), "w.pt")
    model = Boxes(3).train()
    model.trunk.requires_grad_(False)
    load_weights(model, Path("w.pt"), on_noise)
    assert "start from their initial weights: 'scores' (80 outputs there, 3 here)" in capsys.readouterr().err
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False] * 2 + [True] * 6
    assert all(parameter.grad is None for parameter in model.parameters())


class Reduced(nn.Module):
    """The mean over channels hides how many there are from the layer that follows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.fc = nn.Conv2d(1, width, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(self.inner(x).mean((1, 2)))
        return found


class Positions(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(count, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(x + self.table.weight[:6])
        return found


class Table(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.table, self.fc = nn.Parameter(torch.ones(count, 6)), nn.Linear(6, 3)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Reduced, "'inner' has 9 outputs there and 8 here, but is no head, since 'fc' follows"),
        (Positions, r"'table.weight' has the shape \(9, 6\), in the network it is \(8, 6\)"),
        (Table, r"'table' has the shape \(9, 6\), in the network it is \(8, 6\)"),
    ],
)
def test_what_other_layers_are_computed_from_is_no_head(kind: type[nn.Module], message: str) -> None:
    torch.save(kind(9).state_dict(), "w.pt")  # type: ignore[call-arg]
    with pytest.raises(ModelError, match=message):
        load_weights(kind(8), Path("w.pt"), on_noise)  # type: ignore[call-arg]


def test_of_several_dictionaries_the_first_that_fits_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    trained, averaged = network(), network()
    parameters = {name: parameter.detach() for name, parameter in averaged.named_parameters()}
    torch.save({"state_dict": trained.state_dict(), "ema": parameters}, "w.pt")
    model = network()
    load_weights(model, Path("w.pt"))
    assert same(trained, model)
    assert "entry 'state_dict'" in capsys.readouterr().err
    torch.save({"ema": parameters}, "w.pt")
    with pytest.raises(ModelError, match=r"entry 'ema' is not of this network: it lacks '1.running_mean'"):
        load_weights(model, Path("w.pt"))


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda t: t.to(torch.int8), r"'0.weight' is of torch.int8, in the network it is of torch.float32"),
        (lambda t: t.to(torch.complex64), "'0.weight' is of torch.complex64"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "'0.weight' is of torch.qint8"),
        (lambda t: t.to("meta"), r"'0.weight' has no values \(it is on the meta device\)"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_with_their_type(
    convert: Callable[[Tensor], Tensor], message: str
) -> None:
    state = {k: convert(t) if t.is_floating_point() else t for k, t in network().state_dict().items()}
    torch.save(state, "w.pt")
    model = network()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    with pytest.raises(ModelError, match=message):
        load_weights(model, Path("w.pt"))
    assert all(map(torch.equal, before, model.state_dict().values()))


class Failing(nn.Linear):
    def __init__(self, fails: str) -> None:
        super().__init__(1, 1)
        self.fails = fails

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return None if self.fails == "state_dict" else super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("not like this\nat all")


@pytest.mark.parametrize("fails", ["state_dict", "load_state_dict"])
def test_a_network_that_gives_or_takes_no_state_is_refused_in_one_line(fails: str) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), "w.pt")
    with pytest.raises(ModelError, match=rf"Failing\.{fails}\(\) failed \(.*\)$"):
        load_weights(Failing(fails), Path("w.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_with_their_tensor(value: float) -> None:
    state = network().state_dict()
    state["1.running_var"][2] = value
    torch.save(state, "w.pt")
    with pytest.raises(ModelError, match=r"w\.pt holds NaN or infinity in '1\.running_var'"):
        load_weights(network(), Path("w.pt"))


def test_weights_that_overflow_in_the_networks_type_are_refused() -> None:
    state = {key: tensor.double() for key, tensor in network().state_dict().items()}
    state["3.bias"][0] = 1e300
    torch.save(state, "w.pt")
    with pytest.raises(ModelError, match=r"NaN or infinity in '3\.bias'"):
        load_weights(network(), Path("w.pt"))


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
        (
            {"0.weight": torch.zeros(4, 1, 1, 1)},
            r"it lacks '0.bias', '1.bias', '1.running_mean', '1.running_var', '1.weight' and 2 more "
            r"\(7 missing, 0 unknown tensors\)",
        ),
        (
            {f"model.{key}": t for key, t in nn.Sequential(nn.Linear(1, 1)).state_dict().items()},
            "it lacks '1.bias'",
        ),
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


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def saved(cut: int) -> bytes:
    torch.save(network().state_dict(), "whole.pt")
    save_file(network().state_dict(), "whole.safetensors")
    content = Path("whole.safetensors" if cut < 0 else "whole.pt").read_bytes()
    return content[: len(content) - abs(cut)]


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "w.* is empty; fetch it again"),
        (lambda: bytes(5000), "w.* holds zeros, not weights; it is cut short or damaged"),
        (lambda: LFS, "w.* is a Git LFS pointer, not the weights; fetch them with `git lfs install`"),
        (lambda: b"\n<!DOCTYPE html>\n<html>", "w.* is a web page, not weights; open the address"),
        (lambda: b"\x89HDF\r\n", "w.* is an HDF5 file"),
        (lambda: saved(900), "w.* cannot be read as weights: it is cut short or damaged: fetch it again"),
        (
            lambda: saved(0).replace(b"PK\1\2", b"PK\1\3", 1),
            "w.* cannot be read as weights: it is cut short or dam",
        ),
        (lambda: saved(-7), r"w.* cannot be read as weights \(.*\); it is cut short or damaged"),
        (lambda: b"1234", r"w.* cannot be read as weights: it is not a file of torch\.save"),
    ],
)
def test_a_file_that_holds_no_weights_is_named_for_what_it_is(
    name: str, content: Callable[[], bytes], message: str
) -> None:
    Path(name).write_bytes(content())
    with pytest.raises(ModelError, match=f"^{message}"):
        load_weights(network(), Path(name))


def test_a_missing_file_and_a_folder_are_named() -> None:
    with pytest.raises(ModelError, match=r"cannot be read: OSError: .*File name too long"):
        load_weights(network(), Path("w" * 300))
    with pytest.raises(ModelError, match=r"^model\.weights: w\.pt does not exist; give the path of a file"):
        load_weights(network(), Path("w.pt"))
    Path("trained.pt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"traind\.pt does not exist; did you mean 'trained\.pt'\?$"):
        load_weights(network(), Path("traind.pt"))
    with pytest.raises(ModelError, match=r"^model\.weights: \. is not a regular file$"):
        load_weights(network(), Path("."))


def test_a_torchscript_program_is_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "w.pt")
    with pytest.raises(ModelError, match=r"w\.pt is a TorchScript program; save its state_dict"):
        load_weights(network(), Path("w.pt"))


def test_a_configured_file_is_loaded_into_the_configured_network() -> None:
    first = build_model(ModelConfig(name="digits"), 1, 10)
    torch.save(first.state_dict(), "w.pt")
    second = build_model(ModelConfig(name="digits", weights="w.pt"), 1, 10)
    assert same(first, second)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "googlenet"])
def test_torchvisions_networks_are_built_without_downloads_or_warnings(name: str) -> None:
    model = build_model(ModelConfig(name=f"torchvision:{name}"), 3, 4)
    assert any(parameter.shape[0] == 4 for parameter in model.parameters())


def test_torchvisions_own_weights_are_read_from_the_users_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(folder))
    config = ModelConfig(name="torchvision:squeezenet1_1", weights="pretrained")
    with pytest.raises(ModelError, match=r"could not be fetched from https://.*; put that file into .*hub"):
        build_model(config, 3, 4)
    trained = build_model(config.model_copy(update={"weights": None}), 3, 1000)
    torch.save(trained.state_dict(), folder / "hub/checkpoints/squeezenet1_1-b8a52dc0.pth")
    model = build_model(config, 3, 4)
    assert torch.equal(model.features[0].weight, trained.features[0].weight)
    assert model.classifier[1].out_channels == 4
    assert "'classifier.1' (1000 outputs there, 4 here)" in capsys.readouterr().err
    assert statistics(config) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_timms_networks_take_channels_and_classes_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("timm")
    config = ModelConfig(name="timm:lcnet_050")
    assert build_model(config, 1, 4)(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    with pytest.raises(ModelError, match=r"^timm has no model 'lcnet_05'; similar names: .*lcnet_050"):
        build_model(ModelConfig(name="timm:lcnet_05"), 1, 4)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    own = config.model_copy(update={"weights": "pretrained"})
    message = (
        r"^the weights of 'timm:lcnet_050' could not be loaded from timm/lcnet_050\.ra2_in1k \(.*\); give"
    )
    with pytest.raises(ModelError, match=message):
        build_model(own, 3, 4)


def test_pretrained_weights_are_a_librarys() -> None:
    with pytest.raises(
        ModelError, match=r"'pretrained' is for digit-scenes, torchvision:NAME, timm:NAME; give a file"
    ):
        build_model(ModelConfig(name="digits", weights="pretrained"), 1, 4)
