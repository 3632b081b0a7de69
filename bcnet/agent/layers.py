"""The layers of an engine as TensorRT's inspector lists them, through its Python module or trtexec."""

import re
from typing import Any, Dict, Sequence

ORIGIN = re.compile(r"\[ONNX Layer: [^\]]*\]")


def origins(layers: Sequence[Any]) -> Dict[str, str]:
    """The ONNX nodes of each layer, as text to append to its name, if the engine has this information.

    Engines that were built without detailed profiling verbosity list only names.
    """
    return {
        layer["Name"]: "".join(" " + part for part in ORIGIN.findall(layer["Metadata"]))
        for layer in layers
        if isinstance(layer, dict) and "Name" in layer and layer.get("Metadata")
    }
