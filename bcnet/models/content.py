"""Everything that a network computes with, for digests. In: a network. Out: pieces of bytes, equal if it is.

Modules, parameters, buffers, and the code of classes that belong to no library.
"""

from collections.abc import Iterator

import torch
from torch import nn

from bcnet.user_code import code_of

LIBRARIES = ("torch.", "torchvision.", "timm.")


def network_content(model: nn.Module) -> Iterator[bytes]:
    """The pieces, in a fixed order."""
    yield repr(model).encode()
    for tensor in model.state_dict().values():
        yield tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    for kind in sorted({type(module) for module in model.modules()}, key=repr):
        if not kind.__module__.startswith(LIBRARIES):
            yield code_of(kind).encode()
