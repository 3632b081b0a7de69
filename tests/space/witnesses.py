"""Three witnesses of one narrow network: the subnet, its extracted network, the masked full network."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bcnet.pipeline.handover import handover_files
from bcnet.pipeline.load_network import load_network
from bcnet.space.extract import tensors_of
from bcnet.space.inputs import arguments
from bcnet.space.subnet import Subnet, ranges
from bcnet.space.supernet import Supernet, cut, forward_path
from bcnet.space.widen import supernet_state
from bcnet.space.width_space import WidthGroup, Widths, WidthSpace
from bcnet.training.cuda_graph import MaskedPath
from bcnet.training.recipe import Recipe
from bcnet.training.supernet_step import SlicedPaths, trainable


def scattered(model: nn.Module) -> nn.Module:
    """The network with statistics and parameters of its normalisations away from their initial values."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            for name, low, high in (
                *(("weight", 0.7, 1.3), ("bias", -0.2, 0.2)),
                *(("running_mean", -0.2, 0.2), ("running_var", 0.7, 1.3)),
            ):
                if getattr(module, name, None) is not None:
                    getattr(module, name).data.uniform_(low, high, generator=generator)
        if isinstance(module, nn.Dropout | nn.Dropout2d) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
        for rate in ("drop_prob", "drop_rate"):  # timm's
            if hasattr(module, rate):
                setattr(module, rate, 0.0)
    return model.eval()


def anywhere(space: WidthSpace, widths: Widths, seed: int = 0) -> Subnet:
    """A subnet of channels drawn at random; groups whose channels keep their places take the first ones."""
    rng = np.random.default_rng(seed)

    def channels(group: WidthGroup, width: int) -> Iterable[int]:
        if group.ordered:
            return range(width)
        units = rng.permutation(group.supernet_channels // group.unit)[: width // group.unit]
        return (group.unit * units[:, None] + np.arange(group.unit)).flatten()

    return Subnet.keeping(space, [channels(*pair) for pair in zip(space.groups, widths, strict=True)])


def masked(model: nn.Module, space: WidthSpace, subnet: Subnet) -> dict[str, Tensor]:
    """The full network's tensors, the outgoing weights of all channels outside the subnet set to zero."""
    state = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    for layer in space.layers:
        if not layer.weight.endswith(".weight"):
            continue  # computed from others: its channels stay
        module = model.get_submodule(layer.weight.removesuffix(".weight"))
        axis = 0 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 1
        if axis not in space.dimensions.get(layer.weight, {}):
            continue
        keep = torch.zeros(state[layer.weight].shape[axis], dtype=torch.bool)
        for low, high in ranges(space, space.dimensions[layer.weight][axis], subnet):
            keep[low:high] = True
        state[layer.weight].transpose(0, axis)[~keep] = 0
    return state


def leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def distance(one: Any, other: Any) -> float:
    """Largest difference, relative to the largest value, of corresponding tensors."""
    pairs = list(zip(leaves(one), leaves(other), strict=True))
    assert pairs
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)


def assert_agree(
    model: nn.Module,
    space: WidthSpace,
    inputs: Any,
    widths: Widths,
    *,
    training: bool = True,
    unweighted: int = 0,
) -> None:
    """Subnet, extracted and masked network are one: on both sides, and of channels drawn at random.

    Bit for bit in eval mode (subnet and extracted network), within 1e-5 in training mode and for the masked
    network, where no layer normalises across channels. Parameters and multiply-accumulates are those of the
    space's arithmetic; `unweighted` are those of an image's products without weights, as in attention: the
    space leaves them out.
    """
    args, kwargs = arguments(inputs)
    own = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    full = space.without_extra()
    for subnet in (Subnet.at(full, widths), Subnet.at(full, widths, "right"), anywhere(full, widths)):
        with torch.no_grad():
            path = forward_path(model, space, subnet, inputs)
            small = cut(model, space, subnet)
            alone = small(*args, **kwargs)
            assert len(leaves(path)) == len(leaves(alone)) > 0
            assert all(torch.equal(a, b) for a, b in zip(leaves(path), leaves(alone), strict=True))
            if not any(group.mixed for group in space.groups):
                tensors = masked(model, full, subnet)
                reference = torch.func.functional_call(model, tensors, args, kwargs)
                assert distance(path, reference) < 1e-5
            if training:
                state = {name: tensor.clone() for name, tensor in own.items()}
                path = forward_path(model.train(), full, subnet, inputs, state=state)
                model.eval()
                assert distance(path, small.train()(*args, **kwargs)) < 1e-5
                small.eval()
        assert space.params(widths) == sum(parameter.numel() for parameter in small.parameters())
        images = leaves(inputs)[0].shape[0]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            small(*args, **kwargs)
        assert counter.get_total_flops() == 2 * images * (space.macs(widths) + unweighted)


def drawn(space: WidthSpace, seed: int = 0) -> Widths:
    return space.random(np.random.default_rng(seed))


def sliced_paths(model: nn.Module, space: WidthSpace, recipe: Recipe) -> SlicedPaths:
    """A supernet's paths on its training device; its parameters have gradients of zero."""
    supernet = Supernet(model.to(recipe.device), space, supernet_state(model, space))
    paths = SlicedPaths(trainable(supernet, recipe.device), recipe)
    for parameter in paths.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    return paths


def assert_same_gradients(
    model: nn.Module, space: WidthSpace, batch: tuple[Tensor, Tensor], subnet: Subnet
) -> None:
    """A subnet on slices and the subnet on whole tensors with masks have one loss and one gradient."""
    found = []
    for way in ("sliced", "masked"):
        sliced = sliced_paths(model, space, Recipe(epochs=1, learning_rate=0.1))
        if way == "sliced":
            loss, _ = sliced(subnet, *batch, 2)
        else:
            masked = MaskedPath(sliced)
            masked.choose(subnet)
            loss = masked(*batch, 2)
        found.append({"loss": loss, **{name: p.grad for name, p in sliced.parameters.items()}})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


def assert_loaded(made: Callable[[], nn.Module], space: WidthSpace, x: Tensor, folder: Path) -> None:
    """The loader makes a small network of one that is `made` again; it answers alike, trains and is saved."""
    given, other = made(), made()
    small = cut(given, space, drawn(space))
    for file, content in handover_files(given, small, {}, {}).items():
        (folder / file).write_bytes(content)
    for parameter in other.parameters():
        parameter.data.zero_()
    loaded = load_network(other, folder)
    assert loaded is other
    assert str(loaded) == str(small)
    with torch.no_grad():
        expected = small(x)
        assert torch.equal(loaded(x), expected)
    saved = io.BytesIO()
    torch.save(loaded.state_dict(), saved)
    before = [parameter.detach().clone() for parameter in loaded.parameters()]
    optimizer = torch.optim.SGD(loaded.train().parameters(), lr=0.1)
    loaded(x).square().mean().backward()
    optimizer.step()
    pairs = zip(before, loaded.parameters(), strict=True)
    assert sum(not torch.equal(old, new) for old, new in pairs) > 0.8 * len(before)
    saved.seek(0)
    loaded.load_state_dict(torch.load(saved))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), expected)
