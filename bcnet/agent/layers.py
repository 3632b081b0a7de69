"""An engine's layers as TensorRT's inspector lists them, by its module or by trtexec."""

import re
from typing import Any, Dict, Sequence

ORIGIN = re.compile(r"\[ONNX Layer: [^\]]*\]")


def origins(layers: Sequence[Any]) -> Dict[str, str]:
    """The ONNX nodes that each layer was made of, as text that follows its name, where the engine tells.

    Engines without details list mere names.
    """
    return {
        layer["Name"]: "".join(" " + part for part in ORIGIN.findall(layer["Metadata"]))
        for layer in layers
        if isinstance(layer, dict) and "Name" in layer and layer.get("Metadata")
    }
