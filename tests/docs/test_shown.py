"""Output that pages show is what the commands print; of a whole run: tests/pipeline/test_trained_route.py.

The sentence of the guide to the report is compared in tests/report/test_report_content.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import PROFILE
from onnx import TensorProto, helper, numpy_helper

from bcnet.cli import main
from tests.docs.shown import shape, shown


def classifier(path: str, classes: int) -> None:
    """A network of a convolution, a clipped ReLU and a classifier, with the layers' names of MobileNetV2."""
    shapes = {"features.0.0.weight": (32, 3, 3, 3), "classifier.1.weight": (classes, 32)}
    weights = [numpy_helper.from_array(np.ones(own, np.float32), name) for name, own in shapes.items()]
    limits = [numpy_helper.from_array(np.float32(limit), f"{limit}") for limit in (0, 6)]
    steps = {
        "Conv": "features.0.0.weight",
        "Clip": "0 6",
        "GlobalAveragePool": "",
        "Flatten": "",
        "Gemm": "classifier.1.weight",
    }
    nodes, entering = [], "image"
    for op, more in steps.items():
        transposed = {"transB": 1} if op == "Gemm" else {}
        nodes.append(helper.make_node(op, [entering, *more.split()], [f"to {op}"], name=op, **transposed))
        entering = f"to {op}"
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    logits = helper.make_tensor_value_info(entering, TensorProto.FLOAT, [1, classes])
    graph = helper.make_graph(nodes, "classifier", [image], [logits], [*weights, *limits])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


@pytest.mark.usefixtures("folder")
def test_a_file_is_timed_as_the_guide_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("hw_profiles").mkdir()
    Path("hw_profiles/cpu.toml").write_text(PROFILE, encoding="utf-8")
    classifier("model.onnx", 40_000)
    classifier("smaller.onnx", 10)
    brief = ["--layers", "2", "--rounds", "4", "--seconds", "0.04"]
    assert main(["time", "model.onnx", "--against", "smaller.onnx", *brief]) == 0
    printed = re.sub(r"(\(onnxruntime, \S+, ).*\)", r"\1AMD EPYC)", capsys.readouterr().out)
    quiet = [line for line in shape(printed) if not line.startswith("warning: ")]
    assert quiet == shape(shown("docs/guides/timing.md", "model.onnx on"))


def test_a_row_of_a_latency_table_has_the_form_that_the_reference_shows(finished: tuple[Path, Any]) -> None:
    page = json.loads(shown("docs/reference/latency-table-schema.md", '{"layer"'))
    table = json.loads((finished[0] / "latency_tables/cpu.json").read_text(encoding="utf-8"))
    rows = [row for block in table["settings"] for row in block["rows"]]

    def form(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: form(own) for key, own in value.items()}
        return [form(own) for own in value] if isinstance(value, list) else type(value)

    assert form(page) in [form(row) for row in rows]
