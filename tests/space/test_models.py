"""The networks that people have: every one is read, and its narrow paths are what is cut out."""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.lraspp import LRASPP
from torchvision.models.shufflenetv2 import ShuffleNetV2

from bcnet.models import NETWORKS
from bcnet.onnx_export.onnx_supernet import OnnxSupernet, to_onnx
from bcnet.space.discover import discover_space
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import cut, forward_path
from bcnet.space.trace import OUTPUT
from bcnet.space.width_space import WidthSpace
from tests.space.witnesses import assert_agree, assert_loaded, distance, drawn, leaves, masked, scattered

CLASSIFIERS = (
    *("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2"),
    *("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "mnasnet1_0"),
    *("regnet_x_400mf", "regnet_y_400mf", "vgg11", "vgg16_bn", "densenet121", "squeezenet1_0", "googlenet"),
    *("inception_v3", "shufflenet_v2_x1_0", "convnext_tiny"),
)
TIMM = ("ghostnet_100", "mobilenetv4_conv_small", "repvgg_a0", "resnest14d")
SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
REGNET = BlockParams([1, 2, 1], [32, 64, 128], [16, 16, 16], [1.0, 1.0, 1.0], [2, 2, 2], se_ratio=0.25)
EFFICIENT = (
    MBConvConfig(1, 3, 1, 32, 16, 1, 1.0, 1.0),
    MBConvConfig(6, 3, 2, 16, 24, 2, 1.0, 1.0),
    MBConvConfig(6, 5, 2, 24, 40, 2, 1.0, 1.0),
)


def small_googlenet() -> nn.Module:
    from torchvision.models.googlenet import BasicConv2d, Inception

    return nn.Sequential(
        BasicConv2d(3, 64, kernel_size=7, stride=2, padding=3),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Inception(64, 64, 96, 128, 16, 32, 32),
        Inception(256, 128, 128, 192, 32, 96, 64),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(480, 10)),
    )


def small_ghostnet() -> nn.Module:
    from timm.models.ghostnet import GhostNet

    stages = ([3, 16, 16, 0, 1], [5, 72, 40, 0.25, 2], [3, 240, 80, 0, 2], [3, 480, 112, 0.25, 1])
    return GhostNet([[stage] for stage in stages])


def small_mobilenetv4() -> nn.Module:
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.mobilenetv3 import MobileNetV3

    blocks = ["uir_r1_a5_k5_s2_e3_c48", "uir_r1_a0_k3_s1_e2_c48", "uir_r1_a3_k0_s1_e4_c48"]
    return MobileNetV3(decode_arch_def([blocks, ["cn_r1_k1_s1_c96"]]), head_bias=False, head_norm=True)


def small_repvgg() -> nn.Module:
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    blocks = tuple(ByoBlockCfg(type="rep", d=2, c=channels, s=2, gs=0, br=0) for channels in (48, 96))
    return ByobNet(ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=48))


def small_segmentation() -> nn.Module:
    features = torchvision.models.mobilenet_v3_small(dilated=True).features
    return LRASPP(IntermediateLayerGetter(features, {"1": "low", "12": "high"}), 16, 576, num_classes=21)


# Networks of the same blocks as others, and fewer of them.
SMALL: dict[str, Callable[[], nn.Module]] = {
    "small densenet": lambda: DenseNet(block_config=(2, 3, 2, 2)),
    "small shufflenet": lambda: ShuffleNetV2([2, 3, 2], [24, 48, 96, 192, 512]),
    "small convnext": lambda: ConvNeXt(
        [CNBlockConfig(48, 96, 1), CNBlockConfig(96, 192, 2), CNBlockConfig(192, None, 1)]
    ),
    "small resnext": lambda: ResNet(Bottleneck, [1, 2, 1, 1], groups=32, width_per_group=4),
    "small mobilenet_v2": lambda: MobileNetV2(
        inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    ),
    "small efficientnet": lambda: EfficientNet(EFFICIENT, dropout=0.2),
    "small regnet": lambda: RegNet(REGNET),
    "small googlenet": small_googlenet,
    "small ghostnet": small_ghostnet,
    "small mobilenetv4": small_mobilenetv4,
    "small repvgg": small_repvgg,
    "small lraspp": small_segmentation,
}
# Each run tries another network, or a small one, of the same kind.
TWINS = (
    *("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "regnet_x_400mf"),
    *("regnet_y_400mf", "vgg11", "vgg16_bn", "densenet121", "googlenet", "inception_v3", "mobilenet_v2"),
    *("shufflenet_v2_x1_0", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s"),
    *("convnext_tiny", "ghostnet_100", "mobilenetv4_conv_small", "repvgg_a0", *SEGMENTATION),
)


def timm_model(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name)
    return model


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    shape = (2, 3, 64, 64)
    if name in NETWORKS:
        model, shape = NETWORKS[name](), (2, 1 if name.startswith("digit") else 3, 32, 32)
    elif name in TIMM:
        model = timm_model(name)
    elif name in SMALL:
        model = SMALL[name]()
    elif name in SEGMENTATION:
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    elif name in ("googlenet", "inception_v3"):
        model, shape = torchvision.models.get_model(name, init_weights=True), (2, 3, 80, 80)
    else:
        model = torchvision.models.get_model(name)
    return scattered(model), torch.randn(shape)


@functools.cache
def space_of(name: str) -> WidthSpace:
    """The space of `network(name)`, found once for all tests."""
    return discover_space(*network(name))


def marked(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow if name in TWINS else ()) for name in names]


# Of binary networks, whose masked ones may differ by a sign: tests/models/test_reactnet.py.
REAL = tuple(name for name in NETWORKS if not name.startswith("reactnet"))


@pytest.mark.parametrize("name", marked(*REAL, *CLASSIFIERS, *SMALL, *TIMM, *SEGMENTATION))
def test_path_cut_masked_network_and_onnx_file_agree(name: str) -> None:
    model, x = network(name)
    space = space_of(name)
    # Inception's auxiliary classifier does not run on images this small.
    assert_agree(model, space, x, drawn(space), training=name != "inception_v3")
    small = cut(model, space, drawn(space))
    other = cut(model, space, drawn(space), "right")
    buffer = io.BytesIO()
    torch.save(small.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    with torch.no_grad():
        expected = small(x)
        assert distance(other(x), expected) == 0
    proto = to_onnx(small, tuple(x.shape))
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert distance([torch.from_numpy(array) for array in found], expected) < 1e-4


@pytest.mark.parametrize(
    "name",
    marked(
        *("resnet18", "small resnext", "small mobilenet_v2", "mobilenet_v3_small", "small efficientnet"),
        *("small densenet", "small shufflenet", "small regnet", "small convnext", "squeezenet1_0", "vgg11"),
        "small repvgg",
    ),
)
def test_the_loader_that_is_handed_over_makes_the_small_network(name: str, tmp_path: Path) -> None:
    assert_loaded(lambda: network(name)[0], space_of(name), network(name)[1], tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *marked("small regnet", "regnet_y_400mf", "small densenet", "densenet121"),
        *marked("small shufflenet", "shufflenet_v2_x1_0"),
        pytest.param("resnest14d", marks=pytest.mark.slow),
    ],
)
def test_a_sliced_onnx_graph_is_the_cut_networks(name: str) -> None:
    torch.manual_seed(0)
    # As it is made: the exporter makes equal tensors one, though they follow different groups.
    if name in TIMM:
        model = timm_model(name).eval()
    else:
        model = (SMALL[name]() if name in SMALL else torchvision.models.get_model(name)).eval()
    x, space = torch.randn(1, 3, 64, 64), space_of(name)
    graph = OnnxSupernet(model, space, tuple(x.shape))
    assert graph.sliceable
    content = graph.variant(drawn(space))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    with torch.no_grad():
        assert distance(found, cut(graph.model, space, drawn(space))(x)) < 1e-4


@pytest.mark.parametrize("name", marked(*CLASSIFIERS, *SMALL, *TIMM, *SEGMENTATION))
def test_most_multiply_accumulates_are_searchable_and_the_rest_has_a_reason(name: str) -> None:
    model, _ = network(name)
    space = space_of(name)
    assert space.searchable_macs() > 0.9
    assert all(entry.reason for entry in space.frozen)
    held = {layer for group in space.groups for layer in group.layers}
    named = held | {entry.name for entry in space.frozen}
    for layer, module in model.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            assert layer in named


class Captured(nn.Module):
    """A detector's network that gives what one of its modules gives."""

    def __init__(self, detector: nn.Module, part: str) -> None:
        super().__init__()
        self.detector = detector
        self.part = part

    def forward(self, images: list[torch.Tensor]) -> Any:
        found: list[Any] = []
        handle = self.detector.get_submodule(self.part).register_forward_hook(
            lambda module, inputs, output: found.append(output)
        )
        self.detector(images)
        handle.remove()
        return found[0]


def test_padding_as_an_operator_of_its_own_freezes_nothing_before_it() -> None:
    """EfficientNet-Lite0 as TensorFlow has it pads each strided layer at the bottom and the right only."""
    space = discover_space(timm_model("tf_efficientnet_lite0"), torch.rand(1, 3, 64, 64))
    assert len(space.groups) == 24
    assert [entry.reason for entry in space.frozen] == [OUTPUT]
    assert space.macs(space.smallest()) < 0.06 * space.macs(space.largest())


def detector_named(name: str, **settings: Any) -> nn.Module:
    if name == "fasterrcnn_resnet18_fpn":
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
        return FasterRCNN(backbone, num_classes=5, rpn_post_nms_top_n_test=50, **settings)
    model: nn.Module = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=5, **settings
    )
    return model


@pytest.mark.parametrize(
    ("name", "part"),
    [
        pytest.param("ssdlite320_mobilenet_v3_large", "head", marks=pytest.mark.slow),
        ("fasterrcnn_resnet18_fpn", "backbone"),
        pytest.param("fasterrcnn_resnet50_fpn", "backbone", marks=pytest.mark.slow),
    ],
)
def test_detectors_are_read_and_their_narrow_features_agree(name: str, part: str) -> None:
    torch.manual_seed(0)
    sides = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 96}
    detector = scattered(detector_named(name, **sides))
    images = [torch.rand(3, 96, 96)]
    space = discover_space(detector, (images,))
    assert space.searchable_macs() > 0.9
    for side in ("left", "right"):
        with torch.no_grad():
            small = cut(detector, space, drawn(space), side)
            path = forward_path(detector, space, drawn(space), (images,), side)
            alone = small(images)
            assert all(torch.equal(a, b) for a, b in zip(leaves(path), leaves(alone), strict=True))
            assert space.params(drawn(space)) == sum(p.numel() for p in small.parameters())
            features = Captured(small, part)(images)
            assert distance(features, _masked_features(detector, space, side, part, images)) < 1e-5
    backbone = small.backbone.eval()
    x = torch.rand(1, 3, 96, 96)
    session = onnxruntime.InferenceSession(
        to_onnx(backbone, tuple(x.shape)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = leaves(backbone(x))
    assert distance([torch.from_numpy(array) for array in found], expected) < 1e-4


def _masked_features(
    detector: nn.Module, space: WidthSpace, side: Any, part: str, images: list[torch.Tensor]
) -> Any:
    tensors = masked(detector, space, Subnet.at(space, drawn(space), side))
    named = {f"detector.{name}": tensor for name, tensor in tensors.items()}
    return torch.func.functional_call(Captured(detector, part), named, (images,))
