"""ReActNet: the published network's size, and a family whose widths are free."""

import copy
import io
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from bcnet.config import ModelConfig
from bcnet.errors import ModelError
from bcnet.models import NETWORKS, build_model
from bcnet.models.binary import Operations, set_binary
from bcnet.models.reactnet import PublishedBlock, reactnet_small
from bcnet.onnx_export.onnx_supernet import OnnxSupernet, to_onnx
from bcnet.pipeline.slice import program_bytes
from bcnet.runtimes import runtime_here
from bcnet.runtimes.onnx_binary import binary_convolutions
from bcnet.space.discover import discover_space
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths, WidthSpace
from tests.space.witnesses import assert_agree, drawn, scattered

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    model = scattered(reactnet_small(widths=(64, 96), depths=(1, 2), expand=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.numel() in (64, 96, 128, 192) and not name.startswith("0"):  # thresholds, slopes
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def space(small: nn.Module) -> WidthSpace:
    return discover_space(small, IMAGES[:1], min_width=0.25)


def test_the_published_network_has_the_published_size() -> None:
    with torch.device("meta"):
        found = Operations.of(NETWORKS["reactnet-a"](), torch.zeros(1, 3, 224, 224))
    assert (round(found.binary_macs / 1e9, 2), round(found.real_macs / 1e6, 1)) == (4.82, 11.9)
    assert (round(found.binary_params / 1e6, 2), round(found.real_params / 1e6, 2)) == (28.25, 1.09)
    assert round(found.equivalent_macs / 1e6, 1) == 87.1
    assert round(found.packed_bytes / 1e6, 1) == 7.9


def test_the_published_blocks_tie_all_channels_together() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)),
        *(PublishedBlock(64, 128, 1), PublishedBlock(128, 128, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )
    (group,) = discover_space(model.eval(), IMAGES[:1]).groups
    assert (group.channels, group.choices) == (64, (32, 64))


def test_a_group_of_a_single_word_has_widths_of_the_configured_multiple() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), PublishedBlock(32, 64, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )
    (group,) = discover_space(model.eval(), IMAGES[:1], bins=4).groups
    assert group.choices == (8, 16, 24, 32)


def test_a_stage_and_the_middle_of_a_block_are_groups_in_whole_words(space: WidthSpace) -> None:
    assert [(group.layers[0], group.choices) for group in space.groups] == [
        ("0.0", (32, 64)),
        ("1.0.conv1", (32, 64, 96, 128)),
        ("1.1.conv1", (64, 96, 128, 192)),
        ("1.1.conv2", (32, 64, 96)),
        ("1.2.conv1", (64, 96, 128, 192)),
    ]
    assert not any(group.mixed or group.ordered for group in space.groups)


def test_narrow_paths_masked_and_extracted_networks_are_one_function(
    small: nn.Module, space: WidthSpace
) -> None:
    # In float64, where no sum is within rounding of a threshold.
    assert_agree(copy.deepcopy(small).double(), space, IMAGES.double(), drawn(space), training=False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_path_equals_the_extracted_network_to_the_last_bit(
    small: nn.Module, space: WidthSpace, side: str
) -> None:
    supernet = Supernet.with_extra(small, space)
    for seed in range(3):
        subnet = Subnet.at(space, space.random(seed), side)
        network = supernet.extract(subnet).eval()
        with torch.no_grad():
            assert torch.equal(supernet.run(subnet, IMAGES), network(IMAGES))


def test_a_training_step_reaches_every_parameter(small: nn.Module) -> None:
    model = reactnet_small(widths=(32, 64), depths=(1, 1)).train()
    model(IMAGES).square().sum().backward()
    assert [name for name, own in model.named_parameters() if own.grad is None or not own.grad.any()] == []


def test_a_sliced_file_holds_signs_and_gives_the_narrow_networks_outputs(
    small: nn.Module, space: WidthSpace
) -> None:
    graph = OnnxSupernet(small, space, tuple(IMAGES.shape))
    assert graph.sliceable
    binary = [slot.template for slot in graph.slots if slot.template.op == "BinaryConv"]
    assert [(own.in_channels, own.out_channels) for own in binary] == [
        *((64, 128), (128, 64), (64, 192), (192, 96), (96, 192), (192, 96)),
    ]
    widths = Widths((32, 96, 64, 96, 160))
    content = graph.variant(widths)
    weights = {
        entry.name: numpy_helper.to_array(entry) for entry in onnx.load_from_string(content).graph.initializer
    }
    size = np.abs(weights["1.2.conv1.weight"]).reshape(160, -1)
    assert (size == size[:, :1]).all()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": IMAGES.numpy()})
    with torch.no_grad():
        wanted = Supernet.of(small, space).run(Subnet.at(space, widths), IMAGES).numpy()
    # A sum within rounding of a threshold may have either sign, which then changes an image a little.
    assert np.median(np.abs(found - wanted).max(1)) < 1e-4 * np.abs(wanted).max()


def test_a_program_of_torch_alone_gives_the_same_bits(small: nn.Module) -> None:
    program = torch.export.load(io.BytesIO(program_bytes(small, IMAGES[:2])))
    with torch.no_grad():
        assert torch.equal(program.module()(IMAGES), small(IMAGES))


def test_the_real_counterpart_has_the_same_tensors_and_no_signs() -> None:
    torch.manual_seed(0)
    real, binary = (reactnet_small(widths=(32,), depths=(1,), binary=kind) for kind in ("none", "both"))
    real.load_state_dict(binary.state_dict())
    x = real[0](IMAGES)
    assert torch.equal(real[1][0].sign1(x), x)
    assert Operations.of(real, IMAGES).binary_params == 0


MIXED = ["1.0.conv2", "1.1.conv1"]  # of four layers


@pytest.fixture(scope="module")
def mixed() -> nn.Module:
    torch.manual_seed(0)
    model = scattered(reactnet_small(widths=(64, 64), depths=(1, 1), binary=MIXED)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):  # thresholds, slopes
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def test_only_the_named_layers_are_binary(mixed: nn.Module) -> None:
    modules = dict(mixed.named_modules())
    names = ["1.0.conv1", "1.0.conv2", "1.1.conv1", "1.1.conv2"]
    assert [modules[name].binary for name in names] == [False, True, True, False]
    assert [modules[name.replace("conv", "sign")].binary for name in names] == [False, True, True, False]
    found = Operations.of(mixed, IMAGES)
    assert found.binary_params == 2 * 64 * 64 * 9
    assert found.packed_bytes == found.binary_params // 8 + 4 * found.real_params


def test_each_assignment_of_precisions_is_a_network_of_the_same_space(mixed: nn.Module) -> None:
    spaces = [
        discover_space(reactnet_small(widths=(64, 64), depths=(1, 1), binary=kind), IMAGES[:1])
        for kind in ("both", "none")
    ]
    own = discover_space(mixed, IMAGES[:1])
    assert spaces == [own, own]
    assert all(group.choices == (32, 64) for group in own.groups)


def test_a_mixed_network_is_sliced_as_it_computes(mixed: nn.Module) -> None:
    space = discover_space(mixed, IMAGES[:1])
    assert_agree(copy.deepcopy(mixed).double(), space, IMAGES.double(), drawn(space), training=False)
    graph = OnnxSupernet(mixed, space, tuple(IMAGES.shape))
    assert graph.sliceable
    layers = [slot.template for slot in graph.slots if slot.template.kernel == (3, 3)]
    assert [own.op for own in layers] == ["Conv", "Conv", "BinaryConv", "BinaryConv", "Conv"]
    widths = Widths((32, 64, 32, 64))
    content = graph.variant(widths)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": IMAGES.numpy()})
    with torch.no_grad():
        wanted = Supernet.of(mixed, space).run(Subnet.at(space, widths), IMAGES).numpy()
    assert np.median(np.abs(found - wanted).max(1)) < 1e-4 * np.abs(wanted).max()
    binary = binary_convolutions(onnx.load_from_string(content).graph)
    assert [own.node.input[1] for own in binary] == [f"{name}.weight" for name in MIXED]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"widths": []}, r"widths are whole numbers above zero, e\.g\. \[2, 2\], not \[\]$"),
        ({"widths": 64}, r"widths are whole numbers above zero, .*, not 64$"),
        ({"widths": [64.0], "depths": [1]}, r"widths are .*, not \[64\.0\]$"),
        ({"widths": [64], "depths": [0]}, r"depths are whole numbers above zero, .*, not \[0\]$"),
        ({"expand": -1}, r"expand is a whole number above zero, not -1$"),
    ],
)
def test_sizes_that_are_no_whole_numbers_above_zero_are_refused(args: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=f"^reactnet-small: {reason}"):
        reactnet_small(**args)


def test_an_argument_that_a_reference_network_does_not_have_is_refused_with_the_nearest_name() -> None:
    config = ModelConfig(name="reactnet-small", args={"width": [64]})
    with pytest.raises(
        ModelError, match=r"^model\.args: 'reactnet-small' has no argument 'width'; did you mea"
    ):
        build_model(config, 3, 10)
    with pytest.raises(
        ModelError, match=r"^unknown model 'reactnet-b'; did you mean 'reactnet-a'\? known: di"
    ):
        build_model(ModelConfig(name="reactnet-b"), 3, 10)


@pytest.mark.parametrize("side", [13, 14])
def test_shortcuts_have_as_many_positions_as_convolutions_at_any_size(side: int) -> None:
    images = torch.randn(2, 3, side, side)
    for model in (reactnet_small(widths=(32, 64, 32), depths=(1, 1, 1)), small_published()):
        # Without signs: in an untrained network many sums are exactly at a threshold.
        set_binary(model.eval(), activations=False, weights=False)
        content = to_onnx(model, images).SerializeToString()
        with torch.no_grad():
            wanted = model(images).numpy()
        for runtime in ("onnxruntime", "openvino"):
            pytest.importorskip(runtime)
            (found,) = runtime_here(runtime).predictor(content)(images.numpy())
            assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def small_published() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)),
        *(PublishedBlock(32, 64, 2), PublishedBlock(64, 128, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )


def test_other_arguments_are_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"reactnet-small: 1 widths and 2 depths; give as many of both"):
        reactnet_small(widths=(32,), depths=(1, 1))
    with pytest.raises(ModelError, match=r"binary is 'weights'; known: both, activations, none, or a list"):
        reactnet_small(binary="weights")
    with pytest.raises(
        ModelError, match=r"there is no layer '1\.0' that can be binary; known: 1\.0\.conv1, "
    ):
        reactnet_small(binary=["1.0"])
