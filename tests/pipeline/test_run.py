"""`bcnet run` end to end on a tiny project, and what stages do with damaged or foreign results."""

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import CONFIG, LargestFile, Refused, contents
from safetensors.torch import load_file

from bcnet import LatencyTable
from bcnet.cli import main
from bcnet.plain import milliseconds
from bcnet.runs import digest

STAGES = ["train", "build-lut", "search", "slice", "export", "compare"]
FILES = {
    "train": {"supernet.safetensors", "supernet.jsonl", "space.json", "curve.csv"},
    "build-lut": {"report.json"},
    "search": {"result.json", "history.json", "pareto.json"},
    "slice": {"model.safetensors", "widths.json", "model.pt2", "result.json", "curve.csv"},
    "export": {"model.onnx", "verify.json", "answers.json"},
    "compare": {"result.json"},
}
RUN = Path("runs/default")
TABLE = Path("latency_tables/cpu.json")
Finished = tuple[Path, dict[str, Any]]


def configure(old: str, new: str) -> None:
    assert old in CONFIG
    Path("bcnet.toml").write_text(CONFIG.replace(old, new), encoding="utf-8")


def read(path: str) -> Any:
    return json.loads((RUN / path).read_text(encoding="utf-8"))


def only_object(out: str) -> dict[str, Any]:
    """Standard output as the one JSON object that it must be; NaN and Infinity are not JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    value = json.loads(out, parse_constant=refuse)
    assert isinstance(value, dict)
    assert out.count("\n") == 1
    return value


def test_a_run_leaves_every_stage_finished_with_its_files(finished: Finished) -> None:
    folder = finished[0] / RUN
    assert sorted(path.name for path in folder.iterdir()) == sorted([*STAGES, "log.jsonl", "report"])
    for stage, files in FILES.items():
        assert {path.name for path in (folder / stage).iterdir()} == {*files, "manifest.json"}
    assert (finished[0] / TABLE).stat().st_size > 0


def test_a_dry_run_says_what_would_run_and_why_and_changes_nothing(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(project)
    assert main(["run", "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines == [
        "stage          takes  why",
        *(f"{stage:<10}            already done" for stage in STAGES),
        "all              0 s",
    ]
    assert main(["run", "--dry-run", "--json", "--latency", "61%"]) == 0
    stages = only_object(capfd.readouterr().out)["stages"]
    assert [(own["name"], own["reason"]) for own in stages] == [
        ("train", None),
        ("build-lut", None),
        ("search", "search settings changed"),
        ("slice", "follows search"),
        ("export", "follows search"),
        ("compare", "follows search"),
    ]
    assert [own["seconds"] is None for own in stages] == [True, True, False, False, False, False]
    assert all(own["seconds"] > 0 for own in stages[2:])
    assert contents(project) == before


def test_a_run_compares_the_searched_network_with_others_of_as_many_passes(finished: Finished) -> None:
    networks = finished[1]["networks"]
    assert [entry["name"] for entry in networks] == [
        "full (from scratch)",
        "uniform (from scratch)",
        "found (inherited)",
        "found (from scratch)",
    ]
    full, uniform, searched, scratch = networks
    assert (scratch["widths"], scratch["params"]) == (searched["widths"], searched["params"])
    assert full["params"] == 1_914_490
    for narrowed in (uniform, searched):
        assert all(narrow <= wide for narrow, wide in zip(narrowed["widths"], full["widths"], strict=True))
        assert narrowed["params"] < full["params"]
        assert narrowed["macs"] < full["macs"]
        assert narrowed["size_bytes"] < full["size_bytes"]
    for entry in networks:
        assert 0 <= entry["accuracy_low"] < entry["accuracy"] < entry["accuracy_high"] <= 1
        assert 0 < entry["latency"]["median_ms"] <= entry["latency"]["p90_ms"]
        assert entry["passes"] == 3  # one epoch of both sides, one of fine-tuning
    assert finished[1]["test_images"] == 60
    assert finished[1]["predicted_ms"] > 0
    assert finished[1]["budget"]["ms"] > 0


def test_the_winner_is_the_same_network_in_every_stage(project: Path) -> None:
    best = read("search/result.json")["best"]
    assert best["measured"]["median_ms"] <= read("search/result.json")["budget"]["ms"]
    assert list(read("slice/widths.json")["widths"].values()) == best["widths"]
    assert read("compare/result.json")["networks"][2]["widths"] == best["widths"]
    verified = read("export/verify.json")
    assert verified["passed"] is True
    assert verified["shapes_match"] is True
    assert verified["failures"] == []
    assert verified["predicted_ms"] == best["predicted_ms"]
    assert verified["output_error"] < 1e-3
    assert verified["accuracy"] == pytest.approx(read("slice/result.json")["test_accuracy_after"], abs=0.02)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # PyTorch 2.11's own loader
def test_the_exported_files_agree_without_bcnet(project: Path) -> None:
    session = onnxruntime.InferenceSession(RUN / "export/model.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    (entry,) = session.get_inputs()
    assert entry.shape == [1, 1, 16, 16]
    assert json.loads(metadata["classes"]) == [str(digit) for digit in range(10)]
    assert json.loads(metadata["preprocessing"])["scale"] == pytest.approx(1 / 255)
    assert metadata["widths"] == "-".join(map(str, read("search/result.json")["best"]["widths"]))
    image = np.random.default_rng(0).standard_normal((1, 1, 16, 16), dtype=np.float32)
    outputs = session.run(None, {entry.name: image})[0]
    program = torch.export.load(RUN / "slice/model.pt2").module()
    expected = program(torch.from_numpy(image)).detach().numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-3)
    assert load_file(RUN / "slice/model.safetensors")["6.weight"].shape[0] == 10


def test_the_log_has_every_stage_epoch_generation_and_followed_subnet(project: Path) -> None:
    lines = [json.loads(line) for line in (RUN / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    events = [line["event"] for line in lines]
    assert {line["command"] for line in lines} == {"run"}
    assert (events[0], events[-1]) == ("command started", "command finished")
    finished = [line for line in lines if line["event"] == "stage finished"]
    assert [line["stage"] for line in finished] == STAGES
    assert finished[-1]["result"]["networks"] == read("compare/result.json")["networks"]
    epochs = [line for line in lines if line["event"] == "epoch"]
    trained = [line for line in epochs if line["task"] == "training the supernet"]
    curve = (RUN / "train/curve.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [f"{line['step']},{line['loss']:.5f}".rstrip("0") for line in trained] == [
        line.rstrip("0") for line in curve
    ]
    assert {line["steps"] for line in trained} == {len(trained)}
    probes = [line for line in lines if line["event"] == "subnets"]
    assert probes[0]["step"] == 1
    names = ("widest", "narrowest", "random 1", "random 2", "random 3")
    assert all(0 <= probes[0][name] <= 1 for name in names)
    generations = [line for line in lines if line["event"] == "generation"]
    assert [line["step"] for line in generations] == list(range(len(generations)))
    measured = [line["widths"] for line in lines if line["event"] == "measured"]
    assert read("search/result.json")["best"]["widths"] in measured


def test_a_second_run_skips_every_stage_and_prints_the_table(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*") if path.is_file()}
    assert main(["run"]) == 0
    out, err = capfd.readouterr()
    assert err.splitlines() == [f"[{i}/6] {stage}: already done" for i, stage in enumerate(STAGES, 1)]
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*") if path.is_file()} == before
    lines = out.splitlines()
    assert lines[0].split() == ["network", "accuracy", "(95", "%)", "ms", "noise", "params", "MACs"]
    assert max(map(len, lines[:6])) <= 80
    assert [line[:24].strip() for line in lines[2:6]] == [
        "full (from scratch)",
        "uniform (from scratch)",
        "found (inherited)",
        "found (from scratch)",
    ]
    assert " 1.91M " in lines[2]
    assert "verified network: runs/default/export/model.onnx" in out


def test_a_table_that_has_grown_makes_nothing_stale(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = LatencyTable.load(TABLE)
    row = next(iter(table.rows.values()))
    layer = replace(row.layer, in_channels=999)
    table.rows[layer, row.setting] = replace(row, layer=layer)
    table.save(TABLE)
    assert main(["run", "--json"]) == 0
    assert capfd.readouterr().err.count("already done") == 6


def test_a_table_of_another_runtime_is_used_with_a_warning(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = LatencyTable.load(TABLE)
    assert {session.provenance["runtime_version"] for session in table.sessions} == {onnxruntime.__version__}
    for number, session in enumerate(table.sessions):
        older = {**session.provenance, "runtime_version": "0.9"}
        table.sessions[number] = replace(session, provenance=older)
    table.save(TABLE)
    assert main(["search", "--json"]) == 0
    err = capfd.readouterr().err
    assert "with runtime_version 0.9, here it is" in err
    assert "`bcnet check-lut --device cpu` checks whether they are still valid" in err


def test_a_noisy_table_is_refused_unless_it_is_accepted_and_costs_little_of_the_budget(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = LatencyTable.load(TABLE)
    table.calibrations = {key: replace(own, noise=0.43) for key, own in table.calibrations.items()}
    table.save(TABLE)
    profile, accepts = Path("hw_profiles/cpu.toml"), Path("hw_profiles/cpu.toml").read_text(encoding="utf-8")
    profile.write_text(accepts.replace("table_noise = 20.0", ""), encoding="utf-8")
    refusal = "table is noisy: two measurements of one network differed by 43.0%, table_noise accepts"
    for command in ("search", "export"):
        assert main([command]) == 1
        err = capfd.readouterr().err
        for words in (f"{refusal} 5.0%", "taskset", "`bcnet build-lut --device cpu --again`", "= 0.43 in"):
            assert words in err
    settings = Path("bcnet.toml").read_text(encoding="utf-8")
    Path("bcnet.toml").write_text(f"table_noise = 0.43\n{settings}", encoding="utf-8")
    assert main(["search", "--json"]) == 0  # the budget is a share: the original's latency alternates
    out, err = capfd.readouterr()
    assert only_object(out)["margin"] == 0.01
    assert "searching up to 74.3% of the original's measured latency: 75.0% less a margin of 1.0%" in err
    assert main(["search", "--latency-ms", str(only_object(out)["budget"]["ms"]), "--json"]) == 0
    out, err = capfd.readouterr()
    found = only_object(out)
    assert (found["margin"], found["noise"]) == (0.05, 0.43)
    assert found["limit_ms"] == pytest.approx(found["budget"]["ms"] / 1.05, abs=1e-5)
    line = r"searching below (\S+) ms: budget (\S+) ms, margin 5\.0% \(capped: the table's noise is 43%\)"
    shown = re.search(line, err)
    assert shown is not None, err
    assert shown.groups() == (milliseconds(found["limit_ms"]), milliseconds(found["budget"]["ms"]))
    assert found["front"] == read("search/pareto.json")
    assert len(found["front"]) == found["pareto"]
    Path("bcnet.toml").write_text(settings, encoding="utf-8")
    assert main(["slice"]) == 1
    err = capfd.readouterr().err
    assert f"{refusal} 5.0%" in err
    assert "--again` and `bcnet search`; or accept it" in err


def test_every_stage_prints_one_json_object_and_nothing_else(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for stage in ["train", "build-lut", "search", "slice", "export"]:
        assert main([stage, "--json"]) == 0
        assert only_object(capfd.readouterr().out)["stage"] == stage
    for command in ["inspect", "devices"]:
        assert main([command, "--json"]) == 0
        assert only_object(capfd.readouterr().out)


def test_a_stage_prints_its_summary_for_people(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["build-lut"]) == 0
    out, err = capfd.readouterr()
    assert "nothing measured" in err
    assert out.splitlines()[0].startswith("measured   0 layers on cpu in ")
    assert "next " not in out  # all else is done, and the table is the same
    assert main(["export"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("verified   cpu, onnxruntime ")
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80
    verified = read("export/verify.json")
    original = verified["original"]
    assert (original["accuracy"], original["accuracy_lost"]) == (None, None)  # it has no trained weights
    assert original["speedup"] == pytest.approx(
        verified["full"]["median_ms"] / verified["measured"]["median_ms"], abs=1e-3
    )
    assert f"{original['speedup']:.2f} times that of the full network" in out


def test_training_again_gives_the_same_supernet(finished: Finished, project: Path) -> None:
    assert main(["train"]) == 0
    for file in ("supernet.safetensors", "supernet.jsonl"):
        assert (RUN / "train" / file).read_bytes() == (finished[0] / RUN / "train" / file).read_bytes()


def test_a_run_makes_an_edited_export_again(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (RUN / "export/model.onnx").write_bytes(b"edited")
    capfd.readouterr()
    assert main(["run", "--json"]) == 0
    err = capfd.readouterr().err
    assert err.count("already done") == 4
    assert "[5/6] export: already done" not in err
    assert (RUN / "export/model.onnx").stat().st_size > 10_000


@pytest.mark.parametrize("command", ["search", "run"])
def test_a_budget_that_cannot_be_met_names_the_lowest_latency(project: Path, command: str) -> None:
    before = contents(project)
    done = run_quietly(command, "--latency-ms", "0.000001")
    assert done.code == 1
    assert "bcnet: no network meets 1e-06 ms: the fastest takes 0." in done.lines[-1]
    assert "raise the budget" in done.lines[-1]
    assert contents(project) == before


def test_an_accuracy_that_cannot_be_reached_names_the_best(project: Path) -> None:
    done = run_quietly("search", "--min-accuracy", "1.0")
    assert done.code == 1
    assert "no candidate reaches an accuracy of 1 in the supernet: the best has 0." in done.lines[-1]
    assert read("search/manifest.json")["stage"] == "search"


def test_a_budget_above_the_full_network_keeps_it_whole_and_says_so(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--latency-ms", "1000", "--json"]) == 0
    out, err = capfd.readouterr()
    found = only_object(out)
    assert "is above the full network's latency: kept whole" in found["note"]
    assert "kept whole" in err
    assert found["best"]["widths"] == read("compare/result.json")["networks"][0]["widths"]
    assert found["best"]["measured"]["median_ms"] > 0


class Done:
    """What a command left: its exit code, its lines on stderr."""

    def __init__(self, code: int, err: str) -> None:
        self.code = code
        self.lines = err.strip().splitlines()


def run_quietly(*arguments: str) -> Done:
    import io

    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = main(arguments)
    assert "Traceback" not in err.getvalue()
    return Done(code, err.getvalue())


@pytest.mark.parametrize(
    ("command", "old", "new", "what"),
    [
        ("search", "[data]", '[model]\nname = "run_networks:other"\n[data]', "model"),
        ("search", "train_limit = 120", "train_limit = 110", "data"),
        ("search", "bins = 3", "bins = 2", "space"),
        ("search", "[train]", '[train]\nmethod = "unilateral"', "space"),
        ("slice", "bins = 3", "bins = 2", "space"),
        ("export", "bins = 3", "bins = 2", "space"),
    ],
)
def test_a_supernet_made_from_something_else_is_refused(
    project: Path, refused: Refused, command: str, old: str, new: str, what: str
) -> None:
    Path("run_networks.py").write_text(
        "from torch import nn\n"
        "def other(): return nn.Sequential(nn.Conv2d(1, 64, 3), nn.BatchNorm2d(64), nn.ReLU(),"
        " nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))\n",
        encoding="utf-8",
    )
    configure(old, new)
    line = refused(1, command)
    assert f"runs/default/train was made with another {what}; run `bcnet train` again" in line


NETWORK = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 64, 3)
        self.head = nn.Linear(64, 10)
    def forward(self, x):
        print("a user's own words")
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))
"""


def test_what_a_users_network_prints_is_kept_out_of_the_json(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("printing_net.py").write_text(NETWORK, encoding="utf-8")
    configure("[data]", '[model]\nname = "printing_net:Net"\n[data]')
    for command in ("train", "inspect"):
        assert main([command, "--json"]) == 0
        out, err = capfd.readouterr()
        assert only_object(out)
        assert "a user's own words" in err


def test_a_run_says_what_has_changed(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    configure("[data]", "[data]\nflip = true")
    assert main(["run", "--latency-ms", "0.000001"]) == 1  # the later stages are none of this test's
    err = capfd.readouterr().err
    assert "[1/6] train: training settings changed" in err
    assert "[2/6] build-lut: already done" in err


@pytest.mark.parametrize(
    ("command", "missing", "message"),
    [
        ("search", TABLE, "latency_tables/cpu.json is missing; run `bcnet build-lut --device cpu`"),
        ("slice", RUN / "search/manifest.json", "has no finished search; run `bcnet search` first"),
        ("export", RUN / "search/manifest.json", "has no finished search; run `bcnet search` first"),
        ("search", RUN / "train/supernet.jsonl", "supernet.jsonl is missing; run `bcnet train` again"),
    ],
)
def test_a_stage_without_what_it_needs_names_the_command(
    project: Path, refused: Refused, command: str, missing: Path, message: str
) -> None:
    missing.unlink()
    assert message in refused(1, command)


@pytest.mark.parametrize("keep", [0, -10])
@pytest.mark.parametrize(
    ("command", "path", "message"),
    [
        ("search", TABLE, "is cut short or edited"),
        ("build-lut", TABLE, "is cut short or edited"),
        ("search", RUN / "train/manifest.json", "is cut short or edited"),
        (
            "search",
            RUN / "train/supernet.safetensors",
            "is not what train wrote (cut short or edited)",
        ),
        (
            "slice",
            RUN / "train/space.json",
            "is not what train wrote (cut short or edited)",
        ),
        (
            "slice",
            RUN / "search/result.json",
            "is not what search wrote (cut short or edited)",
        ),
        (
            "export",
            RUN / "slice/model.safetensors",
            "is not what slice wrote (cut short or edited)",
        ),
    ],
)
def test_a_file_that_was_cut_short_is_refused(
    project: Path, refused: Refused, command: str, path: Path, message: str, keep: int
) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    line = refused(1, command)
    assert str(path) in line
    assert message in line


@pytest.mark.parametrize(
    ("command", "path", "old", "new", "message"),
    [
        (
            "search",
            TABLE,
            '"median_ms": 0',
            '"median_ms": -0.1, "was": 0',
            "cpu.json: settings.0.rows.0.stat.median_ms",
        ),
        ("search", TABLE, '"device": "cpu"', '"device": "jetson"', "was measured on 'jetson', not on 'cpu'"),
        (
            "build-lut",
            TABLE,
            '"device": "cpu"',
            '"device": "jetson"',
            "was measured on 'jetson'; keep",
        ),
        ("search", TABLE, '"schema": 4', '"schema": 7', "has schema 7, but this bcnet reads 1 to 4"),
        ("search", TABLE, '"median_ms": 0.', '"median_ms": 1.', "was edited: its seal is "),
        ("build-lut", TABLE, '"median_ms": 0.', '"median_ms": 1.', "run `bcnet lut accept-edit --table"),
        (
            "search",
            RUN / "train/manifest.json",
            '"schema": 2',
            '"schema": 3',
            "is not a manifest of this",
        ),
        ("search", RUN / "train/manifest.json", '"data": "', '"data": "x', "train/manifest.json was edited"),
        ("slice", RUN / "search/manifest.json", '"schema": 2', '"schema": 1', "manifest.json was edited"),
        ("slice", RUN / "search/result.json", '"seed": 0', '"seed": 1', "is not what search wrote"),
    ],
)
def test_a_file_that_was_edited_is_refused(
    project: Path, refused: Refused, command: str, path: Path, old: str, new: str, message: str
) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert message in refused(1, command)


def test_a_manifest_that_was_made_to_fit_does_not_hide_a_broken_weights_file(
    project: Path, refused: Refused
) -> None:
    manifest = read("train/manifest.json")
    del manifest["outputs"]["supernet.safetensors"]
    manifest["digest"] = digest({key: value for key, value in manifest.items() if key != "digest"})
    (RUN / "train/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (RUN / "train/supernet.safetensors").write_bytes(b"broken")
    line = refused(1, "search")
    assert "supernet.safetensors cannot be read" in line
    assert "run `bcnet train` again" in line


def test_a_broken_checkpoint_is_named(project: Path, refused: Refused) -> None:
    (RUN / "train/supernet.safetensors").unlink()
    (RUN / "train/checkpoint.safetensors").write_bytes(b"broken")
    assert "checkpoint.safetensors cannot be read" in refused(1, "train")


@pytest.mark.parametrize(
    ("command", "limit"),
    [
        (["train", "--seed", "1"], 64_000),
        (["slice", "--epochs", "0"], 64_000),
        (["export"], 64_000),
        (["search", "--generations", "0"], 600),
        (["build-lut"], 100),
    ],
)
def test_a_full_disk_leaves_every_finished_stage_as_it_was(
    project: Path, largest_file: LargestFile, command: list[str], limit: int
) -> None:
    before = contents(project)
    with largest_file(limit):
        done = run_quietly(*command)
    assert done.code == 1
    assert "File too large" in done.lines[-1]
    assert all(line.startswith("bcnet: ") for line in done.lines[-1:])
    assert contents(project) == before


def test_a_disk_that_is_full_for_torchs_own_file_does_not_abort(project: Path) -> None:
    weights, program = (RUN / "slice" / name for name in ("model.safetensors", "model.pt2"))
    limit = (weights.stat().st_size + program.stat().st_size) // 2
    assert weights.stat().st_size < limit < program.stat().st_size
    before = contents(project)
    done = subprocess.run(
        [sys.executable, "-m", "bcnet", "slice"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    began, *said, error = done.stderr.strip().splitlines()
    assert began == "slice: runs/default, for cpu (fp32, batch 1, 1 thread)"
    warning = "runs/default/export is verified, and based on the network that is replaced now"
    assert any(warning in line for line in said)
    assert error.startswith("bcnet: cannot write or read ")
    assert contents(project) == before


@pytest.mark.parametrize("command", ["slice", "export"])
def test_a_file_where_a_stages_folder_is_needed_is_explained(
    project: Path, refused: Refused, command: str
) -> None:
    folder = RUN / command
    folder.rename(f"{command}-aside")
    folder.write_text("in the way", encoding="utf-8")
    assert f"cannot write or read {folder}" in refused(1, command)


def test_a_failed_check_is_exit_code_3_and_keeps_the_verified_file(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("[export]", "[export]\noutput_tolerance = 1e-12")
    before = contents(project / RUN)
    done = run_quietly("export", "--json")
    assert done.code == 3
    assert done.lines[-1].startswith("bcnet: verification failed: outputs differ from PyTorch by ")
    assert "details in runs/default/export/failed.json" in done.lines[-1]
    after = contents(project / RUN)
    failed = json.loads(after.pop("export/failed.json") or b"")
    assert failed["passed"] is False
    assert only_object(capsys.readouterr().out) == failed
    assert after == before


def test_runs_of_other_names_stand_side_by_side(project: Path, refused: Refused) -> None:
    os.rename(RUN, "runs/night")
    assert "runs/default has no finished train" in refused(1, "search")
    done = run_quietly("run", "--run", "night", "--json")
    assert done.code == 0
    assert done.lines[-1] == "report: runs/night/report/report.html"
    assert len(done.lines) == 7


@pytest.mark.usefixtures("project")
def test_a_comparison_that_would_take_long_is_left_out_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("runs/default/compare")
    assert main(["run", "--no-compare", "--json"]) == 0
    shown, said = capfd.readouterr()
    assert json.loads(shown)["file"] == "runs/default/export/model.onnx"
    assert "[6/6] compare: left out" in said.splitlines()
    monkeypatch.setattr("bcnet.commands.run_all.LONG", 0.0)
    assert main(["run"]) == 0
    assert re.search(
        r"compare: left out, since it would take about \d+ s; `bcnet run --compare` does it",
        capfd.readouterr().err,
    )
    assert not Path("runs/default/compare").exists()
    assert main(["run", "--compare"]) == 0
    assert "found (from scratch)" in capfd.readouterr().out
