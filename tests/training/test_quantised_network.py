"""A network in the integers of its INT8 file: what it gives there, and how it is trained."""

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from bcnet.config import DataConfig
from bcnet.data.dataset import load_data
from bcnet.errors import ModelError
from bcnet.onnx_export.int8 import Feed, quantized
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.runtimes import runtime_here
from bcnet.training.checkpoints import CheckpointFile
from bcnet.training.loop import fit_network, steps_an_epoch
from bcnet.training.quantised_network import Calibration, QuantisedNetwork
from bcnet.training.recipe import Recipe

SHAPE = (1, 1, 8, 8)
DATA = load_data(DataConfig(image_size=8, train_limit=64, test_limit=20, augment="none"), 0)


class Folded(nn.Module):
    """Batch norm that is folded and some that is not, a sum, a depthwise convolution, a product of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.before = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.after = nn.BatchNorm2d(8, affine=False)
        self.tokens, self.head = nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x + nn.functional.hardswish(self.after(self.depthwise(self.before(x))))
        y = torch.relu(self.tokens(y.flatten(2).transpose(1, 2)))
        z: Tensor = self.head(y.mean(1))
        return z


def folded() -> nn.Module:
    """One with statistics of its own, and a channel whose weights are next to nothing beside its bias."""
    torch.manual_seed(0)
    model = Folded()
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, *SHAPE[1:]) + 0.5)
        for own in (model.stem[1], model.before):
            nn.init.uniform_(own.weight, 0.5, 1.5)
            nn.init.normal_(own.bias)
        model.stem[1].weight[3], model.stem[1].bias[3] = 1e-12, 2.0
    return model.eval()


def feeds(proto: ModelProto) -> list[Feed]:
    generator = torch.Generator().manual_seed(1)
    return [{"input": torch.randn(SHAPE, generator=generator).numpy()} for _ in range(16)]


def calibration(unsigned: bool = True) -> Calibration:
    return Calibration(feeds, unsigned, 18)


def images(count: int = 32) -> Tensor:
    return torch.randn(count, *SHAPE[1:], generator=torch.Generator().manual_seed(2))


def delivered(network: nn.Module, unsigned: bool) -> bytes:
    """The INT8 file as it is exported."""
    return bytes(quantized(to_onnx(network, SHAPE), feeds(ModelProto()), unsigned).SerializeToString())


def outputs_in_order(content: bytes, x: Tensor) -> np.ndarray:
    """Those of a file of which every node is executed as it is written, without fusions."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": one[None].numpy()})[0] for one in x])


def dequantised(content: bytes) -> dict[str, np.ndarray]:
    """The floats that a file's integer weights and biases stand for, by the constants' names."""
    proto = ModelProto.FromString(content)
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            values, scale = arrays[node.input[0]], arrays[node.input[1]]
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
            sides = [-1 if place == axis else 1 for place in range(values.ndim)]
            each = scale.reshape(sides) if scale.ndim else scale
            found[node.output[0]] = values.astype(np.float32) * each
    return found


@pytest.mark.parametrize("unsigned", [True, False])
def test_outputs_are_those_of_the_exported_file_before_and_after_training(unsigned: bool) -> None:
    network = QuantisedNetwork(folded(), torch.zeros(SHAPE), calibration(unsigned))
    for trained in (False, True):
        if trained:
            before = copy.deepcopy(network.network.state_dict())
            fit_network(network, DATA, Recipe(1, 0.05, batch_size=16), "training")
            changed = {k for k, v in network.network.state_dict().items() if not torch.equal(v, before[k])}
            trainable = {n for n, own in network.network.named_parameters() if own.requires_grad}
            assert changed == trainable  # and no statistics
            assert len(trainable) == 10  # but not what is added to tokens, which is no layer's bias
            network.calibrate()
        content, x = delivered(network.network, unsigned), images()
        constants, wanted = network._constants(), dequantised(content)
        shared = wanted.keys() & constants.keys()
        assert len(shared) == (7 if unsigned else 4)
        for name in shared:
            np.testing.assert_allclose(constants[name].detach().numpy(), wanted[name], rtol=1e-6, atol=0)
        with torch.no_grad():
            own = network.eval()(x).numpy()
        step = float(network.ranges[0].max())
        plain = outputs_in_order(content, x)
        (fused,) = runtime_here("onnxruntime").predictor(content)(x.numpy())
        floats = network.network(x).detach().numpy()
        # A value on the border between two integers may fall to either side: few outputs are off by more.
        for other in (plain, fused):
            assert np.mean(np.abs(own - other) > 1e-5) < 0.05
            assert np.abs(own - other).max() < 2 * step
        assert np.mean(np.abs(own - floats) > 1e-5) > 0.9


class Centred(nn.Module):
    """A weight that is computed from a parameter, and a parameter that is as in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.a.weight - self.a.weight.mean(0)
        z: Tensor = self.b(torch.relu(nn.functional.conv2d(x, weight)).mean((2, 3)))
        return z


def test_weights_that_the_network_computes_stay_as_they_are() -> None:
    torch.manual_seed(0)
    network = QuantisedNetwork(Centred(), torch.zeros(SHAPE), calibration())
    frozen = [name for name, own in network.network.named_parameters() if not own.requires_grad]
    assert frozen == ["a.weight", "a.bias"]
    before = network.network.a.weight.clone()
    fit_network(network, DATA, Recipe(1, 0.05, batch_size=16, weight_decay=0.1), "training")
    assert torch.equal(network.network.a.weight, before)


def test_training_lowers_the_loss_in_integers_and_leaves_the_given_network_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    given = copy.deepcopy(model.state_dict())
    network = QuantisedNetwork(model, torch.zeros(SHAPE), calibration())
    losses = fit_network(network, DATA, Recipe(8, 0.1, batch_size=8), "training")
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items())


def test_a_training_that_was_stopped_goes_on_to_the_same_result(tmp_path: Path) -> None:
    recipe = Recipe(3, 0.05, batch_size=16)
    every = steps_an_epoch(DATA, recipe)

    def made() -> QuantisedNetwork:
        return QuantisedNetwork(folded(), torch.zeros(SHAPE), calibration(), every=every)

    whole, stopped, resumed = made(), made(), made()
    checkpoint = CheckpointFile(tmp_path / "checkpoint.safetensors", {})
    fit_network(whole, DATA, recipe, "training")
    ranges = stopped.ranges.clone()

    with pytest.raises(KeyboardInterrupt):
        fit_network(stopped, DATA, recipe, "training", checkpoint=interrupted(checkpoint, 2))
    fit_network(resumed, DATA, recipe, "training", checkpoint=checkpoint)
    assert not torch.equal(whole.ranges, ranges)  # they follow the weights
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def interrupted(checkpoint: CheckpointFile, after: int) -> CheckpointFile:
    """The same file, of a process that is stopped after so many epochs."""
    saved = []

    class Stopped(CheckpointFile):
        def save(self, snapshot: object) -> None:
            checkpoint.save(snapshot)  # type: ignore[arg-type]
            saved.append(snapshot)
            if len(saved) == after:
                raise KeyboardInterrupt

    return Stopped(checkpoint.path, checkpoint.made_from)


class Several(nn.Module):
    """Two inputs and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor | None]:
        own = self.a(left)
        return {"sum": (own + self.b(right)).mean((2, 3)), "none": None, "own": own}


def test_outputs_have_the_networks_structure() -> None:
    def two(proto: ModelProto) -> list[Feed]:
        return [{f"input{n}": one[None].numpy() for n in range(2)} for one in images()]

    network = QuantisedNetwork(Several(), (images(1), images(1)), Calibration(two, True, 18)).eval()
    with torch.no_grad():
        found, wanted = network(images(), images()), network.network(images(), images())
    assert list(found) == ["sum", "none", "own"]
    assert found["none"] is None
    for name in ("sum", "own"):
        assert found[name].shape == wanted[name].shape
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0.05)


class Unknown(nn.Module):
    """An operator that the executor does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = torch.cumsum(self.a(x), 1)
        return z


def test_a_file_that_pytorch_cannot_execute_is_an_error_of_one_line() -> None:
    with pytest.raises(ModelError, match=r"cannot be executed in PyTorch: .*CumSum") as caught:
        QuantisedNetwork(Unknown(), torch.zeros(SHAPE), calibration())
    assert "\n" not in str(caught.value)
