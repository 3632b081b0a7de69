"""Arrays in jobs and answers, as type, shape and bytes, which a device without numpy can pass on."""

from typing import Any, Dict, Sequence, Tuple

FREE_BATCH = 64  # maximum batch size for a file with a dynamic batch
Packed = Dict[str, Any]  # {"dtype": "<f4", "shape": [N, C, H, W], "data": bytes}


def pack(array: Any) -> Packed:
    """A numpy array as type, shape and bytes."""
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}


def unpack(packed: Packed) -> Any:
    """The numpy array of a packed one."""
    import numpy as np

    return np.frombuffer(packed["data"], np.dtype(packed["dtype"])).reshape(packed["shape"]).copy()


def min_opt_max(sizes: Sequence[int]) -> Tuple[int, int, int]:
    """The smallest, the middle (optimised for) and the largest size of a dynamic batch."""
    ordered = sorted(sizes)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


def batches(arrays: Sequence[Any], size: int) -> Any:
    """Batches of `size` items of all arrays, the last one padded with zeros, each with its true count."""
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
