"""The command line without a finished run: help, wrong input, interruption."""

import contextlib
import importlib.metadata
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import CONFIG, PROFILE, LargestFile, Refused
from PIL import Image

from bcnet.cli import app, main
from bcnet.commands.inspect import InspectCommand
from bcnet.commands.usage import PlainCommand
from bcnet.config import EXAMPLE, Config, load_config
from bcnet.show.tables import show_table
from bcnet.signals import as_interrupts

COMMANDS: dict[str, Any] = dict(getattr(typer.main.get_command(app), "commands"))  # noqa: B009
HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "sklearn", "rich.progress")

NETWORKS = """
import os, time, torch, torchvision
from torch import nn

def tiny(classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
    )

class Slow(nn.Sequential):
    def forward(self, x):
        if self.training: time.sleep(float(os.environ.get("PAUSE", 0)))
        return super().forward(x)

def slow(): return Slow(*tiny())
def not_a_network(): return [1, 2]
def needs_colour(): return nn.Conv2d(3, 10, 1)
def raises(): raise ValueError("no such depth")
class Unprintable(Exception):
    def __str__(self): raise RuntimeError("no text")

class Failing(nn.Sequential):
    fails = ""
    def __repr__(self): return self._or("repr", super().__repr__)
    def state_dict(self, *args, **kwargs): return self._or("state_dict", super().state_dict, *args, **kwargs)
    def forward(self, x): return self._or("forward", super().forward, x)
    def _or(self, name, method, *args, **kwargs):
        if self.fails == name: raise self.error
        return method(*args, **kwargs)

def failing(fails, error):
    errors = {"exit": SystemExit(0), "base": BaseException("odd"), "text": Unprintable()}
    network = Failing(*tiny())
    network.fails, network.error = fails, errors.get(error, RuntimeError("not today"))
    return network

def lazy(): return nn.Sequential(nn.LazyConv2d(16, 3), nn.Flatten(), nn.LazyLinear(10))

class Deformed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.offsets = nn.Conv2d(16, 18, 3, padding=1)
        self.deformed, self.fc = torchvision.ops.DeformConv2d(16, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.fc(self.deformed(x, self.offsets(x)).relu().mean((2, 3)))

def deformed(): return Deformed()

class Chooses(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = tiny(), tiny()

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.b(x) * 2

def chooses(): return Chooses()
"""

pytestmark = pytest.mark.usefixtures("folder")


def configure(text: str = CONFIG) -> None:
    """A project of the embedded digits whose networks are timed briefly."""
    Path("bcnet.toml").write_text(text, encoding="utf-8")
    Path("hw_profiles").mkdir()
    Path("hw_profiles/cpu.toml").write_text(PROFILE, encoding="utf-8")
    Path("cli_networks.py").write_text(NETWORKS, encoding="utf-8")


def test_the_commands_are_those_of_the_readme() -> None:
    stages = ["train", "build-lut", "check-lut", "one-bit", "search", "slice", "export"]
    others = ["verify", "run", "report", "diff", "load", "devices", "doctor", "runs", "lut", "bench"]
    assert list(COMMANDS) == ["init", "inspect", "time", *stages, *others]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_for_itself_and_all_its_options(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert f"Usage: bcnet {command}" in out
    assert len(COMMANDS[command].help) > 20
    for option in COMMANDS[command].params:
        is_argument = option.param_type_name == "argument"
        assert (option.metavar or option.opts[0] if is_argument else option.opts[0]) in out
        assert len(option.help) > 10, f"{command} {option.opts[0]} has no help"


def every_command(commands: Mapping[str, Any] = COMMANDS) -> Iterator[tuple[str, Any]]:
    """Each command by what is typed, also those of groups."""
    for name, command in commands.items():
        yield name, command
        inner = every_command(getattr(command, "commands", {}))
        yield from ((f"{name} {own}", command) for own, command in inner)


EVERY_COMMAND = dict(every_command())


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_help_says_in_plain_words_what_each_option_takes(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert "<" not in capfd.readouterr().out
    taking = [own for own in EVERY_COMMAND[command].params if not getattr(own, "is_flag", False)]
    assert [own.name for own in taking if not (own.metavar or "").isupper()] == []


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        (["report", "night"], "night"),
        (["search", "--latency-ms", "5", "night shift"], "'night shift'"),
        (["inspect", "night", "--json"], "night"),
        (["bench", "arena", "night"], "night"),
    ],
)
def test_a_runs_name_without_its_option_is_answered_with_the_option(
    refused: Refused, arguments: list[str], run: str
) -> None:
    message = refused(2, *arguments)
    assert f"; if that is the name of a run, type --run {run} (see bcnet {arguments[0]}" in message


def test_other_stray_arguments_are_refused_by_every_command(refused: Refused) -> None:
    assert refused(2, "init", "a", "b") == "bcnet: unexpected argument 'a' (see bcnet init --help)"
    commands = [own for own in EVERY_COMMAND.values() if not hasattr(own, "commands")]
    assert {type(own) for own in commands} == {PlainCommand, InspectCommand}


def test_the_list_of_commands_says_in_whole_sentences_what_each_does(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    listed = capfd.readouterr().out.split("Commands:")[1].strip().splitlines()
    assert len(listed) == len(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed), listed


@pytest.mark.parametrize("command", ["train", "build-lut", "search", "slice", "export", "run"])
def test_every_stage_takes_a_run_a_configuration_and_json(command: str) -> None:
    options = {name for option in COMMANDS[command].params for name in option.opts}
    assert {"--run", "--config", "--json"} <= options


def test_help_imports_no_heavy_package() -> None:
    code = (
        "import sys\nfrom bcnet.cli import main\n"
        f"for words in [[], *([name] for name in {list(COMMANDS)})]: main([*words, '--help'])\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_the_version_is_that_of_the_package(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"bcnet {importlib.metadata.version('bcnet')}\n"


def test_without_a_command_the_help_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "Usage: bcnet [OPTIONS] COMMAND" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "trian"),
        (["train", "--epoch", "3"], "--epoch"),
        (["train", "--epochs", "three"], "Invalid value for '--epochs'"),
        (["train", "--epochs", "0"], "train.epochs: input should be greater than or equal to 1, not 0"),
        (["train", "--train-device", "tpu"], "train.train_device: input should be 'auto', 'cpu' or 'cuda'"),
        (["train", "--run", "../else"], "begins with a letter or a digit, not '../else'"),
        (["train", "--run", ""], "the name of a run consists of letters, digits, '.', '_' and '-'"),
        (["train", "--epochs"], "Option '--epochs' requires an argument. (see bcnet train --help)"),
        (["runs", "remove"], "(see bcnet runs remove --help)"),
        (["runs", "remove", "a b"], "begins with a letter or a digit, not 'a b'"),
        (["lut", "accept"], "(see bcnet lut --help)"),
        (
            ["search", "--latency-ms", "5", "--latency", "60%"],
            "give only one of latency_ms, fps, p90_ms, latency and",
        ),
        (["search", "--population", "1"], "search.population: input should be greater than or equal to 2"),
        (["slice", "--epochs", "-1"], "slice.epochs: input should be greater than or equal to 0"),
        (["build-lut", "--seed", "-1"], "seed: input should be greater than or equal to 0"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    refused: Refused, arguments: list[str], message: str
) -> None:
    assert message in refused(2, *arguments)


@pytest.mark.parametrize("command", ["search", "run"])
@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--latency-ms", "0", "latency_ms must be a number above zero, not 0.0"),
        ("--latency-ms", "-3", "latency_ms must be a number above zero, not -3.0"),
        ("--latency-ms", "nan", "latency_ms must be a number above zero, not nan"),
        ("--latency-ms", "inf", "latency_ms must be a number above zero, not inf"),
        ("--latency-ms", "fast", "milliseconds are a number, e.g. 5.0, not 'fast'"),
        ("--latency", "0%", "a latency share is written as 60%, above zero, not '0%'"),
        ("--latency", "-60%", "a latency share is written as 60%, above zero, not '-60%'"),
        ("--latency", "nan%", "a latency share is written as 60%"),
        ("--latency", "60", "a latency share is written as 60%, above zero, not '60'"),
        ("--latency", "fast", "a latency share is written as 60%"),
        ("--min-accuracy", "0", "min_accuracy must be above 0 and at most 1, not 0.0"),
        ("--min-accuracy", "90", "min_accuracy must be above 0 and at most 1, not 90.0"),
        ("--min-accuracy", "nan", "min_accuracy must be above 0 and at most 1, not nan"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_wrong_usage(
    refused: Refused, command: str, flag: str, value: str, message: str
) -> None:
    assert message in refused(2, command, flag, value)


def test_init_writes_the_built_in_examples_configuration_and_never_overwrites(
    refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["init"]) == 0
    assert capfd.readouterr().out == "wrote bcnet.toml\n"
    assert load_config(None) == Config.model_validate(EXAMPLE)
    Path("bcnet.toml").write_text("seed = 5\n", encoding="utf-8")
    assert "bcnet.toml is already here; delete it first" in refused(1, "init")
    assert Path("bcnet.toml").read_text(encoding="utf-8") == "seed = 5\n"


def test_init_on_a_full_disk_leaves_no_half_file(refused: Refused, largest_file: LargestFile) -> None:
    with largest_file(200):
        assert "File too large" in refused(1, "init")


def test_init_can_answer_in_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--json"]) == 0
    assert isinstance(json.loads(capfd.readouterr().out), dict)


def test_devices_lists_shipped_and_own_profiles(capfd: pytest.CaptureFixture[str]) -> None:
    Path("hw_profiles").mkdir()
    Path("hw_profiles/bench.toml").write_text(PROFILE, encoding="utf-8")
    assert main(["devices", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["bench"]["description"] == "this machine, timed briefly"
    assert found["cpu"]["runtime"] == "onnxruntime"
    assert main(["devices"]) == 0
    assert "bench" in capfd.readouterr().out


def test_inspect_shows_groups_choices_and_costs(capfd: pytest.CaptureFixture[str]) -> None:
    configure()
    assert main(["inspect"]) == 0
    out = capfd.readouterr().out
    assert "choices" in out
    assert "multiply-accumulates" in out
    assert "the narrowest network is exported to ONNX and runs in ONNX Runtime" in out
    assert main(["inspect", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["model"] == "digits"
    assert found["params"] == 1_914_490
    assert found["smallest_params"] < found["params"]
    assert found["smallest_macs"] < found["macs"]
    keys = {"name", "channels", "original", "unit", "mixed", "ordered", "choices", "layers"}
    assert keys == set(found["groups"][0])
    assert found["not_deliverable"] is None
    assert found["searchable_macs"] == 1.0
    assert found["narrowest_macs"] == round(found["smallest_macs"] / found["macs"], 4)
    assert f"{found['narrowest_macs']:.1%} of multiply-accumulates" in out
    assert (found["input"], found["input_from"]) == ([1, 16, 16], "the size of the data 'digits'")
    assert "1 x 16 x 16 (the size of the data 'digits')" in out
    assert all(group["choices"][-1] == group["channels"] for group in found["groups"])
    assert {"name", "channels", "reason"} == set(found["frozen"][0])


def test_a_network_that_cannot_be_delivered_is_shown_by_inspect_and_not_trained(
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure('model.name = "cli_networks:deformed"\ndata.train_limit = 100\ndata.test_limit = 50\n')
    reason = (
        "ONNX Runtime does not support 'DeformConv' at the file's opset (in 'deformed'); replace it with "
        "operators that it supports"
    )
    assert main(["inspect"]) == 0
    out = capfd.readouterr().out
    assert "choices" in out
    assert f"export    {reason}" in out
    assert main(["inspect", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["not_deliverable"] == reason
    assert main(["train"]) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line == f"bcnet: not trained, because the result could not be exported or run: {reason}"
    assert not Path("runs/default/train/supernet.safetensors").exists()


def test_lazy_networks_are_refused_with_the_module_and_what_to_do(refused: Refused) -> None:
    configure('model.name = "cli_networks:lazy"\n')
    for arguments in (("train",), ("inspect",), ("inspect", "--model", "cli_networks:lazy")):
        line = refused(1, *arguments)
        assert "'0' is lazy (LazyConv2d): it has no parameters before its first use; run the network" in line


def test_inspect_reads_the_sizes_of_a_folders_images_and_no_damaged_file_stops_it(
    capfd: pytest.CaptureFixture[str], refused: Refused
) -> None:
    for part, name, number in itertools.product(("train", "test"), ("cat", "dog"), range(3)):
        path = Path("photos", part, name, f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 20)).save(path)
    path.write_bytes(path.read_bytes()[:45])
    Path("bcnet.toml").write_text('[data]\nname = "imagefolder:photos"\n', encoding="utf-8")
    assert main(["inspect", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["input"] == [3, 20, 20]
    assert "photos/test/dog/2.png cannot be read as an image" in refused(1, "train")


def test_inspect_of_a_model_needs_no_data(capfd: pytest.CaptureFixture[str]) -> None:
    Path("bcnet.toml").write_text('[data]\nname = "imagefolder:nowhere"\n', encoding="utf-8")
    assert main(["inspect", "--model", "digits", "--image-size", "16", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["model"] == "digits"


@pytest.mark.parametrize(
    ("settings", "side", "origin"),
    [
        (None, 224, "the default; set another with --image-size"),
        ('name = "digits"', 32, "the size of the data 'digits'"),
        ('name = "digits"\nimage_size = 48', 48, "data.image_size of the configuration"),
        ('name = "imagefolder:nowhere"', 224, "the configured data cannot be read: "),
    ],
)
def test_inspect_of_a_model_takes_the_size_of_the_configured_data(
    settings: str | None, side: int, origin: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if settings is not None:
        Path("bcnet.toml").write_text(f"[data]\n{settings}\n", encoding="utf-8")
    assert main(["inspect", "--model", "torchvision:squeezenet1_1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["input"] == [3, side, side]
    assert found["input_from"].startswith(origin)


def test_inspect_with_a_device_says_what_groups_take_and_which_budgets_can_be_met(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = ("inspect", "--model", "digits", "--image-size", "16")
    assert main([*model, "--device", "jetson-nano", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    latency = found["latency"]
    assert latency["estimate"]
    assert latency["source"].startswith(
        "from the roofline of 'jetson-nano', since there is no latency_tables/"
    )
    assert list(latency["saved_ms"]) == [group["name"] for group in found["groups"]]
    assert all(0 < ms < latency["full_ms"] for ms in latency["saved_ms"].values())
    assert 0 < latency["fastest_ms"] < latency["full_ms"] - max(latency["saved_ms"].values())
    assert not Path("latency_tables").exists()
    assert main([*model, "--device", "cpu"]) == 0
    out = capfd.readouterr().out
    assert (
        "latency   unknown on cpu: there is no latency_tables/cpu.json; run `bcnet build-lut --device cpu`; "
        in out
    )
    assert "no estimate: device 'cpu' has no [roofline] peaks" in out


FOUR = """
from torch import nn

def net():
    sides = ((3, 32), (32, 32), (32, 64), (64, 64))
    layers = [layer for a, b in sides for layer in (nn.Conv2d(a, b, 3), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
"""


def test_inspect_freezes_ties_and_expands(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("cli_four.py").write_text(FOUR, encoding="utf-8")

    def groups(*flags: str) -> dict[str, tuple[int, int, list[str]]]:
        assert main(["inspect", "--model", "cli_four:net", "--image-size", "16", "--json", *flags]) == 0
        found = json.loads(capfd.readouterr().out)["groups"]
        return {g["name"]: (g["original"], g["channels"], g["layers"]) for g in found}

    plain = groups()
    first, second, third, *_ = plain
    assert groups("--freeze", first, "--freeze", second).keys() == plain.keys() - {first, second}
    tied = groups("--tie", first, second)
    assert tied.keys() == plain.keys() - {second}
    assert sorted(tied[first][2]) == sorted(plain[first][2] + plain[second][2])
    assert len(groups("--tie", first, second, "--tie", *list(plain)[2:4])) == len(plain) - 2
    assert groups("--expand", "1.5")[third][:2] == (64, 96)


def test_inspect_says_what_is_wrong_with_a_pair_to_tie(refused: Refused) -> None:
    assert "Option '--tie' requires 2 arguments. (see bcnet inspect --help)" in refused(
        2, "inspect", "--model", "digits", "--tie", "0.0"
    )
    line = refused(1, "inspect", "--model", "digits", "--tie", "0.0", "7")
    assert "there is no group '7' to tie; similar names: " in line
    line = refused(1, "inspect", "--model", "digits", "--freeze", "conv*")
    assert "no group matches the pattern 'conv*' of freeze" in line


CONFIGURATIONS = [
    ('[space]\nfreeze = ["stem*"]', "no group matches the pattern 'stem*' of freeze; there are: "),
    ('[space]\ntie = [["0.0"]]', "space.tie.0.1: field required"),
    ("[space]\nexpand = 0.5", "space.expand: input should be greater than or equal to 1, not 0.5"),
    ('[model]\nweights = "gone.pt"', "model.weights: gone.pt does not exist"),
    (
        '[model]\nname = "cli_networks:raises"',
        "'cli_networks:raises' with args {}: ValueError: no such depth",
    ),
    (
        '[model]\nname = "cli_networks:chooses"',
        "branches on the values of its inputs (in the network's forward)",
    ),
    ("[train]\nepoch = 3", "bcnet.toml: unknown key 'train.epoch'; did you mean 'epochs'?"),
    ('[train]\nepochs = "three"', "bcnet.toml: train.epochs: input should be a valid integer, not 'three'"),
    ("[train\nepochs = 3", "bcnet.toml is not TOML"),
    (
        '[train]\nmethod = "slim"',
        "train.method: unknown method 'slim'; known: bcnet, bcnetv2, cafenet, psenet, unilateral",
    ),
    ("[search]\nlatency_ms = 0.0", "latency_ms must be a number above zero, not 0.0"),
    (
        '[data]\nname = "digit"',
        "unknown dataset 'digit'; known: digits, digit-scenes, cifar10, imagefolder:PATH",
    ),
    (
        '[data]\nname = "hw_profiles"',
        "dataset 'hw_profiles'; did you mean 'imagefolder:hw_profiles'? known: ",
    ),
    ('[data]\nname = "imagefolder:gone"', "imagefolder:gone: there is no folder gone"),
    ('[data]\nname = "imagefolder:hw_profiles"', "no images in hw_profiles"),
    ('[data]\nname = "gone_module:make"', "'gone_module:make': No module named 'gone_module'; install it"),
    ('[data]\nname = "cli_networks:nothing"', "module 'cli_networks' has no function 'nothing'"),
    (
        '[model]\nname = "digit"',
        "unknown model 'digit'; did you mean 'digits'? known: digits, digit-scenes, cbm-mobilenet",
    ),
    ('[model]\nname = "resnet18"', "unknown model 'resnet18'; did you mean 'torchvision:resnet18'? known: "),
    ('[model]\nname = "torchvision:resnet19"', "torchvision has no model 'resnet19'; similar names: resnet1"),
    ('[model]\nname = "torchvision:resnet18"', "torchvision's models take 3 channels, the images have 1"),
    ('[model]\nname = "gone_module:make"', "'gone_module:make': No module named 'gone_module'; install it"),
    ('[model]\nname = "cli_networks:nothing"', "module 'cli_networks' has no function 'nothing'"),
    ('[model]\nname = "cli_networks:not_a_network"', "returned list, not a torch.nn.Module"),
    ('[model]\nname = "cli_networks:needs_colour"', "does not run on images of (1, 32, 32)"),
    ('[model]\nname = "cli_networks:tiny"\nargs = {depth = 3}', "unexpected keyword argument 'depth'"),
    ('[model]\nname = "cli_networks:tiny"\nargs = {classes = 7}', "(1, 7), the data has 10 classes"),
    *(
        (f'[model]\nname = "cli_networks:failing"\nargs = {{fails = "{method}", error = "{error}"}}', message)
        for method, error, message in [
            ("forward", "exit", "does not run on images of (1, 32, 32): SystemExit: 0"),
            ("forward", "text", "does not run on images of (1, 32, 32): Unprintable"),
            ("forward", "base", "Failing._or() in cli_networks.py, line 29, failed (BaseException: odd)"),
            ("state_dict", "", "line 29, failed (RuntimeError: not today); finished work is kept"),
            ("repr", "exit", "line 29, failed (SystemExit: 0); finished work is kept"),
        ]
    ),
    ('device = "cuda"', "unknown device 'cuda' (to train on a GPU: --train-device cuda); known: a10, a100, "),
    ('device = "cpuu"', "unknown device 'cpuu' (did you mean 'cpu'?); known: a10, a100, cpu, cpu-openvino"),
]


@pytest.mark.parametrize(("text", "message"), CONFIGURATIONS)
def test_a_configuration_that_cannot_be_used_is_explained_in_one_line(
    refused: Refused, text: str, message: str
) -> None:
    configure(text)
    assert message in refused(1, "train")


@pytest.mark.parametrize("command", ["train", "build-lut", "search", "slice", "export", "run", "inspect"])
def test_a_named_configuration_that_is_missing_is_an_error(refused: Refused, command: str) -> None:
    line = refused(2, command, "--config", "nope.toml")
    assert "nope.toml does not exist; create one with `bcnet init`" in line


def test_an_unknown_device_is_answered_with_what_there_is(refused: Refused) -> None:
    configure()
    assert "unknown device 'jets'" in refused(2, "build-lut", "--device", "jets")


@pytest.mark.parametrize(
    ("command", "run", "message"),
    [
        ("search", None, "runs/default has no finished train; run `bcnet train` first"),
        ("slice", None, "runs/default has no finished train; run `bcnet train` first"),
        ("export", None, "runs/default has no finished train; run `bcnet train` first"),
        ("search", "night", "runs/night has no finished train; run `bcnet train --run night` first"),
    ],
)
def test_a_stage_before_the_one_it_needs_names_the_command(
    refused: Refused, command: str, run: str | None, message: str
) -> None:
    configure()
    assert message in refused(1, command, *(["--run", run] if run else []))


def test_a_command_that_would_help_names_the_configuration_that_was_given(refused: Refused) -> None:
    configure()
    Path("bcnet.toml").rename("my net.toml")
    line = refused(1, "search", "--run", "night", "--config", "my net.toml")
    assert "run `bcnet train --run night --config 'my net.toml'` first" in line


@pytest.mark.parametrize(("command", "blocked"), [("train", "runs"), ("build-lut", "latency_tables")])
def test_a_file_where_a_folder_is_needed_is_explained(refused: Refused, command: str, blocked: str) -> None:
    configure()
    Path(blocked).write_text("in the way", encoding="utf-8")
    assert f"cannot write or read {blocked}" in refused(1, command)


@pytest.fixture
def read_only(folder: Path) -> Iterator[None]:
    """A working folder in which nothing can be written, not even by root."""
    own = folder / "read-only"
    own.mkdir(mode=0o555)
    mounted = os.access(own, os.W_OK)
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(own)]
    if mounted and subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a file system")
    with contextlib.chdir(own):
        yield
    if mounted:
        subprocess.run(["umount", "--lazy", str(own)], check=True)


@pytest.mark.usefixtures("read_only")
def test_a_folder_in_which_nothing_can_be_written_is_refused_with_what_to_do(refused: Refused) -> None:
    line = refused(1, "init")
    assert line.startswith("bcnet: cannot write or read bcnet.toml: ")
    assert line.endswith("run in a folder that you can write to; finished work is kept")


EPOCHS = 40  # at three steps each, they last half a minute with the pauses


@pytest.fixture
def training() -> Iterator["subprocess.Popen[str]"]:
    """`bcnet train` in a process of its own, which pauses in each step, so that it can be interrupted."""
    configure(
        '[model]\nname = "cli_networks:slow"\n[data]\nimage_size = 16\ntrain_limit = 100\ntest_limit = 20\n'
        f"[space]\nbins = 2\n[train]\nepochs = {EPOCHS}\nbatch_size = 32\nmethod = 'unilateral'\n"
    )
    command = [sys.executable, "-m", "bcnet", "train", "--json"]
    Path("tmp").mkdir()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(Path("tmp").absolute()), "PAUSE": "0.3"},
    )
    yield process
    process.kill()
    process.communicate()


def first_checkpoint(training: "subprocess.Popen[str]") -> Path:
    """The file that the training continues from, once it is there."""
    checkpoint = Path("runs/default/train/checkpoint.safetensors")
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and training.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return checkpoint


@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_ends_training_as_ctrl_c_does_with_128_and_its_number(
    training: "subprocess.Popen[str]", capfd: pytest.CaptureFixture[str], sent: signal.Signals
) -> None:
    checkpoint = first_checkpoint(training)
    # The second process has another temporary folder, as in another container.
    assert main(["train"]) == 1
    assert "another process is at work in runs/default/train; wait until it is done" in capfd.readouterr().err
    os.kill(training.pid, sent)
    out, err = training.communicate(timeout=60)
    assert training.returncode == 128 + sent, err
    assert out == ""
    ended = f"bcnet: ended by {sent.name}; finished work is kept, run the same command again"
    assert err.strip().splitlines()[-1] == ended
    assert sorted(path.name for path in checkpoint.parent.parent.iterdir()) == ["log.jsonl", "train"]


def test_a_signal_that_is_ignored_already_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with as_interrupts() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_whose_exception_was_lost_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    before = signal.getsignal(sent)
    monkeypatch.setattr("bcnet.signals.AGAIN_SECONDS", 0.05)
    with as_interrupts() as received:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), sent)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)
        assert received == [sent, sent]
    assert signal.getsignal(sent) == before


def test_ctrl_c_ends_training_with_130_and_the_next_one_continues(
    training: "subprocess.Popen[str]", capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = first_checkpoint(training)
    os.kill(training.pid, signal.SIGINT)
    out, err = training.communicate(timeout=60)
    assert training.returncode == 130, err
    assert out == ""
    interrupted = "bcnet: interrupted; finished work is kept, run the same command again"
    assert err.strip().splitlines()[-1] == interrupted
    lines = checkpoint.with_suffix(".jsonl")
    assert {path.name for path in checkpoint.parent.iterdir()} == {checkpoint.name, lines.name}
    capfd.readouterr()
    assert main(["train", "--json"]) == 0
    out, err = capfd.readouterr()
    assert "continuing after epoch " in err
    assert json.loads(out)["epochs"] == EPOCHS
    curve = Path("runs/default/train/curve.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in curve] == ["epoch", *map(str, range(1, EPOCHS + 1))]
    assert not checkpoint.exists()
    assert not lines.exists()


def test_control_characters_of_names_reach_no_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bcnet.toml").write_text('[data]\nname = "\\u001b]0;title\\u0007x"', encoding="utf-8")
    assert main(["train"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("bcnet: unknown dataset '\\x1b]0;title\\x07x'")
    assert main(["train", "--config", "a\x1b[2Jb\nc"]) == 2
    assert capsys.readouterr().err == ("bcnet: a\\x1b[2Jb\\nc does not exist; create one with `bcnet init`\n")
    show_table(["name"], [["\x1b[31mred\u202e"]])
    assert "\\x1b[31mred\\u202e" in capsys.readouterr().out
