"""ONNX files of any origin, made ready to be timed: shapes, types, external data, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bcnet.errors import NetworkError, UsageError
from bcnet.measure.network_file import Shapes, check_names, inputs_of, read_network

Side = int | str | None


def saved(path: Path, *inputs: tuple[str, int, list[Side] | None], **at: Any) -> Path:
    """A file with these inputs (name, type, shape), each of which goes through an Identity."""
    values = [helper.make_tensor_value_info(*entry) for entry in inputs]
    outputs = [helper.make_tensor_value_info(f"{name}_out", kind, sides) for name, kind, sides in inputs]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in inputs]
    graph = helper.make_graph(nodes, "inputs", values, outputs, at.pop("weights", ()))
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path, **at
    )
    return path


def shapes_of(path: Path, shapes: Shapes | None = None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the inputs are, also in the file that the runtime gets."""
    found = read_network(path, shapes or Shapes())
    there = inputs_of(onnx.load_from_string(found.content).graph)
    sides = [tuple(dim.dim_value for dim in entry.type.tensor_type.shape.dim) for entry in there]
    assert sides == [own.shape for own in found.inputs]
    return {own.name: (own.dtype, own.shape) for own in found.inputs}


IMAGE = ("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])
IDS = ("ids", TensorProto.INT64, ["batch", "sequence"])
MASK = ("mask", TensorProto.BOOL, ["batch", "sequence"])


def test_a_dynamic_batch_is_that_of_the_setting_in_every_input(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.onnx",
        ("half", TensorProto.FLOAT16, ["batch", 3]),
        ("unnamed", TensorProto.UINT8, [None, 2]),
        ("negative", TensorProto.INT8, [-1, 2]),
        ("again", TensorProto.FLOAT, [7, "batch"]),
        ("scalar", TensorProto.INT32, []),
    )
    assert shapes_of(path, Shapes(batch=4)) == {
        "half": ("float16", (4, 3)),
        "unnamed": ("uint8", (4, 2)),
        "negative": ("int8", (4, 2)),
        "again": ("float32", (7, 4)),
        "scalar": ("int32", ()),
    }
    output = onnx.load_from_string(read_network(path, Shapes(batch=4)).content).graph.output[0]
    assert [dim.dim_value for dim in output.type.tensor_type.shape.dim] == [4, 3]


def test_a_given_shape_names_the_same_dimensions_of_other_inputs(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.onnx", MASK, IDS)
    given = Shapes(by_name={"ids": (2, 128)})
    assert shapes_of(path, given) == {"mask": ("bool", (2, 128)), "ids": ("int64", (2, 128))}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (
            {},
            "a.onnx: input 'image' has no fixed shape: batch x 3 x height x width; give it, e.g. --input "
            "image=1x3x224x224",
        ),
        (
            {"image": (1, 3, 8)},
            "a.onnx: --input image=1x3x8: this input has 4 dimensions: batch x 3 x height x width",
        ),
        ({"image": (1, 4, 8, 8)}, "a.onnx: --input image=1x4x8x8: dimension 1 is 3 in the network"),
    ],
)
def test_shapes_that_are_missing_or_do_not_fit_are_refused_with_the_shape_of_the_file(
    given: dict[str, tuple[int, ...]], error: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.onnx", IMAGE)
    with pytest.raises(UsageError) as caught:
        read_network(path, Shapes(by_name=given))
    assert str(caught.value) == error


def test_a_shape_for_an_input_of_neither_file_is_refused_with_all_inputs(tmp_path: Path) -> None:
    shapes = Shapes(by_name={"image": (1, 3, 8, 8), "ids": (1, 4)})
    files = [read_network(saved(tmp_path / "a.onnx", entry), shapes) for entry in (IMAGE, IDS)]
    check_names(files, shapes)
    with pytest.raises(UsageError) as caught:
        check_names(files, Shapes(by_name={"picture": (1,)}))
    assert str(caught.value) == "--input: there is no input 'picture'; the network's inputs: image, ids"


def test_an_input_of_unknown_rank_needs_a_shape(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.onnx", ("x", TensorProto.FLOAT, None))
    with pytest.raises(UsageError, match=r"has no fixed shape: unknown; give it, e.g. --input x=1x3x224x224"):
        read_network(path, Shapes())
    assert shapes_of(path, Shapes(by_name={"x": (2, 5)})) == {"x": ("float32", (2, 5))}


def test_two_given_shapes_must_agree_on_a_named_dimension(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.onnx", MASK, IDS)
    with pytest.raises(UsageError, match="--input ids=2x64: dimension 1 is 128 in the network"):
        read_network(path, Shapes(by_name={"mask": (2, 128), "ids": (2, 64)}))


def test_a_fixed_batch_is_changed_only_if_that_was_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.onnx", ("x", TensorProto.FLOAT, [2, 5]))
    assert shapes_of(path, Shapes(batch=8)) == {"x": ("float32", (2, 5))}
    assert shapes_of(path, Shapes(batch=8, change_batch=True)) == {"x": ("float32", (8, 5))}


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (TensorProto.STRING, "input 'x' is of type string, for which no values can be generated"),
        (TensorProto.BFLOAT16, "input 'x' is of type bfloat16, for which no values can be generated"),
    ],
)
def test_types_without_values_are_refused(kind: int, error: str, tmp_path: Path) -> None:
    with pytest.raises(NetworkError) as caught:
        read_network(saved(tmp_path / "a.onnx", ("x", kind, [1])), Shapes())
    assert str(caught.value) == error


def test_inputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [sequence], [sequence])
    onnx.save(helper.make_model(graph), tmp_path / "a.onnx")
    with pytest.raises(NetworkError, match="input 'x' is sequence, not a tensor: it cannot be timed"):
        read_network(tmp_path / "a.onnx", Shapes())


def test_external_data_becomes_part_of_the_content(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(np.arange(64, dtype=np.float32), "w")]
    x = ("x", TensorProto.FLOAT, [1])
    path = saved(tmp_path / "a.onnx", x, weights=weights, save_as_external_data=True, size_threshold=0)
    (data,) = {*tmp_path.iterdir()} - {path}
    (found,) = onnx.load_from_string(read_network(path, Shapes()).content).graph.initializer
    assert numpy_helper.to_array(found).tolist() == list(range(64))
    data.unlink()
    with pytest.raises(NetworkError, match=r"the external data of .*a.onnx cannot be read \("):
        read_network(path, Shapes())


@pytest.mark.parametrize("content", [b"", b"no ONNX file", b"\x08\x07\x12\x04made"])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(NetworkError, match=r"a.onnx is not an ONNX file; export the network to one"):
        read_network(tmp_path / "a.onnx", Shapes())


def test_a_folder_and_a_missing_file_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: it is a folder, not a file"):
        read_network(tmp_path, Shapes())
    with pytest.raises(UsageError, match=r"none.onnx cannot be read: No such file or directory; give the pa"):
        read_network(tmp_path / "none.onnx", Shapes())
    (tmp_path / "nine.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match=r"No such file or directory; did you mean 'nine\.onnx'\?"):
        read_network(tmp_path / "none.onnx", Shapes())


def test_an_engine_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.engine"
    path.write_bytes(b"ftrt and more")
    found = read_network(path, Shapes())
    assert (found.content, found.inputs, found.batch, found.graph) == (b"ftrt and more", (), None, None)
    with pytest.raises(UsageError, match=r"--input is for ONNX files; .*a.engine is an engine"):
        read_network(path, Shapes(by_name={"x": (1,)}))


@pytest.mark.parametrize(
    ("kind", "operator", "precision"),
    [
        (np.float32, "Relu", "fp32"),
        (np.float16, "Relu", "fp16"),
        (np.float32, "QuantizeLinear", "int8"),
    ],
)
def test_the_precision_is_that_of_weights_and_operators(
    kind: type, operator: str, precision: str, tmp_path: Path
) -> None:
    weights = [numpy_helper.from_array(np.zeros(1, kind), "w")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node(operator, ["x", "w"], ["y"])], "g", [x], [x], weights)
    onnx.save(helper.make_model(graph), tmp_path / "a.onnx")
    assert read_network(tmp_path / "a.onnx", Shapes()).precision == precision
