"""Hardware profiles: what is shipped, a user's own files, aliases, and files that cannot be used."""

import json
from pathlib import Path

import pytest

from bcnet.cli import main
from bcnet.hw_profiles import SHIPPED, load_profile, load_profiles, profile_file
from tests.conftest import Refused

pytestmark = pytest.mark.usefixtures("folder")

NAMES = (
    *(
        "cpu",
        "cpu-openvino",
        "raspberry-pi-5",
        "jetson-nano",
        "jetson-xavier-nx",
        "jetson-orin-nano",
        "jetson-orin-nx",
    ),
    *("jetson-agx-orin", "t4", "a10", "l4", "a100", "rtx-4090", "h100", "h200"),
)
OWN = 'description = "mine"\nruntime = "onnxruntime"\n'


def own(name: str, text: str = OWN) -> Path:
    Path("hw_profiles").mkdir(exist_ok=True)
    path = Path("hw_profiles") / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_profiles_are_those_of_the_documentation() -> None:
    profiles, broken = load_profiles()
    assert sorted(profiles) == sorted(NAMES)
    assert broken == {}
    page = (Path(__file__).parents[1] / "docs" / "reference" / "devices.md").read_text(encoding="utf-8")
    for name, profile in profiles.items():
        assert f"`{name}`" in page
        if profile.roofline:
            assert f"| {profile.roofline.bandwidth_gb_s:g} |" in page


def test_every_device_but_this_processor_has_peaks_with_a_source_at_its_own_precision() -> None:
    profiles, _ = load_profiles()
    assert profiles.pop("cpu").roofline is None
    assert profiles.pop("cpu-openvino").roofline is None
    for name, profile in profiles.items():
        assert profile.roofline is not None, name
        assert profile.roofline.teraops(profile.precision), name
        assert len(profile.roofline.source) > 20, name
        if profile.runtime.startswith("tensorrt"):
            assert profile.compute_capability, name
            assert profile.roofline.launch_us, name


def test_narrower_numbers_are_never_slower_and_no_alias_is_given_twice() -> None:
    profiles, _ = load_profiles()
    names = [name for p in profiles.values() for name in (p.name, *p.aliases)]
    assert len(names) == len(set(names))
    for profile in profiles.values():
        if profile.roofline:
            peaks = [profile.roofline.teraops(precision) for precision in ("fp32", "fp16", "int8")]
            known = [peak for peak in peaks if peak is not None]
            assert known == sorted(known)


def test_an_alias_resolves_to_its_profile() -> None:
    assert load_profile("jetson").name == "jetson-orin-nano"
    assert profile_file("jetson") == SHIPPED / "jetson-orin-nano.toml"


def test_a_users_own_file_comes_first_by_name_and_by_alias() -> None:
    own("t4", f'{OWN}aliases = ["jetson"]\n')
    assert load_profile("t4").description == "mine"
    assert load_profile("jetson").name == "t4"
    own("jetson")
    assert load_profile("jetson").name == "jetson"


def test_another_provider_is_part_of_the_setting() -> None:
    own("gpu", f'{OWN}provider = "cuda"\nbatch = 4\n')
    assert load_profile("gpu").setting == ("onnxruntime:cuda", "fp32", 4, 1, "default")
    assert load_profile("cpu").setting == ("onnxruntime", "fp32", 1, 1, "default")
    own("igpu", 'description = "mine"\nruntime = "openvino"\nprovider = "GPU"\n')
    assert load_profile("igpu").setting == ("openvino:gpu", "fp32", 1, 1, "default")
    assert load_profile("cpu-openvino").setting == ("openvino", "fp32", 1, 1, "default")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runtime = ", "bad.toml is not TOML"),
        ('description = ""\nruntime = "magic"', "bad.toml: runtime: Input should be 'onnxruntime'"),
        (f"{OWN}thread = 3", "bad.toml: thread"),
        (f'{OWN}name = "bad"', "a device is named by its file"),
        (f'{OWN}compute_capability = "sm87"', "bad.toml: compute_capability"),
        ('description = ""\nruntime = "tensorrt"\nprovider = "cuda"', "only ONNX Runtime and OpenVINO have"),
        (f"{OWN}[roofline]\nbandwidth_gb_s = 10.0", "bad.toml: roofline.source: Field required"),
        (f'{OWN}[roofline]\nbandwidth_gb_s = 0\nsource = "x"', "bad.toml: roofline.bandwidth_gb_s"),
        (f'{OWN}[roofline]\nbandwidth_gb_s = 1\nfp32_tflops = inf\nsource = "x"', "roofline.fp32_tflops"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_for_its_own_device_only(
    text: str, message: str, refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    own("bad", text)
    assert message in refused(1, "devices", "bad")
    assert load_profile("cpu").name == "cpu"
    assert load_profile("jetson").name == "jetson-orin-nano"
    capfd.readouterr()
    assert main(["devices", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert message in found["bad"]["error"]
    assert found["cpu"]["runtime"] == "onnxruntime"
    assert main(["devices"]) == 0
    assert "cannot be used" in capfd.readouterr().out


def test_an_unknown_device_is_wrong_usage_as_a_flag_and_an_error_in_the_configuration(
    refused: Refused,
) -> None:
    assert "unknown device 'jetsn' (did you mean 'jetson'?)" in refused(2, "inspect", "--device", "jetsn")
    Path("bcnet.toml").write_text('device = "jetsn"', encoding="utf-8")
    assert "unknown device 'jetsn' (did you mean 'jetson'?)" in refused(1, "inspect")


def test_one_device_is_shown_with_its_file_and_the_source_of_its_peaks(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["devices", "jetson", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["name"] == "jetson-orin-nano"
    assert found["file"].endswith("hw_profiles/jetson-orin-nano.toml")
    assert found["aliases"] == ["jetson"]
    assert found["roofline"]["bandwidth_gb_s"] == 68.0
    assert "data sheet" in found["roofline"]["source"]
    assert main(["devices", "t4"]) == 0
    out = capfd.readouterr().out
    assert "compute_capability     7.5" in out
    assert "  source" in out
