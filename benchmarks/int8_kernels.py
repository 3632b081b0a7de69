"""What ONNX Runtime's CPU kernels make of INT8: latency of signed and of unsigned activations beside fp32.

    OMP_NUM_THREADS=1 python benchmarks/int8_kernels.py

Both are symmetric, with int8 weights and a scale a channel (`bcnet.onnx_export.int8`). Networks of
torchvision without trained weights, 224 x 224, batch 1, one thread; a network's files are timed in turn,
twelve times. Prints a Markdown table: the fastest median in ms, operators of the graph that really runs.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision
from onnx import ModelProto

from bcnet.onnx_export.int8 import quantized
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.runtimes import runtime_here

SHAPE = (1, 3, 224, 224)
ROUNDS = 12
SHOWN = ("QLinearConv", "Conv", "QuantizeLinear", "DequantizeLinear")


def files_of(name: str) -> dict[str, ModelProto]:
    """The network in floats, and in integers with either kind of activations."""
    torch.manual_seed(0)
    floats = to_onnx(getattr(torchvision.models, name)(weights=None), SHAPE)
    rng = np.random.default_rng(0)
    feeds = [{"input": rng.standard_normal(SHAPE, dtype=np.float32)} for _ in range(4)]
    return {
        "fp32": floats,
        "int8, signed": quantized(floats, feeds, unsigned=False),
        "int8, unsigned": quantized(floats, feeds, unsigned=True),
    }


def operators(content: bytes) -> Counter[str]:
    """How often each operator stands in the graph that ONNX Runtime really runs."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return Counter(node.op_type for node in graph.node)


def main() -> None:
    """Time the networks and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "names", nargs="*", default=["mobilenet_v2", "resnet18", "resnet50", "efficientnet_b0"]
    )
    names = parser.parse_args().names
    here = runtime_here("onnxruntime").fingerprint()
    print(f"ONNX Runtime {here['runtime_version']}, {here['processor']}, one thread\n")
    print("| network | file | ms | " + " | ".join(SHOWN) + " |\n|---|---|---|" + "---|" * len(SHOWN))
    for name in names:
        contents = {kind: proto.SerializeToString() for kind, proto in files_of(name).items()}
        times: dict[str, list[float]] = {kind: [] for kind in contents}
        for _ in range(ROUNDS):
            for kind, content in contents.items():
                times[kind].append(
                    float(np.median(runtime_here("onnxruntime").time_network(content, 50, 0.25, 8)))
                )
        for kind, content in contents.items():
            found = operators(content)
            counts = " | ".join(str(found[operator]) for operator in SHOWN)
            print(f"| {name} | {kind} | {min(times[kind]):.2f} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
