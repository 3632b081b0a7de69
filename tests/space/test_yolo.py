"""Ultralytics' YOLO: the guide's code is run unchanged. Skipped without ultralytics."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import PROFILE

from bcnet.cli import main
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.runs import Run
from bcnet.space.discover import discover_space
from bcnet.space.supernet import cut

GUIDE = (Path(__file__).parent.parent.parent / "docs/guides/yolo.md").read_text(encoding="utf-8")
SMALL = """
[space]
bins = 2
min_width = 0.4
[train]
epochs = 1
batch_size = 8
[search]
latency = "80%"
population = 4
generations = 1
measured = 1
recalibration_images = 16
[slice]
epochs = 1
[export]
latency_tolerance = 20.0
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None,
    reason="ultralytics is not installed (AGPL: it is not a dependency); pip install ultralytics",
)


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The guide's own.py, in an empty working folder, with fewer images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))  # else Ultralytics writes into the home folder
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    code = blocks("python").replace("Shapes(200, 0), Shapes(50, 1)", "Shapes(32, 0), Shapes(8, 1)")
    Path("own.py").write_text(code, encoding="utf-8")
    yield importlib.import_module("own")
    sys.modules.pop("own", None)


@pytest.mark.filterwarnings("ignore")  # of Ultralytics
def test_a_yolo_is_searchable_but_for_its_outputs_and_sliced_as_onnx(own: ModuleType) -> None:
    torch.manual_seed(0)
    model, images = own.network().eval(), torch.rand(1, 3, own.SIDE, own.SIDE)
    space = discover_space(model, images)
    assert len(space.groups) == 51
    assert space.macs(space.smallest()) < 0.05 * space.macs(space.largest())
    assert {entry.name.removeprefix("yolo.model.22.") for entry in space.frozen} == {
        *(f"cv{branch}.{level}.2" for branch in (2, 3) for level in range(3)),
        "dfl.conv",
    }
    graph = OnnxSupernet(model, space, images)
    assert graph.sliceable
    widths = space.random(np.random.default_rng(0))
    session = onnxruntime.InferenceSession(graph.variant(widths), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": images.numpy()})
    with torch.no_grad():
        expected = cut(graph.model, space, widths)(images).numpy()
    assert found.shape == (1, 4 + 2, 8**2 + 4**2 + 2**2)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore")
def test_the_guides_metric_counts_a_box_once(own: ModuleType) -> None:
    _, targets = own.collate([(torch.zeros(3, 64, 64), torch.tensor([[0.0, 0.5, 0.5, 0.25, 0.25]]))])
    right, twice, elsewhere = ([32.0, 32.0, 16.0, 16.0], [31.0, 33.0, 16.0, 16.0], [8.0, 8.0, 9.0, 9.0])

    def score(*boxes: list[float]) -> Any:
        sure = [[0.9 - 0.1 * number, 0.0] for number in range(len(boxes))]
        outputs = torch.tensor([[*box, *own] for box, own in zip(boxes, sure, strict=True)]).T[None]
        return own.map50([(outputs, targets)])

    assert score(right) == pytest.approx(0.995)  # as Ultralytics integrates it
    assert score(right, twice) == pytest.approx(0.995)
    assert score(elsewhere) == 0
    assert score(elsewhere, right) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_guide_is_run_from_training_to_a_verified_file(own: ModuleType) -> None:
    Path("bcnet.toml").write_text(blocks("toml").partition("[search]")[0] + SMALL, encoding="utf-8")
    Path("hw_profiles").mkdir()
    Path("hw_profiles/cpu.toml").write_text(PROFILE, encoding="utf-8")
    assert main(["run"]) == 0
    folder = Run.named("default").stage("export").folder
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": np.zeros((1, 3, 64, 64), np.float32)})
    assert found.shape == (1, 6, 84)
