"""Supernet steps, training loops that continue, scores, and the discovery of spaces."""

import gc
import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bcnet.config import Config
from bcnet.data.augment import item_draws, moved
from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.errors import SpaceError, TrainingError
from bcnet.events import Event, emit, observed
from bcnet.methods.group_fisher import SteadyRecipe
from bcnet.models.finite import not_finite
from bcnet.pipeline.train_supernet import train
from bcnet.pipeline.training_file import Checkpoint, CheckpointFiles, Record, lines_beside
from bcnet.sealed import SealedLines
from bcnet.space.channel_rules import WidthSampler, _permutation
from bcnet.space.discover import discover_space
from bcnet.space.free_channels import Assignments
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet, cut, forward_path
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training import checkpoints
from bcnet.training.durations import seconds_to_fit
from bcnet.training.loop import Trainee, fit, fit_network
from bcnet.training.recipe import Recipe
from bcnet.training.step_plan import STEPS, StepPlan
from bcnet.training.supernet_step import SlicedPaths, supernet_step
from bcnet.width_search.scorer import Score, Validation, evaluate_network, score


class Concatenating(nn.Module):
    """Two branches, concatenated, then flattened: segments and repeats on one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1)
        self.b = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.mix = nn.Conv2d(24, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(8 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(torch.cat([self.a(x), self.b(x)], 1))
        z: Tensor = self.head(self.pool(y).flatten(1))
        return z


def images(count: int = 48) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 80, (count, 1, 8, 8), generator=generator)
    pixels[torch.arange(count), 0, labels * 2] = 255  # a bright row tells the class
    split = Split(pixels.to(torch.uint8), labels)
    part = split.take(torch.arange(24))
    return ImageData(split, part, part, ("a", "b", "c"), (0.3,), (0.2,))


def setup(method: str = "bcnet") -> tuple[nn.Module, WidthSpace]:
    torch.manual_seed(0)
    model = Concatenating()
    space = discover_space(model, torch.zeros(1, 1, 8, 8), bins=4, channel_multiple=2, method=method)
    return model, space


def test_concatenated_branches_and_a_flattened_head_are_searched_exactly() -> None:
    model, space = setup()
    assert [group.name for group in space.groups] == ["a", "b.0", "mix"]
    x = torch.randn(2, 1, 8, 8)
    widths = Widths((4, 12, 6))
    small = cut(model.eval(), space, widths, "right")
    assert isinstance(small, Concatenating)
    assert small.mix.weight.shape == (6, 16, 1, 1)
    assert small.head.weight.shape == (3, 24)
    assert torch.equal(small(x), forward_path(model, space, widths, x, "right"))


@pytest.mark.parametrize("widths", [(4, 12, 6), (8, 16, 8), (2, 4, 2)])
def test_gradients_equal_those_through_plain_slicing(widths: tuple[int, int, int]) -> None:
    model, space = setup()
    model.train()
    x, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    recipe = Recipe(epochs=1, learning_rate=0.1)
    own = dict(model.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    parameters = {name: nn.Parameter(p.detach().clone()) for name, p in own.items()}
    paths = SlicedPaths(Supernet(model, space, {**parameters, **buffers}), recipe)
    (loss,) = supernet_step(paths, [Widths(widths)], x, labels)
    reference = {name: nn.Parameter(p.detach().clone()) for name, p in own.items()}
    total = torch.zeros(())
    supernet = Supernet(model, space, {**reference, **buffers})
    for side in space.rule.sides:
        total = total + recipe.loss(supernet.run(Subnet.at(space, Widths(widths), side), x), labels) / 2
    total.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, reference[name].grad, rtol=1e-4, atol=1e-6)


def test_channels_outside_both_paths_get_no_gradient() -> None:
    model, space = setup()
    parameters = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    recipe = Recipe(epochs=1, learning_rate=0.1)
    labels = torch.tensor([0, 1])
    paths = SlicedPaths(Supernet(model.train(), space, {**parameters, **buffers}), recipe)
    supernet_step(paths, [Widths((2, 4, 2))], torch.randn(2, 1, 8, 8), labels)
    gradient = parameters["a.weight"].grad
    assert gradient is not None
    touched = gradient.flatten(1).abs().sum(1) > 0
    assert touched.tolist() == [True, True, False, False, False, False, True, True]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("method", "stop"),
    [
        *(("unilateral", 1), ("bcnet", 1), ("bcnetv2", 1), ("bcnetv2", 5)),
        *(("cafenet", 1), ("cafenet", 5), ("psenet", 1), ("psenet", 5)),
    ],
)
def test_a_continued_training_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, method: str, stop: int
) -> None:
    """Stopped after the first epoch, or, with a checkpoint after each step, in the second one."""
    model, space = setup(method)
    data = replace(images(), flip=True, shift=1)
    recipe = Recipe(epochs=3, learning_rate=0.01, optimizer=optimizer, batch_size=16)
    whole = CheckpointFiles(tmp_path / "whole.safetensors", {})
    parts = CheckpointFiles(tmp_path / "parts.safetensors", {})
    assignments = Assignments(random=0.4) if space.rule.free else None
    plan = StepPlan(parallel=space.rule.parallel, draws=2 if space.rule.parallel else 1)

    def begun() -> Supernet:
        return replace(Supernet.with_extra(model, space), assignments=assignments)

    result = train(begun(), data, recipe, plan=plan, checkpoints=whole)
    save, saved = CheckpointFiles.save, []

    def stopped(files: CheckpointFiles, checkpoint: Checkpoint, records: Sequence[Record]) -> None:
        save(files, checkpoint, records)
        saved.append(len(records))
        if len(saved) == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFiles, "save", stopped)
        if stop > 1:
            patched.setattr(checkpoints, "EVERY_S", 0.0)
            patched.setattr(checkpoints, "SHARE", math.inf)
        with pytest.raises(KeyboardInterrupt):
            train(begun(), data, recipe, plan=plan, checkpoints=parts)
    assert saved == [plan.draws * own for own in ([48 // 16] if stop == 1 else [1] * 5)]
    continued = train(begun(), data, recipe, plan=plan, checkpoints=parts)
    assert continued.curve == result.curve
    assert whole.path.read_bytes() == parts.path.read_bytes()
    assert lines_beside(whole.path).read_bytes() == lines_beside(parts.path).read_bytes()
    assert any(name.endswith("running_mean") for name in result.supernet.state)
    for name, tensor in result.supernet.state.items():
        assert torch.equal(continued.supernet.state[name], tensor)


def test_steps_of_the_widest_path_are_not_among_the_records_of_drawn_widths(tmp_path: Path) -> None:
    _, space = setup()
    recipe = Recipe(epochs=4, learning_rate=0.01, batch_size=16)
    plan = StepPlan(interleaved=True, complementary=True)
    records = trained_records(tmp_path / "checkpoint.safetensors", recipe, plan)
    sampler = WidthSampler(space.rule, tuple(g.choices for g in space.groups), recipe.seed, True)
    assert [widths for widths, _ in records] == [list(sampler.at(step)) for step in range(12 * 2 // 3)]


def test_only_the_records_of_the_running_epoch_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, space = setup()
    recipe = Recipe(epochs=4, learning_rate=0.01, batch_size=16)
    path, save = tmp_path / "checkpoint.safetensors", CheckpointFiles.save
    records, alive = [], []
    counted = type("Counted", (Widths,), {"__slots__": ()})
    monkeypatch.setattr("bcnet.training.supernet_step.Widths", counted)

    def counting(files: CheckpointFiles, checkpoint: Checkpoint, own: Sequence[Record]) -> None:
        save(files, checkpoint, own)
        records.extend([[list(widths), loss] for widths, loss in own])
        alive.append(sum(type(thing) is counted for thing in gc.get_objects()))

    monkeypatch.setattr(CheckpointFiles, "save", counting)
    train(Supernet.with_extra(model, space), images(), recipe, checkpoints=CheckpointFiles(path, {}))
    assert 0 < max(alive) <= 48 // 16
    assert SealedLines(lines_beside(path), {}).values == records
    assert len(records) == 4 * 48 // 16


def test_timing_a_step_changes_nothing_and_reports_nothing() -> None:
    model, seen = Concatenating(), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.random.get_rng_state(), np.random.get_state()[1].tolist()

    class Observer:
        def __call__(self, event: Event) -> None:
            seen.append(event.name)

        def close(self) -> None: ...

    recipe = Recipe(epochs=3, learning_rate=0.05, batch_size=16, ema=0.9, clip_gradients=1.0)
    with observed([Observer()]):
        seconds = seconds_to_fit(model, images(), recipe)
        emit("after")
    assert 0 < seconds < 60
    assert seen == ["after"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), drawn[0])
    assert np.random.get_state()[1].tolist() == drawn[1]


def test_no_memory_grows_with_the_steps_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor with their records, which are written every few minutes; here after each step."""
    model, space = setup()
    data, allocated, save = images(1200), [], CheckpointFiles.save
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", math.inf)

    def measured(files: CheckpointFiles, checkpoint: Checkpoint, own: Sequence[Record]) -> None:
        if checkpoint.snapshot.step % 100 == 0:
            save(files, checkpoint, own)
            _permutation.cache_clear()  # of 4,096 at most
            gc.collect()
            allocated.append(tracemalloc.get_traced_memory()[0])

    monkeypatch.setattr(CheckpointFiles, "save", measured)
    recipe = Recipe(epochs=1, learning_rate=0.01, batch_size=2)
    tracemalloc.start()
    try:
        files = CheckpointFiles(tmp_path / "checkpoint.safetensors", {})
        train(Supernet.with_extra(model, space), data, recipe, checkpoints=files)
    finally:
        tracemalloc.stop()
    assert len(allocated) == 6
    # The records of 100 steps would take 25,000; a line that is printed meanwhile loads what prints it.
    assert median(after - before for before, after in pairwise(allocated[1:])) < 5_000


def test_weights_that_are_no_numbers_end_the_training_before_they_are_kept(tmp_path: Path) -> None:
    model, space = setup()
    recipe = Recipe(epochs=1, learning_rate=1e300, batch_size=len(images().train), warmup_epochs=0)
    kept = CheckpointFiles(tmp_path / "checkpoint.safetensors", {})
    with pytest.raises(TrainingError, match=r"training diverged in epoch 1: '.+' has values that"):
        train(Supernet.with_extra(model, space), images(), recipe, checkpoints=kept)
    assert not kept.path.exists()


def trained_records(path: Path, recipe: Recipe, plan: StepPlan = STEPS["plain"]) -> list[Any]:
    """Widths and loss of each step of a training."""
    model, space = setup()
    supernet = Supernet.with_extra(model, space, recipe.seed)
    train(supernet, images(), recipe, plan=plan, checkpoints=CheckpointFiles(path, {}))
    return SealedLines(lines_beside(path), {}).values


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(tmp_path: Path) -> None:
    recipes = [Recipe(epochs=1, learning_rate=0.05, batch_size=16, seed=seed) for seed in (1, 1, 2)]
    first, second, other = (
        trained_records(tmp_path / f"{n}.safetensors", own) for n, own in enumerate(recipes)
    )
    assert first == second
    assert first != other


def test_sides_that_take_turns_draw_from_one_deck(tmp_path: Path) -> None:
    _, space = setup()
    size = max(len(group.choices) for group in space.groups)
    recipe = Recipe(epochs=size, learning_rate=0.01, batch_size=48)  # a step an epoch
    records = trained_records(tmp_path / "checkpoint.safetensors", recipe, STEPS["alternating"])
    for number, group in enumerate(space.groups):
        drawn = [widths[number] for widths, _ in records[: len(group.choices)]]
        assert sorted(drawn) == list(group.choices)


def test_training_learns_what_a_bright_row_tells() -> None:
    model, space = setup()
    data = images()
    recipe = Recipe(epochs=30, learning_rate=0.05, batch_size=16)
    result = train(Supernet.with_extra(model, space), data, recipe)
    assert score(result.supernet, space.largest(), data, 48).accuracy > 0.9


def test_a_score_is_the_mean_of_both_sides_and_leaves_the_supernet_as_it_was() -> None:
    model, space = setup()
    data = images()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    widths = Widths((4, 8, 4))
    supernet = Supernet(model, space, state)
    sides = Validation(data, 32).sides(supernet, widths)
    mean = score(supernet, widths, data, 32)
    assert set(sides) == {"left", "right"}
    assert mean.accuracy == pytest.approx((sides["left"].accuracy + sides["right"].accuracy) / 2)
    assert mean.loss == pytest.approx((sides["left"].loss + sides["right"].loss) / 2)
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_recalibrated_statistics_are_those_of_the_training_images() -> None:
    model, space = setup()
    data = images()
    whole = Subnet.at(space, space.largest())
    fresh = Validation(data, 48).recalibrated(Supernet.of(model, space), whole).state
    assert isinstance(model, Concatenating)
    with torch.no_grad():
        outputs = model.b[0](data.normalise(data.train.images))
    torch.testing.assert_close(fresh["b.1.running_mean"], outputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fresh["b.1.running_var"], outputs.var((0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_scores_order_by_accuracy_and_then_by_lower_loss() -> None:
    assert Score(0.9, -0.5) < Score(0.9, -0.4) < Score(0.91, -9.0)
    assert Score(0.9, -0.5).loss == 0.5


def test_accuracy_of_a_constant_answer_is_the_share_of_its_class() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias.expand(len(x), 3)

    result = evaluate_network(Constant(), images(), images().val)
    assert result.accuracy == pytest.approx(1 / 3)
    logits = torch.tensor([0.0, 1.0, 0.0]).log_softmax(0)
    assert result.loss == pytest.approx(-float(logits.mean()), rel=1e-5)


def test_augmented_images_are_shifted_and_mirrored_copies() -> None:
    batch = torch.zeros(256, 1, 5, 5, dtype=torch.uint8)
    batch[:, :, 2, 1] = 9
    out = moved(batch, True, 1, item_draws(0, 0, torch.arange(256), 3))
    assert out.dtype == torch.uint8
    assert out.shape == batch.shape
    assert (out == 9).flatten(1).sum(1).tolist() == [1] * 256
    places = {tuple(place) for place in (out[:, 0] == 9).nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (1, 2, 3) for column in range(5)}


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    recipe = Recipe(epochs=10, learning_rate=0.2, warmup_epochs=2)
    assert recipe.rate(1.0) == pytest.approx(0.1, rel=0.01)
    assert recipe.rate(2.0) == pytest.approx(0.2)
    assert recipe.rate(6.0) == pytest.approx(0.1)
    assert recipe.rate(10.0) == pytest.approx(0.0)


def test_rates_are_scaled_with_the_batch_where_a_base_batch_is_given() -> None:
    def recipe(**train: int) -> Recipe:
        return Recipe.of(Config.model_validate({"train": {"warmup_epochs": 2, **train}}), 10, 0.2)

    plain = recipe(batch_size=512)
    assert plain.rate(2.0) == plain.highest_rate == 0.2
    scaled = recipe(batch_size=512, base_batch=128)
    assert scaled.highest_rate == pytest.approx(0.8)
    for progress in (0.0, 1.0, 2.0, 6.0, 9.9):
        assert scaled.rate(progress) == pytest.approx(4 * plain.rate(progress))
    assert recipe(batch_size=96).highest_rate == recipe(batch_size=96, base_batch=96).highest_rate == 0.2
    assert Recipe(epochs=1, learning_rate=0.1, batch_size=24).highest_rate == 0.1
    assert recipe(batch_size=32, base_batch=128).highest_rate == pytest.approx(0.05)
    assert SteadyRecipe(**vars(scaled)).rate(9.0) == pytest.approx(0.8)


def test_a_scaled_rate_trains_as_the_same_rate_and_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    def weights(recipe: Recipe) -> Tensor:
        torch.manual_seed(0)
        model = Concatenating()
        fit_network(model, images(), recipe, "training")
        return model.head.weight

    recipe = Recipe(epochs=2, learning_rate=0.05, batch_size=16)
    scaled = weights(replace(recipe, learning_rate=0.1, base_batch=32))
    assert "training: learning rate 0.05 (0.1 x 16 / 32, train.base_batch)\n" in capsys.readouterr().err
    assert torch.equal(scaled, weights(recipe))
    assert "learning rate" not in capsys.readouterr().err


def test_a_fitted_network_is_in_eval_mode_and_has_learned() -> None:
    torch.manual_seed(0)
    model = Concatenating()
    fit_network(model, images(), Recipe(epochs=30, learning_rate=0.05, batch_size=16), "training")
    assert not model.training
    assert evaluate_network(model, images(), images().val).accuracy > 0.9


def test_a_training_that_diverges_says_so() -> None:
    model, space = setup()
    with pytest.raises(
        TrainingError, match=r"training diverged: the loss of step \d+ is (nan|inf); lower the"
    ):
        train(
            Supernet.with_extra(model, space),
            images(),
            Recipe(epochs=20, learning_rate=1e12, batch_size=16, warmup_epochs=0),
        )


def test_a_batch_that_is_not_finite_is_named_as_the_reason_in_place_of_the_learning_rate() -> None:
    def broken(x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return x / 0.0, label  # 0 / 0 where a pixel is zero

    data = replace(images(), transforms=broken)
    with pytest.raises(TrainingError, match="the batch has values that are not finite; check the data"):
        fit_network(Concatenating(), data, Recipe(epochs=1, learning_rate=0.05, batch_size=16), "training")


def test_an_epoch_that_ends_in_a_loss_of_nan_is_not_kept() -> None:
    weight, ended = nn.Parameter(torch.zeros(1)), []

    def step(inputs: Tensor, targets: Tensor, number: int) -> Tensor:
        return torch.tensor(float("nan") if number == 5 else 1.0)

    with pytest.raises(TrainingError, match="the loss of step 5 is nan"):
        fit(
            Trainee({"weight": weight}, step),
            images(),
            Recipe(epochs=3, learning_rate=0.1, batch_size=16),
            "training",
            save=lambda snapshot, loss: ended.append((snapshot.epoch, loss)),
        )
    assert ended == [(1, 1.0)]


def test_a_step_that_fails_on_the_device_is_explained() -> None:
    class Asserts(Tensor):
        def __float__(self) -> float:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def step(inputs: Tensor, targets: Tensor, number: int) -> Tensor:
        return torch.zeros(()).as_subclass(Asserts)

    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=16)
    with pytest.raises(TrainingError, match=r"step 0 failed \(RuntimeError: CUDA error: device-side assert"):
        fit(Trainee({"weight": nn.Parameter(torch.zeros(1))}, step), images(), recipe, "training")


def test_a_step_that_fails_is_explained() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(64)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(x.flatten(1))
            return y

    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=1)
    with pytest.raises(
        TrainingError, match=r"step 0 on a batch of shape \(1, 1, 8, 8\) failed .*train.batch_size"
    ):
        fit_network(Breaks(), images(), recipe, "training")


def test_a_failure_that_the_batch_has_no_part_in_names_no_batch_size() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no 16")

    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=16)
    with pytest.raises(TrainingError, match=r"failed \(ValueError: no 16\)$"):
        fit_network(Breaks(), images(), recipe, "training")


def test_parameters_that_need_no_gradient_stay_as_they_are() -> None:
    model, space = setup()
    assert isinstance(model, Concatenating)
    model.mix.requires_grad_(False)
    before = model.mix.weight.clone()
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=16)
    result = train(Supernet.with_extra(model, space), images(), recipe)
    assert torch.equal(result.supernet.state["mix.weight"], before)
    assert not torch.equal(result.supernet.state["a.weight"], model.a.weight)
    fit_network(model, images(), Recipe(epochs=1, learning_rate=0.1, batch_size=16), "training")
    assert torch.equal(model.mix.weight, before)


def test_a_space_survives_json(tmp_path: Path) -> None:
    _, space = setup("bcnetv2")
    assert WidthSpace.from_json(space.to_json()) == space
    with pytest.raises(SpaceError, match="not a width space"):
        WidthSpace.from_json(space.to_json()[:50])


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((4, 12), "2 widths given, the space has 3 groups"),
        ((4, 0, 6), "width 0 of group 'b.0'"),
        ((4, 17, 6), "1..16"),
    ],
)
def test_widths_that_do_not_fit_are_refused(widths: tuple[int, ...], message: str) -> None:
    model, space = setup()
    with pytest.raises(SpaceError, match=message):
        cut(model, space, Widths(widths))


def around(layer: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        layer,
        nn.Conv2d(16, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def test_what_cannot_be_searched_is_frozen_with_the_module_named() -> None:
    space = discover_space(
        around(nn.LayerNorm([16, 6, 6], elementwise_affine=False)), torch.zeros(1, 1, 8, 8)
    )
    frozen = {entry.name: entry.reason for entry in space.frozen}
    assert "fixed number of channels" in frozen["0"]
    assert "'1'" in frozen["0"]
    assert frozen["5"] == "it is the network's output"
    assert "2" in {group.name for group in space.groups}


def test_a_group_normalisation_without_weights_is_narrowed_inside_its_groups() -> None:
    model, images = around(nn.GroupNorm(4, 16, affine=False)), torch.randn(2, 1, 8, 8)
    space = discover_space(model, images)
    first = next(group for group in space.groups if group.name == "0")
    assert (first.channels, first.repeat, first.mixed) == (4, 4, True)
    small = cut(model, space, [2 if group is first else 16 for group in space.groups])
    kept = torch.tensor([0, 1, 4, 5, 8, 9, 12, 13])
    with torch.no_grad():
        narrow = nn.functional.conv2d(images, model[0].weight[kept], model[0].bias[kept])
        narrow = nn.functional.group_norm(narrow, 4)
        narrow = nn.functional.conv2d(narrow, model[2].weight[:, kept], model[2].bias)
        assert torch.allclose(small(images), model[3:](narrow), atol=1e-6)


def test_a_network_that_does_not_run_on_the_example_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"does not run on an input of shape \(1, 3, 8, 8\)"):
        discover_space(Concatenating(), torch.zeros(1, 3, 8, 8))


def test_a_network_with_nothing_to_search_is_refused() -> None:
    with pytest.raises(SpaceError, match="nothing in Sequential can be searched"):
        discover_space(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.zeros(1, 1, 2, 2))


def test_random_widths_are_choices_and_repeat_with_the_seed() -> None:
    _, space = setup()
    drawn = [space.random(np.random.default_rng(5)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert all(width in group.choices for group, width in zip(space.groups, drawn[0], strict=True))
    assert str(Widths((16, 32))) == "16-32"


def test_a_mask_may_be_infinite_and_weights_may_not() -> None:
    tensors = {"mask": torch.tensor([0.0, -torch.inf]), "count": torch.tensor(3), "weight": torch.ones(2)}
    assert not_finite(tensors, {"weight"}) is None
    assert not_finite(tensors) == "mask"
    assert not_finite({**tensors, "mask": torch.tensor([torch.nan])}, {"weight"}) == "mask"
