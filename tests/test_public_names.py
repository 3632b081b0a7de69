"""`import bcnet` offers what it promises, and loads it on first use only."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bcnet

HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "pydantic", "sklearn", "rich")


@pytest.mark.parametrize("name", bcnet.__all__)
def test_every_public_name_resolves_to_something_documented(name: str) -> None:
    value = getattr(bcnet, name)
    assert value.__name__ == name
    assert (value.__doc__ or "").strip()


def test_stages_have_their_functions_and_not_their_modules_names() -> None:
    for name in ("train", "build_lut", "search", "slice", "export", "verify"):
        assert inspect.isfunction(getattr(bcnet, name))


def test_dir_lists_every_public_name() -> None:
    assert set(bcnet.__all__) <= set(dir(bcnet))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'bcnet' has no attribute 'serach'"):
        bcnet.serach  # noqa: B018


def test_type_checkers_see_every_public_name() -> None:
    source = Path(bcnet.__file__).read_text(encoding="utf-8")
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    seen = {
        alias.asname for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == set(bcnet.__all__)


def test_import_loads_no_heavy_package() -> None:
    code = f"import bcnet, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def shape(function: Callable[..., object]) -> list[str]:
    """Names of the parameters, keyword-only ones with a star before."""
    parameters = inspect.signature(function).parameters.values()
    return [("*" if p.kind is p.KEYWORD_ONLY else "") + p.name for p in parameters]


def test_discover_space_takes_a_model_an_example_and_keywords() -> None:
    found = shape(bcnet.discover_space)
    assert found[:2] == ["model", "example_input"]
    assert {"*bins", "*channel_multiple"} <= set(found[2:])
    assert all(name.startswith("*") for name in found[2:])


def test_spaces_are_asked_for_widths_and_costs() -> None:
    space = bcnet.WidthSpace
    assert shape(space.random) == ["self", "rng"]
    assert shape(space.largest) == shape(space.smallest) == ["self"]
    assert shape(space.macs) == shape(space.params) == ["self", "widths"]


def test_paths_are_forwarded_and_cut_on_the_left_by_default() -> None:
    assert shape(bcnet.forward_path)[:5] == ["model", "space", "widths", "x", "side"]
    assert shape(bcnet.cut)[:4] == ["model", "space", "widths", "side"]
    for function in (bcnet.forward_path, bcnet.cut):
        parameters = inspect.signature(function).parameters
        assert parameters["side"].default == "left"
        assert all(
            p.default is not p.empty for p in list(parameters.values())[list(parameters).index("side") :]
        )


def test_search_takes_two_functions_and_settings() -> None:
    found = shape(bcnet.search)
    assert found[:4] == ["space", "latency_of", "score_of", "settings"]
    assert all(name.startswith("*") for name in found[4:])


def test_a_latency_table_is_loaded_from_a_path() -> None:
    assert shape(bcnet.LatencyTable.load) == ["path"]


def test_promised_types_are_returned() -> None:
    def returned(function: Callable[..., object]) -> object:
        return inspect.get_annotations(function, eval_str=True)["return"]

    from torch import nn

    assert returned(bcnet.discover_space) is bcnet.WidthSpace
    assert returned(bcnet.cut) is nn.Module
    assert returned(bcnet.search) is bcnet.SearchResult
    assert returned(bcnet.WidthSpace.random) is bcnet.Widths
