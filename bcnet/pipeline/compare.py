"""The last word of `bcnet run`: is the searched network better than doing nothing clever?

In: the verified export. Out: one table of the full network, a uniformly narrowed one that is as fast, the
searched one, and its widths trained from scratch: what the search found, without what the supernet's training
cost. All others get as many passes over the training images as went into the searched one's weights (each
path of a supernet's step counts), with the same settings. All are exported and timed alternately.

`compare/`: result.json.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bcnet.artifacts import Run, alone_in, digest, json_bytes, read_json
from bcnet.config import Config
from bcnet.errors import BudgetError, NetworkError
from bcnet.latency_tables.rows import LatencyStat
from bcnet.pipeline.verify import check_file, file_metric
from bcnet.progress import announce, progress_bar, working
from bcnet.supernet.fit import Recipe, fit_network, metric_digest, seconds_to_fit, training_digest
from bcnet.supernet.measure import measure_network
from bcnet.supernet.onnx_graph import to_onnx
from bcnet.supernet.paths import cut
from bcnet.supernet.project import Project, load_project
from bcnet.supernet.saved import sliced
from bcnet.supernet.space import Widths

ROUNDS = 3
STEPS = 64  # uniform ratios that are tried: 1/64 to 64/64
ANEW = "from scratch"  # the name of the searched widths that were trained so
NEAR = 6  # wider ones beyond the bisection's answer that are tried too


@dataclass(frozen=True)
class Entry:
    """One network: accuracy of its ONNX file on the test set with a 95 % interval, latency, size.

    Accuracy is the task's metric, where it has another; only a share of images has an interval.
    """

    name: str
    widths: Widths
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    latency: LatencyStat
    params: int
    macs: int
    size_bytes: int
    passes: int


def compare(project: Project, searched: bytes, widths: Widths, recipe: Recipe) -> tuple[Entry, ...]:
    """Train, export and time the other networks beside the searched one's ONNX file.

    Its widths are trained from scratch, too, unless the searched network was.
    """
    space, profile = project.space, project.profile
    with working("looking for the uniform network that is as fast"):
        uniform = uniform_as_fast(project, widths)
    wanted = {"full": space.original(), "uniform": uniform, "searched": widths}
    if not project.config.slice.from_scratch:
        wanted[ANEW] = widths
    networks = {
        name: cut(project.fresh_model(), space, own) for name, own in wanted.items() if name != "searched"
    }
    announce(
        f"training {len(networks)} networks to compare with",
        sum(seconds_to_fit(network, project.data, recipe) for network in networks.values()),
    )
    for name, network in networks.items():
        fit_network(network, project.data, recipe, f"training: {name}")
    example = project.data.example(profile.batch)
    files = dict.fromkeys(wanted, searched)  # in the order of the table
    for name, network in networks.items():
        with working(f"exporting to ONNX: {name}"):
            proto = project.at_precision(to_onnx(network, example))
        check_file(proto)
        files[name] = proto.SerializeToString()
    latencies: dict[str, list[LatencyStat]] = {name: [] for name in files}
    with progress_bar("timing all networks", ROUNDS * len(files)) as advance:
        for _ in range(ROUNDS):
            for name, content in files.items():
                latencies[name].append(measure_network(content, profile, share=0.5))
                advance("")
    entries = []
    for name, content in files.items():
        accuracy = file_metric(content, project.model, project.data, profile, project.task)
        low, high = _interval(project, accuracy)
        entries.append(
            Entry(
                name=name,
                widths=wanted[name],
                accuracy=round(accuracy, 6),
                accuracy_low=low,
                accuracy_high=high,
                latency=min(latencies[name], key=lambda stat: stat.median_ms),
                params=space.params(wanted[name]),
                macs=space.macs(wanted[name]),
                size_bytes=len(content),
                passes=recipe.epochs,
            )
        )
    return tuple(entries)


def better_anew(entries: Sequence[Entry]) -> bool:
    """Whether the searched widths are clearly more accurate when all passes are theirs: intervals apart."""
    own = {entry.name: entry for entry in entries}
    low, high = own[ANEW].accuracy_low if ANEW in own else None, own["searched"].accuracy_high
    return low is not None and high is not None and low > high


def uniform_as_fast(project: Project, widths: Widths) -> Widths:
    """The largest uniform narrowing whose measured latency is at most that of `widths`, measured beside it.

    Bisection over the ratio finds the neighbourhood; there, every ratio is tried from the largest down, since
    latency does not rise with every step of the width. Raises BudgetError where even the narrowest is slower.
    """
    space, graph, profile = project.space, project.graph, project.profile
    multiple = project.config.space.channel_multiple or profile.channel_multiple
    options = list(dict.fromkeys(space.uniform(step / STEPS, multiple) for step in range(1, STEPS + 1)))
    searched = graph.variant(widths)

    def fits(option: Widths, share: float) -> bool:
        limit = measure_network(searched, profile, share).median_ms
        try:
            return measure_network(graph.variant(option), profile, share).median_ms <= limit
        except NetworkError:
            return False  # it holds a layer that the runtime cannot run

    low, high = -1, len(options)  # options[low] fits; options[high] does not, or is past the end
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(options[middle], share=0.1) else (low, middle)
    for option in reversed(options[: low + 1 + NEAR]):
        if fits(option, share=0.25):
            return option
    raise BudgetError("no uniform narrowing is as fast as the searched network; there is nothing to compare")


def _interval(project: Project, accuracy: float) -> tuple[float | None, float | None]:
    test = project.data.test
    target = test.take(torch.zeros(1, dtype=torch.int64)).items()[0][1]
    if project.task.metric is not None or torch.as_tensor(target).ndim:
        return None, None  # a mean over pixels or boxes is no share of independent trials
    low, high = wilson(accuracy, len(test))
    return round(low, 6), round(high, 6)


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share of `count` trials (Wilson, 1927)."""
    z = 1.959964
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def stage_inputs(run: Run, config: Config) -> dict[str, str]:
    """What this stage's manifest records."""
    project = load_project(config)
    export = run.stage("export").require({"device": project.device_key})
    return {
        "export": export,
        "training settings": digest([config.slice.model_dump(exclude_none=True), training_digest(config)]),
        "metric": metric_digest(config),
        "networks": "full, uniform, searched" + ("" if config.slice.from_scratch else f", {ANEW}"),
    }


@alone_in("compare")
def run(run: Run, config: Config) -> dict[str, Any]:
    """Compare and save. Returns a summary with one entry a network."""
    project = load_project(config)
    stage, inputs = run.stage("compare"), stage_inputs(run, config)
    recipe = Recipe.of(config, project.winner_passes, config.train.learning_rate)
    widths = sliced(run, project).widths
    export = run.stage("export")
    entries = compare(project, export.path("model.onnx").read_bytes(), widths, recipe)
    verified = read_json(export.path("verify.json"), export.command)
    summary = {
        "stage": "compare",
        "device": project.profile.name,
        "budget_ms": verified["budget_ms"],
        "predicted_ms": verified["predicted_ms"],
        "metric": config.task.metric,
        "test_images": len(project.data.test),
        "networks": [{**asdict(entry), "widths": list(entry.widths)} for entry in entries],
        "file": verified["file"],
        "better": {"from_scratch": True, "epochs": recipe.epochs} if better_anew(entries) else None,
    }
    stage.finish(inputs, {"result.json": json_bytes(summary)})
    return summary
