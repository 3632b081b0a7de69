"""Refuse networks that cannot be narrowed in the given form, with the reason and a remedy.

In: a network. Out: a copy of it for tracing, or SpaceError.
"""

import copy

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod

from bcnet.errors import SpaceError, explaining

# Old-style hooks that compute a weight before every forward, and the functions that remove them.
_HOOKS = {
    "torch.nn.utils.weight_norm": ("weight_norm", "torch.nn.utils.remove_weight_norm(module)"),
    "torch.nn.utils.spectral_norm": ("spectral_norm", "torch.nn.utils.remove_spectral_norm(module)"),
}
_QUANTISED = ("torch.ao.", "torch.nn.qat", "torch.nn.quantized", "torch.nn.intrinsic", "torchao.")


def probe_of(model: nn.Module) -> nn.Module:
    """A copy in eval mode that can be run and narrowed. Raises SpaceError if the network is not plain."""
    _check(model)
    with explaining(
        SpaceError,
        f"{type(model).__name__} cannot be copied with copy.deepcopy",
        "pass it before its first use, without handles, locks or results of computations in it",
    ):
        probe = copy.deepcopy(model)
        probe.eval()
    for parameter in probe.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)  # some layers execute other code otherwise
    return probe


def _check(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule | nn.DataParallel) or hasattr(model, "_orig_mod"):
        raise SpaceError(
            f"{type(model).__name__} wraps a network (TorchScript, torch.compile, DataParallel); pass the "
            "nn.Module itself"
        )
    check_initialised(model)
    for name, module in model.named_modules():
        where = f"'{name}'" if name else "the network"
        if type(module).__module__.startswith(_QUANTISED):
            raise SpaceError(
                f"the network is prepared for quantisation ({type(module).__name__} in {where}); pass it in "
                "float, as it was before prepare_qat or convert: bcnet quantises in the export "
                "(--precision int8)"
            )
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                tensor = hook._tensor_name
                raise SpaceError(
                    f"{where} is pruned by torch.nn.utils.prune ({type(hook).__name__} of its {tensor}); "
                    f"make that permanent with torch.nn.utils.prune.remove(module, '{tensor}')"
                )
            kind, remedy = _HOOKS.get(type(hook).__module__, (None, None))
            if kind is not None:
                raise SpaceError(
                    f"the weight of {where} is computed at every call (old-style {kind}); remove that with "
                    f"{remedy}"
                )


def check_initialised(model: nn.Module) -> None:
    """Raises SpaceError if a lazy module has no parameters yet."""
    for name, module in model.named_modules():
        tensors = (*module._parameters.values(), *module._buffers.values())
        if any(is_lazy(tensor) for tensor in tensors):
            where = f"'{name}'" if name else "the network"
            raise SpaceError(
                f"{where} is lazy ({type(module).__name__}): it has no parameters before its first use; run "
                "the network once where it is created, e.g. model(torch.zeros(1, 3, 224, 224))"
            )
