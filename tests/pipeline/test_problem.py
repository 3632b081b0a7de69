"""What a configuration names is loaded, and its digests follow what a supernet depends on."""

import importlib
import linecache
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from bcnet.config import Config, DataConfig, ModelConfig, SpaceConfig, load_config
from bcnet.errors import ModelError, SpaceError
from bcnet.models import build_model
from bcnet.models.weights import fresh_heads
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.route import on_trained_network
from bcnet.space.supernet import cut
from bcnet.training.recipe import fine_tuning_digest, metric_digest, training_digest

pytestmark = pytest.mark.usefixtures("folder")

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, extra=False):
        super().__init__()
        self.conv = nn.Conv2d(1, 64, 3)
        self.head = nn.Linear(64, 10)
        self.extra = extra

    def forward(self, x):
        y = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return (y, y) if self.extra and self.training else y
"""


def model_digest(code: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest of a problem whose network is in a file with this content."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("project_net.py").write_text(code, encoding="utf-8")
    sys.modules.pop("project_net", None)
    importlib.invalidate_caches()
    linecache.clearcache()
    return open_problem(Config(model=ModelConfig(name="project_net:Net"))).inputs()["model"]


def test_a_networks_digest_follows_its_code_and_not_its_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_digest(NETWORK, monkeypatch)
    assert model_digest(NETWORK, monkeypatch) == before
    assert (
        model_digest(NETWORK.replace("        y = ", "        # a comment\n        y = "), monkeypatch)
        == before
    )
    assert model_digest(NETWORK.replace("torch.relu(", "torch.sigmoid("), monkeypatch) != before


def test_a_networks_digest_follows_its_seed_and_its_arguments() -> None:
    def digest(**config: object) -> str:
        return open_problem(Config.model_validate(config)).inputs()["model"]

    assert len({digest(seed=0), digest(seed=1), digest(model={"name": "cbm-resnet", "args": {}})}) == 3
    assert digest(seed=0) == digest(seed=0)


def test_the_digest_of_training_settings_leaves_out_nothing_but_the_machine() -> None:
    def digest(section: str, **values: object) -> str:
        return training_digest(Config.model_validate({section: values}))

    plain = digest("train")
    assert digest("train", train_device="cpu") == plain
    changes = [digest("train", amp=False), digest("train", epochs=2), digest("data", flip=True)]
    assert len({plain, *changes, training_digest(Config(seed=1))}) == 5


def test_a_rate_that_is_given_is_another_setting_than_none_for_trained_weights() -> None:
    given = {"model": {"weights": "w.pt"}}
    plain = Config.model_validate(given)
    train = Config.model_validate({**given, "train": {"learning_rate": plain.train.learning_rate}})
    tuning = Config.model_validate({**given, "slice": {"learning_rate": plain.slice.learning_rate}})
    assert training_digest(train) != training_digest(plain) == training_digest(tuning)
    assert fine_tuning_digest(tuning) != fine_tuning_digest(plain) == training_digest(plain)
    fresh = Config.model_validate({"slice": {"learning_rate": plain.slice.learning_rate}})
    assert fine_tuning_digest(fresh) == fine_tuning_digest(Config())


def picture(path: str, red: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (red, 0, 0)).save(path)


def test_the_datas_digest_follows_every_image_and_the_classes_names() -> None:
    for label in ("cat", "dog"):
        for number in range(60):
            picture(f"pets/{label}/{number}.png", number)

    def digest() -> str:
        config = Config(model=ModelConfig(name="cbm-resnet"), data=DataConfig(name="imagefolder:pets"))
        return open_problem(config).inputs()["data"]

    before = digest()
    assert digest() == before
    for number in range(60):
        picture(f"pets/dog/{number}.png", number)
    assert digest() == before
    picture("pets/dog/7.png", 200)
    changed = digest()
    assert changed != before
    Path("pets/dog").rename("pets/dogs")
    assert digest() not in (before, changed)


AUXILIARY = """
from collections import namedtuple

from torch import nn

from project_net_plain import Net

Outputs = namedtuple("Outputs", ["logits", "aux_logits"])

class Auxiliary(Net):
    def forward(self, x):
        y = super().forward(x)
        return Outputs(y, None) if self.training else y

class Following(Auxiliary):
    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(64, 10)

    def forward(self, x):
        y = super().forward(x)
        return Outputs(y[0], self.aux(self.conv(x).mean((2, 3)))) if self.training else y

class Masks(Net):
    def forward(self, x):
        return {"out": super().forward(x)[:, :, None, None].expand(-1, -1, 8, 8)}
"""


def test_auxiliary_outputs_in_training_are_accepted_as_torchvisions_networks_give_them() -> None:
    Path("project_net_plain.py").write_text(NETWORK, encoding="utf-8")
    Path("project_auxiliary.py").write_text(AUXILIARY, encoding="utf-8")
    assert open_problem(Config(model=ModelConfig(name="project_auxiliary:Auxiliary"))).space.groups


def test_auxiliary_layers_follow_the_widths_of_what_they_read() -> None:
    Path("project_net_plain.py").write_text(NETWORK, encoding="utf-8")
    Path("project_auxiliary.py").write_text(AUXILIARY, encoding="utf-8")
    problem = open_problem(Config(model=ModelConfig(name="project_auxiliary:Following")))
    widths = problem.space.smallest()
    assert problem.space.shape("aux.weight", widths) == (10, widths[0])
    with torch.no_grad():
        output = cut(problem.model, problem.space, widths).train()(problem.data.example(2))
    assert output.aux_logits.shape == (2, 10)


def test_outputs_of_another_shape_than_the_classes_are_refused() -> None:
    Path("project_net_plain.py").write_text(NETWORK, encoding="utf-8")
    Path("project_auxiliary.py").write_text(AUXILIARY, encoding="utf-8")
    message = r"'project_auxiliary:Masks' gives outputs of shape \(1, 10, 8, 8\), the data has 10 classes"
    with pytest.raises(ModelError, match=message):
        open_problem(Config(model=ModelConfig(name="project_auxiliary:Masks")))


def test_the_digest_of_training_settings_follows_the_code_of_the_users_functions() -> None:
    def digest(name: str, code: str) -> str:
        Path(f"{name}.py").write_text(f"def loss(outputs, targets):\n    return {code}\n", encoding="utf-8")
        return training_digest(Config.model_validate({"task": {"loss": f"{name}:loss"}}))

    first = digest("project_loss", "outputs.mean()")
    sys.modules.pop("project_loss")
    linecache.clearcache()
    importlib.invalidate_caches()
    assert digest("project_loss", "outputs.square().mean()  # another") != first


def test_another_metric_judges_the_same_supernet() -> None:
    other = Config.model_validate({"task": {"metric": "mean-iou"}})
    assert training_digest(other) == training_digest(Config())
    assert metric_digest(other) != metric_digest(Config())


def test_a_network_that_returns_more_in_training_is_refused() -> None:
    Path("project_aux.py").write_text(NETWORK, encoding="utf-8")
    config = Config(model=ModelConfig(name="project_aux:Net", args={"extra": True}))
    with pytest.raises(ModelError, match="'project_aux:Net' returns tuple in training, not one tensor"):
        open_problem(config)


def test_an_expanded_supernet_holds_the_given_network_among_its_choices() -> None:
    given = open_problem(Config())
    problem = open_problem(Config(space=SpaceConfig(expand=1.5)))
    space = problem.space
    assert [group.channels for group in space.groups] == [120, 120, 240, 240, 480, 480]
    assert space.original() == given.space.largest() == (80, 80, 160, 160, 320, 320)
    assert all(width in group.choices for width, group in zip(space.original(), space.groups, strict=True))
    for group in space.groups:
        assert all(space.rule.complement(group.choices, w) in (*group.choices, None) for w in group.choices)
    x = problem.data.example(2)
    with torch.no_grad():
        whole = cut(problem.model, space, space.original())(x)
        assert torch.equal(whole, given.model(x))
        fresh = cut(problem.fresh_model(), space, space.original())(x)
        assert torch.equal(whole, fresh)
    assert problem.inputs()["model"] != given.inputs()["model"]


def test_a_graph_is_never_that_of_a_network_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Problem, "_exported", lambda problem, _: repr(problem.model))
    problem = open_problem(Config())
    graphs = [problem.graph]
    for width in range(1, 20):  # each would be where the one before it was
        graphs.append(replace(problem, model=nn.Linear(width, 1)).graph)
    assert len(set(map(str, graphs))) == 20


def test_groups_are_frozen_and_tied_as_configured() -> None:
    names = [group.name for group in open_problem(Config()).space.groups]
    frozen = open_problem(Config(space=SpaceConfig(freeze=(names[0],))))
    assert [group.name for group in frozen.space.groups] == names[1:]
    tied = open_problem(Config(space=SpaceConfig(tie=((names[0], names[1]),))))
    assert len(tied.space.groups) == len(names) - 1
    with pytest.raises(SpaceError, match="cannot be tied: they have 80 and 160 channels"):
        open_problem(Config(space=SpaceConfig(tie=((names[0], names[2]),))))


def test_the_built_in_example_needs_no_supernet_and_reports_nothing_that_is_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    problem = open_problem(load_config(None))
    assert on_trained_network(problem)
    assert problem.untrained_layers == ()
    assert (problem.data.mean, problem.data.std) == ((0.18,), (0.17,))
    assert [group.channels for group in problem.space.groups] == [32, 32, 64, 64, 96, 96]
    assert capsys.readouterr().err == ""
    # With a head for other classes, its weights are reported.
    network = build_model(ModelConfig(name="digit-scenes", weights="pretrained"), 1, 7)
    assert len(fresh_heads(network)) == 1
    assert "digit_scenes.safetensors; start from their initial weights: '6'" in capsys.readouterr().err
