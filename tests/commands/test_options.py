"""Options that are made from the settings of bcnet.toml, and --set for all others."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from conftest import PROFILE, Refused

from bcnet.cli import main
from bcnet.commands.options import BUDGET, TARGET, Given, with_settings
from bcnet.config import Config, settings, toml
from bcnet.errors import UsageError

pytestmark = pytest.mark.usefixtures("folder")

ALL = ("train.epochs", *BUDGET, "search.pareto", *TARGET)


@with_settings(*ALL, several=True)
def configured(given: Given) -> Config:
    return given.config()


def config(*typed: str) -> Config:
    """The configuration that these arguments make."""
    app = typer.Typer(rich_markup_mode=None)
    app.command()(configured)
    found = typer.main.get_command(app).main(args=list(typed), standalone_mode=False)
    assert isinstance(found, Config)
    return found


def options(*keys: str, several: bool = False) -> dict[str, Any]:
    """The options of these settings, as typer has them."""

    @with_settings(*keys, several=several)
    def command(given: Given) -> None: ...

    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    return {option.name: option for option in typer.main.get_command(app).params}


def test_an_option_has_the_description_the_default_or_the_example_of_its_field() -> None:
    found = options("train.epochs", "search.latency_ms", "search.pareto", "host", several=True)
    assert found["epochs"].help == "Passes over the training images (default: 5)."
    assert found["latency_ms"].help == (
        "Latency budget in milliseconds; with several devices, this and other latency budgets are one for "
        "all or one for each (e.g. 5.0)."
    )
    assert found["host"].help.endswith("; may be repeated (e.g. user@jetson).")
    description = settings()["search.pareto"].description
    assert found["pareto"].help == f"{description[0].upper()}{description[1:]}."


def test_the_help_of_a_command_for_one_device_outside_of_runs_tells_of_neither() -> None:
    found = options("device", "batch", "search.latency_ms")
    assert found["device"].help == (
        "Target device, one of `bcnet devices`; if not given, that of bcnet.toml, else cpu (e.g. jetson)."
    )
    assert (
        found["batch"].help
        == "Images per inference on the device; if not given, that of the device profile (e.g. 1)."
    )
    assert found["latency_ms"].help == "Latency budget in milliseconds (e.g. 5.0)."
    assert [option.metavar for option in found.values()][:3] == ["NAME", "N", "[DEVICE=]MS"]


def test_where_devices_are_typed_budgets_of_the_file_for_others_are_left_out() -> None:
    Path("hw_profiles").mkdir()
    for name in ("here", "there"):
        Path(f"hw_profiles/{name}.toml").write_text(PROFILE, encoding="utf-8")
    Path("bcnet.toml").write_text(
        'device = ["here", "there"]\n[search]\nlatency_ms = { here = 5.0 }\nfps = { there = 30.0 }\n',
        encoding="utf-8",
    )
    assert config().search.budgets == {"latency_ms": {"here": 5.0}, "fps": {"there": 30.0}}
    assert config("--device", "there").search.budgets == {"fps": {"there": 30.0}}
    both = ("--device", "here", "--device", "there")
    assert config(*both).search.budgets == config().search.budgets
    # What is typed is refused later, as is a device without a budget where others have one.
    assert config(*both, "--fps", "cpu=9").search.budgets == {"fps": {"cpu": 9.0}}
    assert config("--device", "cpu").search.budgets == config().search.budgets


def test_every_setting_can_be_an_option_whose_help_is_one_sentence() -> None:
    simple = [key for key, field in settings().items() if key not in ("model.args", "space.tie")]
    assert len(simple) > 70
    for key in simple:
        (option, *_) = options(key).values()
        assert option.opts == [f"--{key.rpartition('.')[2].replace('_', '-')}"]
        assert option.help.endswith(".")
        assert len(option.help) > 10


def test_options_override_the_file_and_without_any_it_stays_as_it_is() -> None:
    Path("bcnet.toml").write_text(
        "batch = 4\n[train]\nepochs = 3\n[search]\npareto = true\n", encoding="utf-8"
    )
    assert config().model_fields_set == {"batch", "train", "search"}
    assert config() == Config.model_validate({"batch": 4, "train": {"epochs": 3}, "search": {"pareto": True}})
    typed = config("--epochs", "7", "--host", "me@one", "--host", "me@two", "--batch", "8", "--pareto")
    assert (typed.train.epochs, typed.batch, typed.host) == (7, 8, ("me@one", "me@two"))


def test_a_budget_is_one_for_all_devices_or_one_for_each() -> None:
    both = ("--device", "jetson", "--device", "cpu")
    assert config(*both, "--latency-ms", "5").search.latency_ms == 5.0
    found = config(*both, "--latency-ms", "jetson=5", "--latency-ms", "cpu=20.5")
    assert (found.device, found.search.latency_ms) == (("jetson", "cpu"), {"jetson": 5.0, "cpu": 20.5})
    found = config(*both, "--latency", "jetson=60%", "--fps", "cpu=30")
    assert (found.search.latency, found.search.fps) == ({"jetson": "60%"}, {"cpu": 30.0})
    assert found.search.of_device(["cpu"]).given_ms(2) == pytest.approx(2000 / 30)
    assert found.search.of_device(["jetson"]).share == "60%"
    Path("bcnet.toml").write_text(
        'device = ["jetson", "cpu"]\n[search]\nlatency_ms = { jetson = 5.0, cpu = 20.5 }\n', encoding="utf-8"
    )
    assert config().search == config("--set", "search.latency_ms={jetson=5.0, cpu=20.5}").search
    assert config("--set", "search.latency_ms.cpu=7.0").search.latency_ms == {
        "cpu": 7.0
    }  # one that is typed replaces the file's
    assert config("--latency-ms", "3").search.budgets == {"latency_ms": 3.0}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--latency-ms", "5", "--latency-ms", "6"], "one value for all devices, or DEVICE=VALUE for each"),
        (["--latency-ms", "5", "--latency-ms", "cpu=6"], "one value for all devices, or DEVICE=VALUE"),
        (["--latency-ms", "cpu=5", "--latency-ms", "cpu=6"], "--latency-ms: a device is named twice"),
        (["--latency-ms", "cpu=60%"], "milliseconds are a number, e.g. 5.0, not '60%'"),
        (["--latency", "cpu=60"], "a latency share is written as 60%, above zero, not '60'"),
        (["--latency", "cpu=60%", "--p90-ms", "cpu=5"], "a device has two budgets; they are for cpu, cpu"),
        (["--latency", "cpu=60%", "--latency-ms", "5"], "give only one of latency_ms, fps, p90_ms, latency"),
        (["--fps", "cpu=-1"], "fps must be a number above zero, not -1.0"),
        (["--latency", "cpu=160%"], "latency 160% is above the network's own"),
    ],
)
def test_budgets_that_do_not_fit_together_are_wrong_usage(typed: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        config(*typed)


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("seed = 7", "seed", 7),
        ("train.amp=false", "train.amp", False),
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("search.latency=60%", "search.latency", "60%"),
        ('search.latency="60%"', "search.latency", "60%"),
        ("train.method=bcnetv2", "train.method", "bcnetv2"),
        ('space.freeze=["stem", "layer1.*"]', "space.freeze", ("stem", "layer1.*")),
        ("model.args={depth = 3}", "model.args", {"depth": 3}),
        ("model.args.depth=3", "model.args", {"depth": 3}),
        ("model.args={depth = {a = 1}}", "model.args", {"depth": {"a": 1}}),
        ("model.weights=a=b.pt", "model.weights", "a=b.pt"),
        ("host=[]\nseed = 3", "host", None),
    ],
)
def test_set_takes_any_key_with_its_value_as_in_toml(assignment: str, key: str, value: Any) -> None:
    if value is None:  # two lines are a text, not two settings
        with pytest.raises(UsageError, match="host: input should be a list"):
            config("--set", assignment)
        return
    found: Any = config("--set", assignment)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_every_default_can_be_set_as_the_template_writes_it() -> None:
    defaults = {key: field.get_default(call_default_factory=True) for key, field in settings().items()}
    typed = [f"{key}={toml(value)}" for key, value in defaults.items() if value is not None]
    assert len(typed) > 60
    assert config(*(word for text in typed for word in ("--set", text))) == Config()


def test_set_overrides_the_file_entry_by_entry_and_an_option_overrides_set() -> None:
    Path("bcnet.toml").write_text(
        '[model]\nargs = {depth = 2, wide = true}\n[train]\nepochs = 3\n[search]\nlatency = "60%"\n',
        encoding="utf-8",
    )
    found = config("--set", "model.args.depth=5", "--set", "train.epochs=4", "--set", "train.epochs=5")
    assert found.model.args == {"depth": 5, "wide": True}
    assert (found.train.epochs, found.search.latency) == (5, "60%")
    found = config("--set", "model.args.a=2", "--set", "model.args.a.b=3", "--set", "model.args.a.c=4")
    assert found.model.args == {"depth": 2, "wide": True, "a": {"b": 3, "c": 4}}
    found = config("--set", "train.epochs=4", "--set", "search.min_accuracy=0.9", "--epochs", "6")
    assert (found.train.epochs, found.search.latency, found.search.min_accuracy) == (6, None, 0.9)
    found = config("--set", "search.min_accuracy=0.9", "--latency-ms", "5")
    assert (found.search.latency_ms, found.search.latency, found.search.min_accuracy) == (5.0, None, None)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.epochs", "--set takes section.key=value, e.g. train.epochs=3, not 'train.epochs'"),
        ("=3", "--set takes section.key=value, e.g. train.epochs=3, not '=3'"),
        ("train=3", "--set train: this is a section; set one of its keys, e.g. train.epochs"),
        ("train.epoks=3", "--set: unknown key 'train.epoks'; did you mean 'train.epochs'?"),
        ("trian.batch_size=3", "--set: unknown key 'trian.batch_size'; did you mean 'train.batch_size'?"),
        ("epochs=3", "--set: unknown key 'epochs'; did you mean 'train.epochs' or 'slice.epochs'?"),
        ("space.xyz=3", "--set: unknown key 'space.xyz'; known here: bins, bins_by, channel_multiple"),
        ("q.xyz=3", "--set: unknown key 'q.xyz'; known here: preset, seed, device, batch, threads, "),
        ("train.epochs=three", "train.epochs: input should be a valid integer, not 'three'"),
        ("train.epochs=0", "train.epochs: input should be greater than or equal to 1, not 0"),
        ("train.step=slim", "train.step: input should be 'plain', 'alternating', 'sandwich', 'distilled'"),
        ("train.method=bcnetv3", "train.method: unknown method 'bcnetv3'; did you mean 'bcnetv2'?"),
        ("train.amp=yes", "train.amp: input should be true or false, not 'yes'"),
        ("space.freeze=stem", 'space.freeze: input should be a list, e.g. ["a", "b"], not \'stem\''),
        ("model.args=3", "model.args: input should be a table, not 3"),
        ("search.latency_ms=fast", "search.latency_ms: milliseconds are a number, e.g. 5.0, not 'fast'"),
        ("device=jets", "unknown device 'jets'"),
    ],
)
def test_a_wrong_assignment_is_wrong_usage_that_is_explained_in_one_line(
    refused: Refused, assignment: str, message: str
) -> None:
    assert message in refused(2, "train", "--set", assignment)


@pytest.mark.parametrize("command", ["train", "build-lut", "check-lut", "search", "slice", "export", "run"])
def test_every_stage_takes_settings(refused: Refused, command: str) -> None:
    assert "unknown key 'sead'; did you mean 'seed'?" in refused(2, command, "--set", "sead=1")


def test_inspect_takes_settings_and_the_arguments_of_its_own_model(capfd: pytest.CaptureFixture[str]) -> None:
    Path("bcnet.toml").write_text("[model]\nargs = {depth = 3}\n", encoding="utf-8")
    arguments = ["inspect", "--model", "digits", "--image-size", "16", "--set", "space.bins=3", "--json"]
    assert main(arguments) == 0
    groups = json.loads(capfd.readouterr().out)["groups"]
    assert {len(group["choices"]) for group in groups} == {3}
    assert main([*arguments, "--set", "model.args.depth=3"]) == 1
    assert "'digits' has no argument 'depth'; known: in_channels, num_classes" in capfd.readouterr().err


def test_the_type_of_an_option_is_that_of_its_field() -> None:
    annotations = with_settings(*ALL)(lambda given: given).__annotations__
    kinds = {
        name: get_args(get_args(option)[0]) or get_args(option)[0] for name, option in annotations.items()
    }
    assert kinds["epochs"][0] is int
    assert kinds["latency_ms"][0] == list[str]  # for all devices, or DEVICE=VALUE for each
    assert kinds["latency"][0] == list[str]
    assert kinds["device"][0] == list[str]
    assert kinds["precision"][0] is str
    assert kinds["host"][0] == list[str]
    assert kinds["pareto"] is bool
