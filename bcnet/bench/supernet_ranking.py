"""Measure how well a supernet ranks Channel-Bench-Macro's settings, and what a search by its scores loses.

In: the authors' table, CIFAR-10, a method. Out: report.json and scatter.png in `runs/NAME/bench/`. The
supernet is an ordinary run of stage 1, in `runs/NAME/train/`; it and the scoring continue when stopped.
Supernets, settings to be scored and settings to be trained from scratch are distributed over the processes.
"""

import json
import platform
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bcnet.bench import from_scratch
from bcnet.bench.channel_bench_macro import MAXIMA, PUBLISHED, QUARTERS, BenchTable, compared
from bcnet.bench.kept import Kept
from bcnet.bench.scored_settings import Settings, scores_of, settings_of_run
from bcnet.config import Config, TrainConfig
from bcnet.errors import ArtifactError
from bcnet.pipeline.finished import trained_supernets
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.search_inputs import scoring
from bcnet.pipeline.train import run as train
from bcnet.pipeline.train import stage_inputs
from bcnet.progress import say
from bcnet.registry import SUPERNETS
from bcnet.runs import Run, digest, json_bytes, write_file
from bcnet.training.recipe import training_device
from bcnet.training.shared_work import Shared
from bcnet.training.step_plan import StepPlan
from bcnet.width_search.surrogate import Ridge, denoised_scores, features_of, with_losses


@dataclass(frozen=True)
class Preset:
    """How large a benchmark is. `passes` are forward and backward passes over the training images in all."""

    passes: int
    scale: float  # of the benchmark's widths
    train_limit: int | None
    val_fraction: float
    batch_size: int
    sample: int
    recalibration_images: int


# A quarter of the widths ranks as well as all of them (decision 17), batches of 64 rank a little better than
# batches of 128 (decision 9).
PRESETS = {
    "full": Preset(120, 1.0, None, 0.05, 64, 2000, 1024),
    "small": Preset(24, 0.25, 22_400, 0.16, 64, 200, 256),
    "tiny": Preset(4, 1 / 16, 200, 0.5, 20, 12, 40),
}


@dataclass(frozen=True)
class Setup:
    """What is trained for a benchmark: by which method, on which data, how long.

    `step` is one of STEPS; `passes` are those of all `supernets` together, the preset's if not given.
    """

    preset: Preset
    space: str
    data: str
    method: str
    step: str
    draws: int = 1
    complementary: bool = False
    passes: int | None = None
    seed: int = 0
    supernets: int = 1
    batch_size: int | None = None

    def flags(self) -> dict[str, dict[str, Any]]:
        """The configuration, as `load_config` takes it: the recipe of the benchmark's authors.

        Raises ConfigError for an unknown method.
        """
        sides = len(SUPERNETS[self.method].sides)
        train: dict[str, Any] = {
            "method": self.method,
            "step": self.step,
            "draws": self.draws,
            "complementary": self.complementary,
            "supernets": self.supernets,
            "batch_size": self.batch_size or self.preset.batch_size,
            "label_smoothing": 0.0,
        }
        plan = StepPlan.of(TrainConfig.model_construct(**train))  # validated where it is loaded
        passes = plan.passes(sides)
        wanted = (self.passes or self.preset.passes) / (passes * self.supernets)
        return {
            "": {"seed": self.seed},
            "model": {
                "name": f"cbm-{self.space}",
                "args": {"widths": [round(width * self.preset.scale) for width in MAXIMA[self.space]]},
            },
            "data": {
                "name": self.data,
                "image_size": 32,
                "train_limit": self.preset.train_limit,
                "val_fraction": self.preset.val_fraction,
                "flip": True,
                "shift": 4,
            },
            "space": {"bins": QUARTERS, "channel_multiple": 1, "min_width": 1 / QUARTERS},
            "train": {**train, "epochs": max(1, round(wanted))},
            "search": {"recalibration_images": self.preset.recalibration_images},
        }


@dataclass(frozen=True)
class Sample:
    """Which settings are scored: how many, and whether the two sides share the images, as in a search.

    With `scratch`, that number of other settings is trained from scratch, for `scratch_epochs` each, and the
    predictions of regressions on them are compared, too; these settings are not in the figures.
    """

    settings: int
    scratch: int = 0
    scratch_epochs: int = 1
    shared: bool = False


def rank_settings(
    run: Run,
    problem: Problem,
    table: BenchTable,
    sample: Sample,
) -> dict[str, Any]:
    """Train the supernet where it is not trained, score the settings, compare; returns the report."""
    start, stage, config = time.perf_counter(), run.stage("train"), problem.config
    maxima = list(problem.space.largest())
    if maxima != config.model.args.get("widths"):
        raise ArtifactError(
            f"the groups found in cbm-{table.space} are {maxima}, not the benchmark's seven widths "
            f"{config.model.args.get('widths')}"
        )
    if stage.outdated(stage_inputs(run, problem)) is not None:
        train(run, problem)
    trained_s = time.perf_counter() - start
    scorer = scoring(problem, trained_supernets(run, problem), shared=sample.shared)
    index = table.sample(sample.settings, 0)
    own = table.sample(sample.scratch, 1, without=index) if sample.scratch else []
    at_once = problem.data.evaluated_on(training_device(config))  # statistics depend on it
    inputs = digest(
        [
            "augmented statistics",
            stage.manifest(),
            config.search.recalibration_images,
            sample.shared,
            scorer.amp,
            at_once,
            *([config.search.free_sets] if problem.space.rule.free else ()),
        ]
    )
    settings = Settings(scorer)
    kept = Kept(run.folder / "bench" / "scores.jsonl", inputs, settings.valid)
    share = Shared(partial(settings_of_run, shared=sample.shared), Settings.scores, settings)
    scores = scores_of(kept, share, table, index + own)
    scored_s = time.perf_counter() - start - trained_s
    columns = _columns(scores, table, index)
    start = time.perf_counter()
    learned: dict[str, Any] = {}
    if own:
        known = from_scratch.accuracies(run, problem, table, own, sample.scratch_epochs)
        columns |= _regressions(known, scores, table, index, own)
        learned = {
            "epochs": sample.scratch_epochs,
            "passes": sample.scratch_epochs * len(own),
            "accuracy": dict(zip(map(table.key, own), known.tolist(), strict=True)),
        }
    scratch_s = time.perf_counter() - start
    report = {
        "benchmark": "channel-bench-macro",
        "space": table.space,
        "method": config.train.method,
        "step": config.train.step,
        "draws": StepPlan.of(config.train).draws,
        "complementary": config.train.complementary,
        "supernets": config.train.supernets,
        "batch_size": config.train.batch_size,
        "cuda_graph": config.train.cuda_graph,
        "passes": problem.supernet_passes,
        "training_images": len(problem.data.train),
        "widths": maxima,
        "settings": len(index),
        "recalibration_images": config.search.recalibration_images,
        "validation_images": len(problem.data.val),
        "shared": sample.shared,
        "scored_in": "bfloat16" if scorer.amp else "float32",
        "seed": config.seed,
        "figures": compared(table, index, columns),
        "published_kendall": PUBLISHED[table.space],
        "seconds": {
            "training": round(trained_s, 1),
            "scoring": round(scored_s, 1),
            "from scratch": round(scratch_s, 1),
        },
        "machine": _machine(config),
        **({"from_scratch": learned} if learned else {}),
        "scores": {table.key(i): scores[table.key(i)] for i in index},
    }
    folder = run.folder / "bench"
    write_file(folder / "report.json", json_bytes(report))
    _plot(folder / "scatter.png", columns["accuracy"], table, index, report)
    return report


def _columns(
    scores: dict[str, dict[str, list[float]]], table: BenchTable, index: list[int]
) -> dict[str, np.ndarray]:
    """Scores by name, larger is better: means of the sides by accuracy and by loss, and each side alone.

    `expected` is what a search ranks by: accuracy and calibrated loss, denoised by the scores of all
    settings.
    """
    sides, values = list(scores[table.key(index[0])]), _values(scores, table, index)
    accuracy, loss, calibrated = values.mean(1).T
    places = table.places(index)
    columns = {
        "expected": denoised_scores(places, with_losses(accuracy, calibrated)),
        "accuracy, expected": denoised_scores(places, accuracy),
        "calibrated loss, expected": denoised_scores(places, -calibrated),
        "accuracy": accuracy,
        "loss": -loss,
        "calibrated loss": -calibrated,
    }
    if len(sides) > 1:
        columns |= {f"accuracy, {side}": values[:, i, 0] for i, side in enumerate(sides)}
        columns |= {f"loss, {side}": -values[:, i, 1] for i, side in enumerate(sides)}
    return columns


def _regressions(
    known: np.ndarray,
    scores: dict[str, dict[str, list[float]]],
    table: BenchTable,
    index: list[int],
    own: list[int],
) -> dict[str, np.ndarray]:
    """Predictions for `index` by regressions on accuracies from scratch of `own`, without and with scores."""
    everything, first, name = index + own, len(index), f"regression on {len(own)} from scratch"
    places = table.places(everything)
    accuracy, _, calibrated = _values(scores, table, everything).mean(1).T
    expected = denoised_scores(places, with_losses(accuracy, calibrated))
    widths = features_of(places)
    scored = np.column_stack([expected / max(float(expected.std()), 1e-12), widths])
    return {
        name: Ridge.of(widths[first:], known, free=1).at(widths[:first]),
        f"{name}, and scores": Ridge.of(scored[first:], known, free=2).at(scored[:first]),
    }


def _values(scores: dict[str, dict[str, list[float]]], table: BenchTable, index: list[int]) -> np.ndarray:
    """Accuracy, loss and calibrated loss of each side, (N, sides, 3)."""
    return np.array([list(scores[table.key(i)].values()) for i in index])


def _machine(config: Config) -> dict[str, Any]:
    device = training_device(config)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    found = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {**found, "commit": commit.stdout.strip() or None}


def _plot(
    path: Path, scores: np.ndarray, table: BenchTable, index: list[int], report: dict[str, Any]
) -> None:
    """Scores against true accuracies, coloured by multiply-accumulates; needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say('no scatter plot: it needs matplotlib (pip install "bcnet[plot]")')
        return
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    points = axes.scatter(scores * 100, table.accuracy[index], c=table.macs[index] / 1e6, s=9)
    figure.colorbar(points, label="multiply-accumulates (M)")
    tau, (low, high) = (report["figures"]["accuracy"][key] for key in ("kendall", "interval"))
    axes.set_title(
        f"Channel-Bench-Macro, {table.space}: {report['method']}, {report['step']}\n"
        f"Kendall's tau {tau:.3f} ({low:.3f} to {high:.3f})"
    )
    axes.set_xlabel("accuracy in the supernet (%)")
    axes.set_ylabel("accuracy trained from scratch, mean of three (%)")
    figure.savefig(path, dpi=120)


def as_text(report: dict[str, Any]) -> str:
    """The report as a table."""
    lines = [
        f"{'score':<34} {'tau (95 %)':<24} spearman pearson  regret at 10 / 25 / 50 / 75 % of the MACs",
    ]
    for name, found in report["figures"].items():
        low, high = found["interval"]
        regret = " / ".join(f"{lost:.2f}" for lost in found["regret"])
        tau = f"{found['kendall']:.3f} ({low:.3f} to {high:.3f})"
        lines.append(f"{name:<34} {tau:<24} {found['spearman']:<8.3f} {found['pearson']:<8.3f} {regret}")
    lines += [f"{name:<34} {tau:.3f}" for name, tau in report["published_kendall"].items()]
    return "\n".join(lines)


def summary_json(report: dict[str, Any]) -> str:
    """The report without the single scores."""
    return json.dumps({key: value for key, value in report.items() if key != "scores"})
