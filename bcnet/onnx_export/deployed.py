"""Layers in the form in which a file holds them. In: a network. Out: a network with the same outputs.

A layer whose weight is computed from its parameter, such as a convolution with the signs of real weights, has
a method `deployed`, which gives the ordinary layer. Its weight has the same name and shape, so that the file
is sliced like any other.
"""

import copy

from torch import nn

METHOD = "deployed"


def with_deployed_layers(model: nn.Module) -> nn.Module:
    """A copy with all such layers replaced; the network itself where it has none."""
    places = [name for name, module in model.named_modules() if hasattr(module, METHOD)]
    if not places:
        return model
    copied = copy.deepcopy(model).requires_grad_(False)
    for place in places:
        layer = getattr(copied.get_submodule(place), METHOD)()
        if not place:
            return layer.eval()  # type: ignore[no-any-return]
        parent, _, key = place.rpartition(".")
        setattr(copied.get_submodule(parent), key, layer)
    return copied.eval()
