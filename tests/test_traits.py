"""What runtimes and precisions can do, and that nothing but their own modules compares their names."""

import re
from pathlib import Path

import pytest

import bcnet
from bcnet.config import ExportConfig
from bcnet.hw_profiles import Peaks, load_profiles
from bcnet.traits import PRECISIONS, RUNTIMES, is_processor, runtime_by

PACKAGE = Path(bcnet.__file__).parent
# The runtimes' own modules, and the agent, which runs without the package.
IMPLEMENTATIONS = ("traits.py", "runtimes/", "agent/")
NAMES = "|".join((*PRECISIONS, *RUNTIMES, *(own.key for own in RUNTIMES.values())))
COMPARED = re.compile(rf'[!=]= "({NAMES})"|"({NAMES})" [!=]=|\bin \("({NAMES})"|startswith\("tensorrt')


def test_only_the_modules_of_runtimes_compare_their_names() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not str(path.relative_to(PACKAGE)).startswith(IMPLEMENTATIONS)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if COMPARED.search(line)
    ]
    assert found == []


def test_every_precision_has_its_peak_and_its_tolerance() -> None:
    assert {name: own.weight_bytes for name, own in PRECISIONS.items()} == {"fp32": 4, "fp16": 2, "int8": 1}
    assert [name for name, own in PRECISIONS.items() if own.full] == ["fp32"]
    assert [name for name, own in PRECISIONS.items() if own.calibrated] == ["int8"]
    for own in PRECISIONS.values():
        assert own.peak in Peaks.model_fields
        assert f"{own.prefix}accuracy_tolerance" in ExportConfig.model_fields


def test_engines_are_tensorrts_and_only_those_for_rtx_are_built_ahead_of_time() -> None:
    assert {own.flavour: own.name for own in RUNTIMES.values() if own.engines} == {
        "tensorrt": "tensorrt",
        "rtx": "tensorrt-rtx",
    }
    assert [name for name, own in RUNTIMES.items() if own.ahead_of_time] == ["tensorrt-rtx"]
    assert {name for name, own in RUNTIMES.items() if own.fused_profile and not own.engines} == {"openvino"}


@pytest.mark.parametrize(
    ("program", "name"), [("trtexec", "tensorrt"), ("onnxruntime", "onnxruntime"), ("openvino", "openvino")]
)
def test_a_program_on_the_device_belongs_to_a_runtime(program: str, name: str) -> None:
    assert runtime_by(program).name == name


def test_rows_of_a_processor_are_those_of_onnx_runtime_without_another_provider() -> None:
    profiles, _ = load_profiles()
    keys = {name: profile.setting[0] for name, profile in profiles.items()}
    assert is_processor(keys["cpu"])
    others = ("onnxruntime:cuda", "openvino", "tensorrt", "torch-cuda")
    assert not any(is_processor(key) for key in others)
