"""One validated configuration from a file and flags."""

import os
import re
import tomllib
from pathlib import Path

import pytest

from bcnet.config import (
    CONFIG_FILE,
    EXAMPLE,
    Config,
    DataConfig,
    ModelConfig,
    Section,
    latency_share,
    load_config,
    settings,
    template,
)
from bcnet.errors import ConfigError, UsageError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "bcnet.toml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def keys() -> list[tuple[str, str, str]]:
    """(section, key, description) of every setting; the top level is ""."""
    found = []
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += [(name, key, f.description or "") for key, f in field.annotation.model_fields.items()]
        else:
            found.append(("", name, field.description or ""))
    return found


def test_without_a_file_the_built_in_example_is_configured() -> None:
    config = load_config(None)
    assert config == Config.model_validate(EXAMPLE)
    assert (config.model.name, config.model.weights, config.data.name) == (
        "digit-scenes",
        "pretrained",
        "digit-scenes",
    )
    assert load_config(None, {"search": {"latency_ms": 2.0}}).search.latency is None


def test_an_empty_file_has_the_defaults() -> None:
    assert load_config(write("")) == Config()
    assert Config().train.method == "bcnet"


def test_a_typed_network_or_dataset_takes_the_place_of_the_whole_example() -> None:
    assert load_config(None, {"model": {"name": "cbm-resnet"}}).model == ModelConfig(name="cbm-resnet")
    own = load_config(None, assigned={"data": {"name": "cifar10"}})
    assert own == Config(data=DataConfig(name="cifar10"))


def test_the_template_of_the_example_loads_to_the_example() -> None:
    text = template(EXAMPLE)
    assert load_config(write(text)) == Config.model_validate(EXAMPLE)
    assert text.splitlines()[1] == (
        "# Only these are not defaults, but those of the built-in example: model.name, model.weights, "
        "data.name, search.latency, slice.epochs."
    )
    assert "# passes over the training images (default: 8)\nepochs = 3\n" in text


def test_the_file_in_the_working_folder_is_read() -> None:
    write("seed = 7\n[train]\nepochs = 3\n")
    config = load_config(None)
    assert (config.seed, config.train.epochs) == (7, 3)


def test_a_named_file_takes_the_place_of_the_default_one() -> None:
    write("seed = 7\n")
    assert load_config(write("seed = 8\n", "other.toml")).seed == 8


def test_flags_override_the_file_and_none_leaves_it() -> None:
    write("seed = 7\n[train]\nepochs = 3\nbatch_size = 16\n")
    config = load_config(None, {"": {"seed": 9}, "train": {"epochs": 5, "train_device": None}})
    assert (config.seed, config.train.epochs, config.train.batch_size) == (9, 5, 16)


@pytest.mark.parametrize(
    "budget",
    ["latency_ms = 5.0", 'latency = "60%"', "fps = 30.0", "p90_ms = 8.0", "min_accuracy = 0.9"],
)
def test_a_budget_flag_replaces_the_files_budget_of_any_kind(budget: str) -> None:
    write(f"[search]\n{budget}\npopulation = 5\n")
    search = load_config(None, {"search": {"latency_ms": 2.0}}).search
    assert (search.latency_ms, search.latency, search.min_accuracy, search.population) == (2.0, None, None, 5)


def test_images_per_second_are_a_budget_in_milliseconds_per_call() -> None:
    search = load_config(None, {"search": {"fps": 30.0}}).search
    assert search.given_ms(batch=1) == pytest.approx(33.333, abs=1e-3)
    assert search.given_ms(batch=8) == pytest.approx(266.667, abs=1e-3)


def test_a_configuration_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1  # type: ignore[misc]


def test_the_template_loads_to_the_defaults() -> None:
    assert load_config(write(template())) == Config()


def test_the_template_leaves_the_device_to_the_table_that_was_built_last() -> None:
    assert not {"device", "host"} & load_config(write(template())).model_fields_set


@pytest.mark.parametrize(("section", "key", "description"), keys())
def test_the_template_documents_every_key_in_its_section(section: str, key: str, description: str) -> None:
    parts = re.split(r"^\[(\w+)\]$", template(), flags=re.MULTILINE)
    texts = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
    assert description
    assert re.search(rf"^# {re.escape(description)}\n(# )?{key} = ", texts[section], flags=re.MULTILINE)


def test_the_template_has_a_title_for_every_section() -> None:
    sections = re.findall(r"^\[(\w+)\]$", template(), flags=re.MULTILINE)
    assert sections == ["model", "data", "task", "space", "train", "search", "slice", "export"]
    assert len(re.findall(r"^# .+\n\[\w+\]$", template(), flags=re.MULTILINE)) == len(sections)


def test_every_example_in_the_templates_comments_is_valid() -> None:
    lines = template().splitlines()
    examples = [number for number, line in enumerate(lines) if re.match(r"# \w+ = ", line)]
    with_example = [key.rpartition(".")[2] for key, field in settings().items() if field.examples]
    assert [lines[number].split()[1] for number in examples] == with_example
    for number in examples:
        text = "\n".join([*lines[:number], lines[number].removeprefix("# "), *lines[number + 1 :]])
        assert load_config(write(text)) != Config()
        assert tomllib.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 3", "bcnet.toml: unknown key 'train.epoch'; did you mean 'epochs'?"),
        ("[trian]\nepochs = 3", "unknown key 'trian'; did you mean 'train'?"),
        ("sead = 3", "unknown key 'sead'; did you mean 'seed'?"),
        ("[space]\nxyz = 3", "unknown key 'space.xyz'; known here: bins, bins_by, channel_multiple"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[train]\nepochs = "three"', "train.epochs: input should be a valid integer, not 'three'"),
        ("[train]\nepochs = 1.5", "train.epochs: input should be a valid integer"),
        ("[train]\nepochs = true", "train.epochs: input should be a valid integer, not True"),
        ("[train]\nepochs = 0", "train.epochs: input should be greater than or equal to 1, not 0"),
        ("[train]\nlearning_rate = nan", "train.learning_rate: input should be a finite number, not nan"),
        ("[export]\nlatency_tolerance = inf", "export.latency_tolerance: input should be a finite number"),
        ("seed = 4294967296", "seed: input should be less than 4294967296"),
        ("train = 3", "train: input should be a"),
        ("device = 3", "device: input should be a valid string or a list of strings, not 3"),
        ("[data]\nval_fraction = 1.0", "data.val_fraction: input should be less than 1, not 1.0"),
        (
            '[train]\nmethod = "bcnet3"',
            "train.method: unknown method 'bcnet3'; did you mean 'bcnet'? known: bcnet",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(text))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("latency_ms = 0.0", "latency_ms must be a number above zero, not 0.0"),
        ("fps = 0.0", "fps must be a number above zero, not 0.0"),
        ('p90_ms = "8"', "search.p90_ms: milliseconds are a number, e.g. 5.0, not '8'"),
        ("latency_ms = -1.0", "latency_ms must be a number above zero, not -1.0"),
        ("latency_ms = nan", "latency_ms must be a number above zero, not nan"),
        ("latency_ms = inf", "latency_ms must be a number above zero, not inf"),
        ('latency_ms = "5"', "search.latency_ms: milliseconds are a number, e.g. 5.0, not '5'"),
        ('latency_ms = "60%"', "a share of the full network's latency is given as latency (--latency), e.g."),
        ('latency = "60"', "a latency share is written as 60%, above zero, not '60'"),
        ('latency = "5 ms"', "not '5 ms'; for milliseconds, give latency_ms (--latency-ms), e.g. 5.0"),
        (
            "latency = 60",
            'search.latency: a latency share is written as "60%", with quotes, not 60; for mill',
        ),
        ("min_accuracy = 1.5", "min_accuracy must be above 0 and at most 1, not 1.5"),
        ("min_accuracy = nan", "min_accuracy must be above 0 and at most 1, not nan"),
        (
            "latency_ms = 5.0\nmin_accuracy = 0.9",
            "give only one of latency_ms, fps, p90_ms, latency and min_accuracy",
        ),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused(budget: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(f"[search]\n{budget}"))


def test_a_wrong_flag_is_wrong_usage_and_does_not_blame_the_file() -> None:
    write("seed = 7\n")
    with pytest.raises(
        UsageError, match=r"^train\.epochs: input should be greater than or equal to 1, not 0$"
    ):
        load_config(None, {"train": {"epochs": 0}})


def test_a_named_file_that_is_missing_names_the_command_that_writes_one() -> None:
    with pytest.raises(UsageError, match=r"nope\.toml does not exist; create one with `bcnet init`"):
        load_config(Path("nope.toml"))


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe\x00", b"[train\n"])
def test_a_file_that_is_not_toml_says_so_in_one_line(content: bytes) -> None:
    CONFIG_FILE.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^bcnet\.toml is not TOML: .+$"):
        load_config(None)


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_read() -> None:
    Path("bcnet.toml").write_bytes(b"\xef\xbb\xbfseed = 1\r\n[train]\r\nepochs = 2\r\n")
    config = load_config(None)
    assert (config.seed, config.train.epochs) == (1, 2)


def test_a_link_that_leads_nowhere_is_an_error_and_never_the_defaults() -> None:
    CONFIG_FILE.symlink_to("share/bcnet.toml")
    with pytest.raises(ConfigError, match=r"bcnet\.toml is a link to share/bcnet\.toml, which is not there"):
        load_config(None)
    CONFIG_FILE.unlink()
    CONFIG_FILE.symlink_to(CONFIG_FILE)
    with pytest.raises(ConfigError, match=r"bcnet\.toml is a link that leads to itself"):
        load_config(None)


def test_a_pipe_is_refused_and_not_waited_for() -> None:
    os.mkfifo(CONFIG_FILE)
    with pytest.raises(ConfigError, match=r"bcnet\.toml is a named pipe, not a file"):
        load_config(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "more than 64 levels of nested lists or tables"),
        (f"[model]\nargs.{'.'.join('a' * 400)} = 1", "more than 64 levels of nested lists or tables"),
        ("seed = " + "9" * 25, "an integer of more than 64 bits"),
        ("[space]\nbins = 5000", "space.bins: input should be less than or equal to 4096, not 5000"),
        ('seed = "' + "\\u001b[31m" * 1000 + '"', "5000 long"),
        (f"seed = 1{'0' * 5000}", "is not TOML: an integer of more than 64 bits"),
        ("#" * 1_048_577, "is 1,048,577 bytes long, but at most 1,048,576 are read"),
    ],
)
def test_a_file_without_bounds_is_refused_in_one_line(text: str, message: str) -> None:
    write(text)
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(None)
    assert "\n" not in str(refused.value)


def test_a_folder_is_not_a_configuration() -> None:
    Path("conf").mkdir()
    with pytest.raises(ConfigError, match="conf is a folder, not a file"):
        load_config(Path("conf"))


@pytest.mark.parametrize(("text", "share"), [("60%", 0.6), (" 12.5 %", 0.125), ("250%", 2.5)])
def test_a_latency_share_is_a_percentage(text: str, share: float) -> None:
    assert latency_share(text) == pytest.approx(share)


def test_a_latency_above_the_networks_own_needs_wider_networks() -> None:
    write('[search]\nlatency = "150%"\n')
    with pytest.raises(ConfigError, match=r"^bcnet\.toml: search: latency 150% is above the network's own"):
        load_config(None)
    write('[search]\nlatency = "150%"\n[space]\nexpand = 1.5\n')
    assert load_config(None).search.latency == "150%"


@pytest.mark.parametrize("text", ["60", "0%", "-5%", "nan%", "inf%", "%", "sixty%", ""])
def test_other_texts_are_no_latency_share(text: str) -> None:
    with pytest.raises(ValueError, match="a latency share is written as 60%"):
        latency_share(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('fitness = "soft"\nmin_accuracy = 0.9', "fitness 'soft' weighs latency against a budget"),
        ('fitness = "soft"\npareto = true', "fitness 'soft' weighs latency against a budget"),
        ("over_budget = true", "over_budget is for fitness 'soft'"),
        ("max_params = 0", "search.max_params: input should be greater than or equal to 1, not 0"),
        ("max_size_mb = 0.0", "search.max_size_mb: input should be greater than 0"),
        ("latency_exponent = 0.1", "search.latency_exponent: input should be less than or equal to 0"),
    ],
)
def test_ways_to_search_that_contradict_each_other_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(f"[search]\n{text}\n"))


def test_a_flag_for_the_slices_budget_replaces_the_files_of_either_kind() -> None:
    write('[slice]\nlatency = "60%"\nepochs = 3\n')
    own = load_config(None, {"slice": {"latency_ms": 2.0}}).slice
    assert (own.latency_ms, own.latency, own.epochs, own.of_front) == (2.0, None, 3, True)
    assert not Config().slice.of_front


@pytest.mark.parametrize(("old", "new"), [("turns", "alternating"), ("taught", "distilled")])
def test_a_step_by_its_former_name_works_and_says_the_new_one(
    old: str, new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bcnet.toml"
    path.write_text(f'[train]\nstep = "{old}"\n', encoding="utf-8")
    assert load_config(path).train.step == new
    assert f'train.step = "{old}" is now called "{new}"; please rename it' in capsys.readouterr().err
