"""Networks that cannot be narrowed as given are refused with the reason and the remedy."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from bcnet.errors import SpaceError
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.space.discover import discover_space

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.b(self.a(x).relu()).mean((2, 3)))
        return y


class Silent(Net):
    """Its train() and eval() return nothing; batch statistics stay as they are."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)

    def eval(self) -> None:  # type: ignore[override]
        super().eval()


def test_train_and_eval_may_return_nothing() -> None:
    assert [group.name for group in discover_space(Silent(), IMAGES).groups] == [
        group.name for group in discover_space(Net(), IMAGES).groups
    ]
    assert to_onnx(Silent(), IMAGES).graph.node


def pruned() -> nn.Module:
    model = Net()
    prune.l1_unstructured(model.b, "weight", 0.5)  # type: ignore[no-untyped-call]
    return model


def old_spectral_norm() -> nn.Module:
    model = Net()
    nn.utils.spectral_norm(model.a)
    return model


def prepared_for_quantisation() -> nn.Module:
    model = Net().train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    prepared: nn.Module = torch.ao.quantization.prepare_qat(model)
    return prepared


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))


def locked() -> nn.Module:
    model = Net()
    model.lock = threading.Lock()
    return model


def of_a_computation() -> nn.Module:
    model = Net()
    model.scale = torch.ones(1, requires_grad=True) * 2
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            pruned,
            r"^'b' is pruned by torch\.nn\.utils\.prune \(L1Unstructured of its weight\); make that "
            r"permanent with torch\.nn\.utils\.prune\.remove\(module, 'weight'\)$",
        ),
        (
            old_spectral_norm,
            r"^the weight of 'a' is computed .* torch\.nn\.utils\.remove_spectral_norm",
        ),
        (prepared_for_quantisation, r"^the network is prepared for quantisation .* pass it in float"),
        (lazy, r"^'0' is lazy \(LazyConv2d\).* run the network once where it is created"),
        (locked, r"^Net cannot be copied with copy\.deepcopy \(TypeError: cannot pickle '_thread\.lock'"),
        (of_a_computation, r"^Net cannot be copied with copy\.deepcopy \(RuntimeError: Only Tensors created"),
    ],
)
def test_a_network_that_cannot_be_narrowed_as_it_is_says_what_it_is(
    build: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(SpaceError, match=message) as raised:
        discover_space(build(), IMAGES)
    assert "\n" not in str(raised.value)


def test_a_parameter_of_whole_numbers_is_no_obstacle() -> None:
    model = Net()
    model.table = nn.Parameter(torch.arange(4), requires_grad=False)
    assert [group.name for group in discover_space(model, IMAGES).groups] == ["a", "b"]


class Caches(Net):
    """Makes a table in its first forward from the input's values, as detectors make anchors."""

    table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.table is None:
            self.table = torch.full((1, 3), float(x.new_ones(2).sum()))
        if bool(self.table.isnan().any()):
            raise ValueError("no table")
        return y * self.table


def test_what_is_made_in_the_first_forward_does_not_depend_on_the_values_of_inputs() -> None:
    space = discover_space(Caches(), IMAGES)
    assert [group.name for group in space.groups] == ["a", "b"]
