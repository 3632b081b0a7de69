"""What a deployer needs to feed a network and read its outputs. In: data, a network. Out: JSON.

It is stored under the key `bcnet.preprocessing` in an ONNX file's metadata, in `model.pt2` (an extra file)
and in `model.safetensors`; docs/guides/data.md documents its entries.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.onnx_export.onnx_supernet import tensor_names
from bcnet.onnx_export.preprocess import INPUT, LAYOUT, Preprocessing
from bcnet.runs import json_bytes
from bcnet.runtimes.onnx_batch import BATCH
from bcnet.space.inputs import arguments
from bcnet.training.task import Task

KEY = "bcnet.preprocessing"
FORMAT, FORMAT_WITH_PREPROCESSING = 1, 2  # a program written for the first would normalise twice
SCRIPT = Path(__file__).with_name("predict.py")


def preprocessing(
    model: nn.Module, data: ImageData, batch: int | None, own: Preprocessing | None = None
) -> str:
    """The JSON for a network that takes `batch` images at once, or any number of them if that is None.

    With `own`, the file pre-processes images itself.
    """
    example = data.example(1)
    args, kwargs = arguments(example)
    model.eval()
    with torch.no_grad():
        outputs = model(*args, **kwargs)
    inputs = kwargs or (args[0] if len(args) == 1 else args)
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    found: dict[str, Any] = {
        "format": FORMAT,
        "inputs": [
            {
                "name": name,
                "shape": [BATCH if batch is None else batch, *leaf.shape[1:]],
                "dtype": str(leaf.dtype).removeprefix("torch."),
            }
            for name, leaf in zip(tensor_names(inputs, "input"), leaves, strict=True)
        ],
        "outputs": tensor_names(outputs, "output"),
        "classes": list(data.classes),
    }
    rules: dict[str, Any] = {}
    if data.mean:  # a Dataset's items are final: only its author knows what it does to images
        found |= {"layout": "NCHW", "colour": data.colour, "pixel_range": [0, 255]}
        rules = {
            "mean": list(data.mean),
            "std": list(data.std),
            "formula": "(pixel - 255 * mean) / (255 * std)",
        }
    if data.stored:
        found["decode"] = {"orientation": "EXIF", "grey_16_bit": "value / 257", "transparency": "on white"}
        rules["resize"] = {
            "shorter_side": data.stored.side,
            "filter": "bilinear, antialiased",
            "crop": "centre",
        }
    if own is None:
        return json.dumps(found | rules)
    shape = own.shape(BATCH if batch is None else batch)
    found |= {"inputs": [{"name": INPUT, "shape": shape, "dtype": "uint8"}], "layout": LAYOUT}
    return json.dumps({**found, "format": FORMAT_WITH_PREPROCESSING, "in_file": rules})


def beside_onnx(data: ImageData, task: Task) -> dict[str, bytes]:
    """Files beside model.onnx for stored images: the list of tested files, and a program to classify.

    The program cannot do what custom `eval_transforms` do: it is left out with these.
    """
    if not data.stored:
        return {}
    parts = {"validation": data.val, "test": data.test}
    names = {name: list(part.names) for name, part in parts.items() if isinstance(part, Split)}
    files = {"test_files.json": json_bytes({data.stored.kind: data.stored.source, **names})}
    if task.by_cross_entropy and data.classes and data.eval_transforms is None:
        files["predict.py"] = SCRIPT.read_bytes()
    return files
