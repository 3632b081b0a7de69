"""Methods of other packages: found by their entry points, loaded when they are asked for, searched with."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from conftest import CONFIG, Refused
from torch import nn

from bcnet.allocation.limits import Limits
from bcnet.cli import main
from bcnet.config import load_config
from bcnet.errors import ConfigError
from bcnet.pipeline.configured_methods import called, check_method, check_within, listed, settings_recorded
from bcnet.registry import METHODS, SUPERNETS, Method, auto_methods, own_methods
from bcnet.runs import digest
from bcnet.space.discover import discover_space
from bcnet.space.width_space import Widths
from bcnet.user_code import code_of
from bcnet.width_search.constraints import Bound
from tests.methods.tiny import product_bound, space_of

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "contributing/add-a-method.md").read_text(encoding="utf-8")
RUN = Path("runs/default")
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install(package, entries, files)`: a package as if it were installed, with these entry points."""

    def made(
        package: str, entries: Mapping[str, str], files: Mapping[str, str], group: str = "bcnet.methods"
    ) -> Path:
        site = tmp_path / f"site-{package}"
        about = site / f"{package}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", "utf-8")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (about / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]), "utf-8")
        for name, text in files.items():
            (site / name).write_text(text, "utf-8")
        monkeypatch.syspath_prepend(site)
        return site

    return made


def code(language: str, place: int) -> str:
    """A block of code of the guide."""
    return re.findall(rf"^```{language}\n(.+?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)[place]


def configure(settings: str) -> None:
    Path("bcnet.toml").write_text(CONFIG.replace("[search]", f"[search]\n{settings}"), encoding="utf-8")


def test_the_guides_package_is_searched_with(
    project: Path, install: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    (entry,) = re.findall(r'^([\w-]+) = "(\w+)"$', code("toml", 0), flags=re.MULTILINE)
    install("guide", dict([entry]), {"every_other.py": code("python", 0)})
    configure(code("toml", 1).split("[search]\n")[1])
    for stage in ("train", "search"):
        assert main([stage]) == 0, capfd.readouterr().err
    found = json.loads((RUN / "search/result.json").read_text(encoding="utf-8"))
    assert (found["method"], found["methods"]) == ("every-other", ["every-other"])
    assert found["best"]["measured"]["median_ms"] <= found["budget"]["ms"]
    from bcnet.pipeline.open_problem import open_problem

    space = open_problem(load_config(None)).space
    widths = found["best"]["widths"]
    assert widths[0] < space.groups[0].channels
    assert all(width in group.choices for width, group in zip(widths, space.groups, strict=True))
    # Other settings are other networks: the search is outdated by them.
    configure('method = "every-other"\nsettings = { narrower = 2 }')
    from bcnet.pipeline.search import stage_inputs
    from bcnet.runs import Run

    run = Run.named("default")
    assert run.stage("search").outdated(stage_inputs(run, open_problem(load_config(None)))) is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{ narrow = 1 }", "search.settings: unknown key 'narrow'; did you mean 'narrower'?"),
        ('{ narrower = "1 choice" }', "search.settings: narrower: input should be a valid integer"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_settings_that_the_method_does_not_take_are_refused(
    install: Install, settings: str, message: str
) -> None:
    strict = code("python", 0).replace("class Settings(BaseModel):", "class Settings(Section):")
    strict = strict.replace("from pydantic import BaseModel", "from bcnet.config import Section")
    strict = strict.replace("every-other", "strict")
    install("strict", {"strict": "strict_method"}, {"strict_method.py": strict})
    configure(f'method = "strict"\nsettings = {settings}')
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_method(load_config(None))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("auto", "search.settings are those of one method, not of 'auto'"),
        ("uniform", "search.settings: the method 'uniform' has no settings"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_settings_without_a_method_that_has_some_are_refused(method: str, message: str) -> None:
    configure(f'method = "{method}"\nsettings = {{ rounds = 3 }}')
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_method(load_config(None))


BROKEN = {
    "absent": ("no_such_module", {}, "ModuleNotFoundError: No module named 'no_such_module'", ""),
    "broken": (
        "broken_method",
        {"broken_method.py": "1 / 0\n"},
        "ZeroDivisionError: division by zero",
        " in broken_method.py, line 1",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_package_that_cannot_be_loaded_is_reported_in_one_line_where_its_method_is_chosen(
    project: Path, install: Install, refused: Refused, name: str
) -> None:
    module, files, reason, place = BROKEN[name]
    install("wrong", {name: module}, files)
    assert load_config(None).search.method == "auto"
    assert auto_methods()[0].name == "uniform"
    configure(f'method = "{name}"')
    assert refused(1, "search") == (
        f"bcnet: search.method = '{name}': {module} of the package 'wrong' cannot be loaded ({reason})"
        f"{place}; install what it needs, or choose another method"
    )


def test_a_module_that_registers_nothing_and_a_name_of_two_packages_are_refused(install: Install) -> None:
    install("empty", {"nothing": "registers_nothing"}, {"registers_nothing.py": ""})
    with pytest.raises(ConfigError, match=r"registers_nothing of the package 'empty' registers no method of"):
        METHODS["nothing"]
    install("second", {"nothing": "registers_nothing"}, {})
    with pytest.raises(ConfigError, match=r"'second' and .* of the package 'empty' both have this name"):
        METHODS["nothing"]


@pytest.mark.usefixtures("folder")
def test_a_method_that_fails_is_reported_in_one_line(install: Install) -> None:
    text = 'from bcnet import method\n@method("failing", "fails")\ndef propose(problem):\n    return [][0]\n'
    install("failing", {"failing": "failing_method"}, {"failing_method.py": text})
    with pytest.raises(
        ConfigError, match=r"^'failing' failed \(IndexError: .*\) in failing_method\.py, line 4; docs/contr"
    ):
        called(METHODS["failing"], None, list)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (Widths((8, 8)), "returned Widths, where a list of Widths is expected"),
        (None, "returned None, where a list of Widths is expected"),
        ([8, 8], "returned a list of int, not of Widths"),
    ],
)
def test_what_is_no_list_of_widths_is_named(returned: object, message: str) -> None:
    own = Method("odd", lambda problem: returned, "")
    with pytest.raises(ConfigError, match=rf"^'odd' {message}; docs/contributing/add-a-method"):
        called(own, None, lambda found: listed(own, found))


def test_networks_above_a_limit_are_refused_before_they_are_measured() -> None:
    own, space = Method("slow", list, ""), space_of([(2, 4, 6)])

    def limits(limit_ms: float, *bounds: Bound) -> Limits:
        return Limits(space, lambda widths: widths[0] / 10, limit_ms, bounds)

    check_within(own, Widths((4,)), limits(0.4))
    with pytest.raises(
        ConfigError, match=r"^'slow' returned a network predicted at 0\.600 ms, above the limit o"
    ):
        check_within(own, Widths((6,)), limits(0.4))
    with pytest.raises(
        ConfigError, match="returned a network of 36 parameters, above the limit of 20; docs/"
    ):
        check_within(own, Widths((6,)), limits(0.7, product_bound(1, [(0, 0)], 20)))


@pytest.mark.usefixtures("folder")
def test_a_wrong_setting_is_wrong_usage_where_it_is_typed(install: Install, refused: Refused) -> None:
    install("guide", {"every-other": "every_other"}, {"every_other.py": code("python", 0)})
    configure('method = "every-other"\nsettings = { narower = 1 }')
    hint = "search.settings: unknown key 'narower'; did you mean 'narrower'?"
    with pytest.raises(ConfigError, match=re.escape(hint)):
        check_method(load_config(None))
    configure('method = "every-other"')
    assert hint in refused(2, "search", "--set", "search.settings.narower=1")
    wrong = "search.settings: narrower: input should be a valid integer"
    assert wrong in refused(2, "search", "--set", "search.settings.narrower=one")


@pytest.mark.usefixtures("folder")
def test_a_search_is_outdated_by_new_code_of_another_packages_method_and_not_of_bcnets_own(
    install: Install,
) -> None:
    configure('method = "network-adjustment"\nadjust_by = "macs"')
    search = load_config(None).search
    assert settings_recorded(METHODS["network-adjustment"], search) == ["macs"]
    assert settings_recorded(METHODS["group-fisher"], search) == [2, "latency"]
    text = 'from bcnet import method\n@method("coded", "")\ndef propose(problem):\n    return []\n'
    install("coded", {"coded": "coded_method"}, {"coded_method.py": text})
    configure('method = "coded"')
    (code_,) = settings_recorded(METHODS["coded"], load_config(None).search)
    assert code_ == digest(code_of(METHODS["coded"].function)) != digest("")


def test_an_unknown_name_is_refused_with_a_close_one_and_all_that_are_known(install: Install) -> None:
    install("guide", {"every-other": "every_other"}, {})
    assert METHODS.refusal("every-other") is None
    assert METHODS.refusal("latency-mlip") == (
        "unknown method 'latency-mlip'; did you mean 'latency-milp'? known: auto, evolution, adapruner, "
        "group-fisher, iterative-taylor, latency-greedy, latency-milp, network-adjustment, uniform, "
        "every-other; a method of another package has to be installed in this Python"
    )
    assert "did you mean 'every-other'?" in (METHODS.refusal("every-othre") or "")


def test_names_are_listed_without_importing_what_they_name() -> None:
    listed = (
        "import sys; from bcnet.registry import METHODS; names = METHODS.names(); import bcnet.config; "
        "print(len(names), [name for name in ('torch', 'numpy', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(METHODS.names())} []\n"


def test_every_method_is_in_the_readme_and_every_rule_for_supernets_in_the_documentation() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*METHODS.reserved, *METHODS.own()) if f"`{name}`" not in readme] == []
    page = (DOCS / "concepts/supernet-training.md").read_text(encoding="utf-8")
    papers = {name: re.findall(r"arXiv [\d.]+", SUPERNETS[name].paper) for name in SUPERNETS.own()}
    assert papers.keys() == {"bcnet", "bcnetv2", "cafenet", "psenet", "unilateral"}
    assert all(paper in page for own in papers.values() for paper in own)


RULE = """
from bcnet.space.channel_rules import ChannelRule, channel_rule

@channel_rule
class Halves(ChannelRule):
    name, summary, paper, sides = "halves", "half of the channels, or all", "", ("left",)

    def choices(self, channels, bins, multiple, minimum, unit=1):
        return (channels // 2, channels)

    def extra(self, choices):
        return 0
"""


@pytest.mark.usefixtures("folder")
def test_a_rule_of_another_package_defines_the_widths_of_a_supernet(install: Install) -> None:
    install("rules", {"halves": "halves_rule"}, {"halves_rule.py": RULE}, "bcnet.methods.supernets")
    Path("bcnet.toml").write_text('[train]\nmethod = "halves"\n', encoding="utf-8")
    assert load_config(None).train.method == "halves"
    model = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    space = discover_space(model, torch.zeros(1, 1, 4, 4), method="halves")
    assert [group.choices for group in space.groups] == [(3, 6)]
    assert space.rule.sides == ("left",)


def test_the_documentations_table_is_what_is_registered() -> None:
    page = (DOCS / "guides/choosing-a-method.md").read_text(encoding="utf-8")
    table = page.split("## Methods\n\n")[1].split("\n\n")[0].splitlines()
    rows = [f"| `{own.name}` | {own.summary} | {own.paper}".rstrip() + " |" for own in own_methods()]
    assert table[2 : 2 + len(rows)] == rows
    compared = ", ".join(f"`{own.name}`" for own in auto_methods())
    assert f"| `auto` (default with weights) | all of {compared}; the network" in page
