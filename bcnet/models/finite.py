"""Whether weights are finite. In: tensors by name. Out: the name of the first that is not."""

from collections.abc import Collection, Mapping

from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor], trained: Collection[str] | None = None) -> str | None:
    """The first tensor that holds a NaN, or an infinite value if it is a trained one; None if there is none.

    Others, such as an attention mask, may be infinite. `trained`: their names; all tensors if not given.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            may_be_infinite = trained is not None and name not in trained
            if not (~tensor.isnan() if may_be_infinite else tensor.isfinite()).all():
                return name
    return None
