"""Importance of channels: by hand on a network with a residual and a depthwise convolution; kept channels."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.errors import SpaceError, TrainingError
from bcnet.space.discover import discover_space
from bcnet.space.extract import tensors_of, with_state
from bcnet.space.importance import Criterion, importances, kept_channels, reordered
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.gradient_importance import measured_importances
from bcnet.training.loop import batches
from bcnet.training.recipe import Recipe

CRITERIA: tuple[Criterion, ...] = ("l1", "l2", "bn-scale", "fpgm", "taylor", "fisher")
RECIPE = Recipe(epochs=1, learning_rate=0.1, batch_size=8)
Gate = Callable[[str, Tensor], Tensor]


def plain(name: str, x: Tensor) -> Tensor:
    return x


class Tiny(nn.Module):
    """A group `stem` with a residual and a depthwise layer; a group `widen` without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.point, self.inner = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.widen = nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4 * 4, 3)
        self.gate: Gate = plain

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate("after norm", self.norm(self.stem(x))).relu()
        y = self.gate("after inner", self.inner(self.point(self.gate("into point", x)))).relu()
        x = x + self.depthwise(self.gate("into depthwise", y))
        x = self.gate("after widen", self.widen(self.gate("into widen", x))).relu()
        x = nn.functional.adaptive_avg_pool2d(x, 2)
        logits: Tensor = self.head(self.gate("into head", x).flatten(1))
        return logits


@pytest.fixture(scope="module")
def data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 3, 6, 6), generator=generator).to(torch.uint8)
    split = Split(pixels, torch.arange(24) % 3)
    return ImageData(split, split, split, ("a", "b", "c"), (0.5,) * 3, (0.3,) * 3, flip=True, shift=1)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    torch.manual_seed(0)
    model = Tiny()
    for norm in (model.norm, model.inner):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.5, 0.5)
        norm.running_mean.data.uniform_(-0.5, 0.5)
        norm.running_var.data.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def space(tiny: Tiny) -> WidthSpace:
    found = discover_space(tiny, torch.zeros(1, 3, 6, 6), bins=2, channel_multiple=1, method="unilateral")
    assert [group.name for group in found.groups] == ["stem", "widen"]
    return found


def by_gates(model: Tiny, data: ImageData, where: tuple[str, ...], each_image: bool) -> Tensor:
    """Squares of the gradients by factors of one, the same in all places, for each image or batch."""
    total = torch.zeros(())
    probe = copy.deepcopy(model)
    some = [*batches(data, RECIPE, 0), *batches(data, RECIPE, 1)][:4]
    for inputs, targets in some:
        gates: dict[str, Tensor] = {}

        def gated(name: str, x: Tensor, gates: dict[str, Tensor] = gates) -> Tensor:
            if name not in where:
                return x
            gates[name] = torch.ones(len(x) if each_image else 1, x.shape[1], requires_grad=True)
            return x * gates[name][:, :, None, None]

        probe.gate = gated
        reduction = "sum" if each_image else "mean"
        nn.functional.cross_entropy(probe(inputs), targets, reduction=reduction).backward()
        total = total + sum(gate.grad for gate in gates.values() if gate.grad is not None).square().sum(0)
    return total


def test_fisher_is_the_sum_of_squares_of_each_images_gradients_summed_over_all_layers_that_read_the_channels(
    tiny: Tiny, space: WidthSpace, data: ImageData
) -> None:
    found = measured_importances(tiny, space, data, RECIPE, ["fisher"], batches=4)["fisher"]
    into = ("into point", "into depthwise", "into widen")
    torch.testing.assert_close(found[0], by_gates(tiny, data, into, True), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found[1], by_gates(tiny, data, ("into head",), True), rtol=1e-4, atol=1e-9)


def test_taylor_is_the_sum_of_squares_of_each_batchs_gradients_by_gates_behind_batch_norms_or_layers(
    tiny: Tiny, space: WidthSpace, data: ImageData, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured_importances(tiny, space, data, RECIPE, ["taylor"], batches=4)["taylor"]
    norms = by_gates(tiny, data, ("after norm", "after inner"), False)
    torch.testing.assert_close(found[0], norms, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found[1], by_gates(tiny, data, ("after widen",), False), rtol=1e-4, atol=1e-9)
    assert "without batch norm in 'widen', l1 replaces bn-scale" in capsys.readouterr().err


def test_what_a_measurement_leaves_behind_is_nothing(tiny: Tiny, space: WidthSpace, data: ImageData) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    measured_importances(tiny, space, data, RECIPE, CRITERIA, batches=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny.parameters())
    assert not any(module._forward_pre_hooks or module.training for module in tiny.modules())


def test_every_criterion_follows_the_channels_into_another_order(
    tiny: Tiny, space: WidthSpace, data: ImageData
) -> None:
    generator = torch.Generator().manual_seed(3)
    order = [torch.randperm(group.channels, generator=generator) for group in space.groups]
    other = with_state(tiny, space, reordered(tensors_of(tiny), space, order))
    found, moved = (
        measured_importances(own, space, data, RECIPE, CRITERIA, batches=2) for own in (tiny, other)
    )
    for by in CRITERIA:
        for own, others, index in zip(found[by], moved[by], order, strict=True):
            torch.testing.assert_close(own[index], others, rtol=1e-3, atol=1e-7)


def test_criteria_of_the_weights_are_those_of_their_papers(tiny: Tiny, space: WidthSpace) -> None:
    def of(by: Criterion) -> Tensor:
        return importances(tiny, space, tensors_of(tiny), by)[0]

    stem, point = tiny.stem.weight.detach().flatten(1), tiny.point.weight.detach().flatten(1)
    torch.testing.assert_close(of("l1"), stem.abs().sum(1) + point.abs().sum(1))
    torch.testing.assert_close(of("l2"), torch.cat([stem, point], 1).norm(dim=1))
    torch.testing.assert_close(of("bn-scale"), (tiny.norm.weight.abs() + tiny.inner.weight.abs()).detach())
    apart = [sum((own[i] - own[j]).norm() for own in (stem, point) for j in range(6)) for i in range(6)]
    torch.testing.assert_close(of("fpgm"), torch.stack(apart))


def test_without_batch_norm_its_scales_are_replaced_by_l1_in_one_line(
    data: ImageData, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    space = discover_space(model, torch.zeros(1, 3, 6, 6), bins=2, channel_multiple=1)
    found = measured_importances(model, space, data, RECIPE, ["bn-scale", "l1"])
    assert torch.equal(found["bn-scale"][0], found["l1"][0])
    line = "without batch norm in the network, l1 replaces bn-scale, and taylor has its gates at the layers"
    assert capsys.readouterr().err.strip() == line


class Functional(nn.Module):
    """Its second layer's weight is used without the module: nobody sees what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = nn.functional.conv2d(x, self.second.weight, self.second.bias).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_where_no_reader_can_be_watched_fisher_is_taylor_in_its_size(
    data: ImageData, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = Functional().eval()
    space = discover_space(model, torch.zeros(1, 3, 6, 6), bins=2, channel_multiple=1)
    found = measured_importances(model, space, data, RECIPE, ["taylor", "fisher"], batches=2)
    assert (
        "no layer that reads 'first' can be observed: taylor replaces fisher there" in capsys.readouterr().err
    )
    factor = float(found["fisher"][1].sum() / found["taylor"][1].sum())
    torch.testing.assert_close(found["fisher"][0], factor * found["taylor"][0])


@pytest.mark.parametrize("groups", [2, 8])
def test_what_grouped_convolutions_read_counts_by_the_channels_that_go_together(
    data: ImageData, groups: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=groups)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
    )
    space = discover_space(model, torch.zeros(1, 3, 6, 6), bins=2, channel_multiple=1)
    (inputs, targets), *_ = batches(data, RECIPE, 0)
    into, out = (torch.ones(8, 16, requires_grad=True) for _ in range(2))
    x = model[1](model[0](inputs) * into[:, :, None, None]) * out[:, :, None, None]
    nn.functional.cross_entropy(model[2:](x), targets, reduction="sum").backward()
    assert into.grad is not None
    assert out.grad is not None
    found = measured_importances(model, space, data, RECIPE, ["fisher"], batches=1)["fisher"]
    if groups == 2:  # narrowed inside each: channel i of both halves
        wanted = [mask.grad.reshape(8, 2, 8).sum(1).square().sum(0) for mask in (into, out)]
    else:  # a pair of channels goes with its group, before and behind the layer: half of its importance each
        pairs = (into.grad + out.grad).reshape(8, 8, 2).sum(2)
        wanted = [(pairs.square().sum(0) / 2).repeat_interleave(2)]
    assert len(found) == len(wanted)
    for own, others in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, others, rtol=1e-4, atol=1e-9)


def test_dropout_and_stochastic_depth_hide_nothing(data: ImageData) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    random = nn.Sequential(layers[0], StochasticDepth(0.5, "row"), *layers[1:4], nn.Dropout(0.5), layers[4])
    found = []
    for model in (nn.Sequential(*layers), random):
        space = discover_space(model, torch.zeros(1, 3, 6, 6), bins=2, channel_multiple=1)
        found.append(measured_importances(model, space, data, RECIPE, ["taylor", "fisher"], batches=2))
    for by in ("taylor", "fisher"):
        torch.testing.assert_close(found[0][by], found[1][by])


def test_importance_of_broken_weights_is_refused(tiny: Tiny, space: WidthSpace, data: ImageData) -> None:
    broken = copy.deepcopy(tiny)
    broken.norm.bias.data[0] = torch.nan
    with pytest.raises(TrainingError, match="gradients in group 'stem' are not finite"):
        measured_importances(broken, space, data, RECIPE, ["taylor"], batches=1)


def test_importance_by_gates_is_not_computed_from_weights_alone(tiny: Tiny, space: WidthSpace) -> None:
    with pytest.raises(SpaceError, match="importance by fisher is measured on training images"):
        importances(tiny, space, tensors_of(tiny), "fisher")


def test_any_channels_can_be_kept(tiny: Tiny, space: WidthSpace) -> None:
    kept = [1, 2, 5], [0, 3]
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))

    def only(name: str, x: Tensor) -> Tensor:
        """The whole network with all other channels zero."""
        mask = torch.zeros(x.shape[1])
        mask[kept[1] if name in ("after widen", "into head") else kept[0]] = 1
        return x * mask[:, None, None]

    whole = copy.deepcopy(tiny)
    whole.gate = only
    supernet, subnet = Supernet.of(tiny, space), Subnet.keeping(space, kept)
    with torch.no_grad():
        torch.testing.assert_close(supernet.run(subnet, x), whole(x))
        small = supernet.extract(subnet)
        torch.testing.assert_close(small(x), whole(x))
    assert sum(parameter.numel() for parameter in small.parameters()) == space.params(Widths((3, 2)))


def test_the_most_important_channels_are_kept_in_their_order_in_whole_units(space: WidthSpace) -> None:
    importance = (torch.tensor([1.0, 9, 3, 5, 2, 3]), torch.tensor([1.0, 4, 2, 3]))
    kept = kept_channels(space, Widths((3, 2)), importance)
    assert kept == Subnet((range(1, 4), (1, 3)))
    stem, widen = space.groups
    paired = replace(space, groups=(replace(stem, unit=2), replace(widen, ordered=True)))
    kept = kept_channels(paired, Widths((4, 2)), importance)
    assert kept == Subnet((range(4), range(2)))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([[0, 1, 2, 3, 4, 5]], "channels of 1 group given, the space has 2"),
        ([[0, 1, 2, 3, 6, 7], [0, 1, 2, 3]], r"of group 'stem' are not all within 0\.\.5"),
        ([[0, 0, 1, 2, 3, 4], [0, 1, 2, 3]], "of group 'stem' must be distinct indices"),
        ([[2, 3, 0, 1, 5, 4], [0, 1, 2, 3]], "of group 'stem' must have all of its channels, in whole units"),
        ([[2, 3, 0, 1, 4, 5], [0, 1]], "the order of group 'widen' must have all of its channels"),
    ],
)
def test_an_order_that_does_not_fit_is_refused(
    tiny: Tiny, space: WidthSpace, order: list[list[int]], message: str
) -> None:
    stem, widen = space.groups
    paired = replace(space, groups=(replace(stem, unit=2), widen))
    with pytest.raises(SpaceError, match=message):
        reordered(tensors_of(tiny), paired, [torch.tensor(own) for own in order])
