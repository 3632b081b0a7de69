"""PSE-Net through the stages: widths that share batches, and a search whose mutations draw from the prior."""

import json
from pathlib import Path

import pytest
from conftest import Refused

from bcnet.cli import main
from bcnet.config import load_config
from bcnet.pipeline.finished import training_records
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.search_inputs import settings_of
from bcnet.runs import Run
from bcnet.space.channel_rules import WidthSampler
from bcnet.space.width_space import Widths
from bcnet.training.loop import steps_an_epoch
from bcnet.training.recipe import Recipe

PSENET = "train.method=psenet", "train.parallel=3", "slice.epochs=0"
SET = [word for own in PSENET for word in ("--set", own)]


def test_each_step_trains_the_next_widths_of_the_permutations_and_the_search_goes_on_from_them(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("train", "search", "slice"):
        assert main([command, *SET]) == 0
    assigned = {"train": {"method": "psenet", "parallel": 3}, "slice": {"epochs": 0}}
    problem = open_problem(load_config(None, assigned))
    config = problem.config
    recipe = Recipe.of(config, config.train.epochs, 0.1)
    count = config.train.epochs * steps_an_epoch(problem.data, recipe)
    records = training_records(Run.named("default"))
    sampler = WidthSampler(problem.space.rule, problem.choices, config.seed, False)
    assert [widths for widths, _ in records] == [Widths(sampler.at(step)) for step in range(3 * count)]
    assert problem.supernet_passes == config.train.epochs
    best = json.loads(Path("runs/default/search/result.json").read_text())["best"]
    small = json.loads(Path("runs/default/slice/result.json").read_text())
    assert best["widths"] == small["widths"]
    assert settings_of(problem).prior_mutation
    capsys.readouterr()
    assert main(["train", *SET, "--set", "train.draws=2"]) == 0  # which has no effect
    assert "trained already" in capsys.readouterr().err


def test_steps_that_cannot_share_a_batch_are_refused_before_anything_is_read(
    project: Path, refused: Refused
) -> None:
    line = refused(2, "train", "--set", "train.method=psenet", "--set", "train.parallel=32")
    assert "a batch of 32 images cannot be shared by 32 subnets" in line
    wide = "--set train.method=psenet --set train.parallel=50 --set train.batch_size=128 --run new"
    few = refused(1, "train", *wide.split())
    assert few.endswith(
        "training images cannot be shared by 50 subnets, each of which needs at least 2: lower train.parallel"
    )
    Path("bcnet.toml").write_text('[train]\nmethod = "psenet"\nstep = "distilled"\n', encoding="utf-8")
    assert "use plain or sandwich" in refused(1, "train")


@pytest.mark.parametrize(
    ("method", "given", "wanted"),
    [("psenet", None, True), ("psenet", "choices", False), ("bcnet", None, False), ("bcnet", "prior", True)],
)
@pytest.mark.usefixtures("project")
def test_mutations_draw_from_the_prior_where_the_method_or_the_setting_says_so(
    method: str, given: str | None, wanted: bool
) -> None:
    asked = {"train": {"method": method}, "search": {"mutate_from": given}}
    assert settings_of(open_problem(load_config(None, asked))).prior_mutation == wanted
