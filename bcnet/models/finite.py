"""Whether weights are numbers. In: tensors by name. Out: the first that is none, by its name."""

from collections.abc import Collection, Mapping

from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor], trained: Collection[str] | None = None) -> str | None:
    """The first tensor that holds a NaN, or an infinite value where it is one that is trained.

    Others, as an attention mask, may be infinite. `trained` are all if not given. None: there is none.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            may_be_infinite = trained is not None and name not in trained
            if not (~tensor.isnan() if may_be_infinite else tensor.isfinite()).all():
                return name
    return None
