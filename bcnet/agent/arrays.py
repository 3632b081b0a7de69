"""Arrays as they cross to a device: type, shape and bytes. Without numpy they are passed on as they are."""

from typing import Any, Dict, Sequence, Tuple

Packed = Dict[str, Any]  # {"dtype": "<f4", "shape": [N, C, H, W], "data": bytes}


def pack(array: Any) -> Packed:
    """A numpy array as type, shape and bytes."""
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}


def unpack(packed: Packed) -> Any:
    """The numpy array again."""
    import numpy as np

    return np.frombuffer(packed["data"], np.dtype(packed["dtype"])).reshape(packed["shape"]).copy()


def least_usual_most(sizes: Sequence[int]) -> Tuple[int, int, int]:
    """Of the sizes of a dynamic batch the least, the one in the middle (the one most used), the largest."""
    ordered = sorted(sizes)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


def batches(arrays: Sequence[Any], size: int) -> Any:
    """Parts of `size` items of all arrays, the last one filled up with zeros, each with its true count."""
    import numpy as np

    for start in range(0, len(arrays[0]), size):
        parts = [array[start : start + size] for array in arrays]
        count = len(parts[0])
        if count < size:
            parts = [
                np.concatenate([part, np.zeros((size - count,) + part.shape[1:], part.dtype)])
                for part in parts
            ]
        yield [np.ascontiguousarray(part) for part in parts], count
