"""How far latency predictions are off, ours and others', on subnets that were never used for fitting.

    python benchmarks/lut_error.py --folder runs/lut_error

For each network: builds a latency table, draws subnets evenly from ten bands of predicted latency
(independent draws would all land in the middle), and measures them as whole networks. The same command an
hour later measures the same subnets again: the difference is the noise that no table can beat. Everything is
kept in the folder, so that a run that was stopped goes on; figures are printed and written there as
report.json, report.md and report.png. Needs matplotlib.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from layers_alone import time_layers_alone
from scipy.stats import spearmanr
from train_step import _processor

from bcnet.config import ModelConfig
from bcnet.hw_profiles import HwProfile, load_profile
from bcnet.latency_tables.calibration import fit_calibration
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.network_design import calibration_subnets
from bcnet.measure.network_latency import measure_network
from bcnet.models import build_model
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.build_lut import build_lut
from bcnet.progress import progress_bar
from bcnet.runs import json_bytes, write_file
from bcnet.space.discover import discover_space
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.training.loop import keep_freed_memory

# name: (pixels, subnets)
NETWORKS = {
    "mobilenet_v2-224": (224, 300),
    "resnet18-224": (224, 100),
    "resnet50-224": (224, 100),
    "efficientnet_b0-224": (224, 100),
    "mobilenet_v2-64": (64, 100),
    "resnet18-64": (64, 100),
}
BANDS = 10
CHOICES = 8
PREDICTORS = {
    "line": "line through multiply-accumulates (NVIDIA Model Optimizer)",
    "alone": "layers timed alone, summed (Once-for-All, NetAdapt)",
    "alone, calibrated": "layers timed alone, calibrated as ours",
    "in place": "layers timed in place, summed",
    "table": "layers timed in place, calibrated (bcnet)",
}
COLOURS = {"line": "tab:orange", "alone": "tab:red", "in place": "tab:green", "table": "tab:blue"}
# What the table must reach: mean error, errors that 90 and 99 % of the subnets stay below, 1 - Spearman.
BARS = {"mean": 0.03, "p90": 0.05, "p99": 0.10, "disorder": 0.02}


def load_network(name: str, profile: HwProfile, choices: int = CHOICES) -> OnnxSupernet:
    """The network called `torchvision name-pixels`, with its space of so many choices a group."""
    torch.manual_seed(0)
    architecture, side = name.rsplit("-", 1)
    model = build_model(ModelConfig(name=f"torchvision:{architecture}"), 3, 1000)
    shape = (profile.batch, 3, int(side), int(side))
    space = discover_space(model, torch.zeros(shape), bins=choices, channel_multiple=profile.channel_multiple)
    return OnnxSupernet(model, space, shape)


@dataclass
class State:
    """What is known of one network so far, kept in `NETWORK/state.json` of the benchmark's folder."""

    folder: Path
    values: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, name: str) -> "State":
        """As it was saved; empty where nothing was."""
        path = folder / name / "state.json"
        return cls(folder / name, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})

    def save(self) -> None:
        """Write it, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(self.folder / "state.json", json_bytes(self.values))


def measure(name: str, options: argparse.Namespace) -> None:
    """Do what is due for one network: table and predictions, first round, second round."""
    profile = load_profile(options.device)
    state = State.of(options.folder, name)
    rounds = state.values.get("rounds", [])
    done = [round_ for round_ in rounds if None not in round_["ms"]]
    if len(done) >= 2:
        return
    if len(done) == len(rounds) == 1:
        wait = max(done[0]["at"]) + options.gap_minutes * 60 - time.time()
        if wait > 0:
            print(f"{name}: the second round may begin in {wait / 60:.0f} minutes")
            return
    keep_freed_memory()
    start = time.perf_counter()
    graph = load_network(name, profile, options.choices)
    opened = time.perf_counter() - start
    if "predicted" not in state.values:
        state.values |= predictions(graph, profile, state.folder, options.subnets or NETWORKS[name][1])
        state.values["build"]["open_seconds"] = opened
        state.save()
    if len(done) == len(rounds):
        count = len(state.values["subnets"])
        rounds.append({"ms": [None] * count, "at": [None] * count})
        state.values["rounds"] = rounds
    measure_round(graph, profile, state, rounds[-1], len(rounds))


def measure_round(
    graph: OnnxSupernet, profile: HwProfile, state: State, round_: dict[str, Any], number: int
) -> None:
    """Measure what the round lacks, in random order; saved every ten subnets."""
    waiting = [index for index, ms in enumerate(round_["ms"]) if ms is None]
    with progress_bar(f"measuring subnets, round {number}", len(waiting)) as advance:
        for count, index in enumerate(np.random.default_rng(number).permutation(waiting).tolist(), 1):
            network = graph.variant(Widths(state.values["subnets"][index]))
            round_["ms"][index] = measure_network(network, profile, 0.3).median_ms
            round_["at"][index] = round(time.time(), 1)
            advance("")
            if count % 10 == 0 or count == len(waiting):
                state.save()


def predictions(graph: OnnxSupernet, profile: HwProfile, folder: Path, count: int) -> dict[str, Any]:
    """Build what each predictor needs, on the clock, draw the subnets, and predict their latencies."""
    table = LatencyTable(profile.name)
    shutil.rmtree(folder, ignore_errors=True)  # a build that was stopped is not continued: it is on the clock
    folder.mkdir(parents=True)
    start = time.perf_counter()
    report = build_lut(graph, profile, table, path=folder / "table.json")
    seconds = {"table": time.perf_counter() - start}
    seconds["in place"] = seconds["table"] - report.calibration_seconds
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    choices = [group.choices for group in graph.space.groups]
    latency = LatencyModel(table, report.calibration.setting, graph.slots, choices, report.calibration)

    # The line gets the very subnets that the calibration was fitted on, measured in the same way.
    start = time.perf_counter()
    fitted = calibration_subnets(graph.space, 0)
    measured = np.min(
        [[measure_network(graph.variant(w), profile, 0.1).median_ms for w in fitted] for _ in range(2)],
        axis=0,
    )
    line = straight(macs(graph.space, fitted), measured)
    seconds["line"] = time.perf_counter() - start

    start = time.perf_counter()
    alone = time_layers_alone(graph, profile)
    seconds["alone"] = time.perf_counter() - start

    def alone_ms(subnets: list[Widths]) -> np.ndarray:
        return np.array([sum(alone[slot.at(widths)] for slot in graph.slots) for widths in subnets])

    evicted = latency.evicted_mb(latency.indices(fitted))
    (offset, scale, memory), _ = fit_calibration(alone_ms(fitted), measured, evicted)
    seconds["alone, calibrated"] = seconds["alone"] + seconds["line"]
    taken = set(calibration_subnets(graph.space, 0))
    subnets = draw_in_bands(graph.space, latency, count, np.random.default_rng(100), taken)
    sums = alone_ms(subnets)
    predicted = {
        "line": line[0] + line[1] * macs(graph.space, subnets),
        "alone": sums,
        "alone, calibrated": offset + scale * sums + memory * latency.evicted_mb(latency.indices(subnets)),
        "in place": latency.layers_ms(latency.indices(subnets)),
        "table": latency.price_many(latency.indices(subnets)),
    }
    return {
        "subnets": [list(widths) for widths in subnets],
        "predicted": {key: values.round(6).tolist() for key, values in predicted.items()},
        "seconds": seconds,
        "build": {
            "rows": report.rows,
            "networks": report.networks,
            "peak_bytes": peak_bytes,
            "fitted": len(fitted),
            "groups": len(graph.space.groups),
        },
        "versions": table.sessions[-1].provenance,
    }


def straight(x: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Offset and slope of a line, least squares of relative errors."""
    matrix = np.stack([1 / measured, x / measured], axis=1)
    offset, slope = np.linalg.lstsq(matrix, np.ones(len(x)), rcond=None)[0]
    return float(offset), float(slope)


def macs(space: WidthSpace, subnets: list[Widths]) -> np.ndarray:
    """Multiply-accumulates, in millions."""
    return np.array([space.macs(widths) for widths in subnets]) / 1e6


def draw_in_bands(
    space: WidthSpace, latency: LatencyModel, count: int, rng: np.random.Generator, taken: set[Widths]
) -> list[Widths]:
    """Distinct subnets, none of them taken, as many from each of ten equal bands of predicted latency.

    Each starts with random widths, and random groups step narrower or wider until a latency drawn from the
    band is passed. Raises RuntimeError where a band cannot be filled.
    """
    sizes = np.array([len(group.choices) for group in space.groups])
    ends = np.array([np.zeros(len(sizes), int), sizes - 1])
    edges = np.linspace(*latency.price_many(ends), BANDS + 1)
    found: list[Widths] = []
    for band in range(BANDS):
        low, high = edges[band], edges[band + 1]
        wanted = count * (band + 1) // BANDS
        for _ in range(200 * count):
            if len(found) == wanted:
                break
            index, target = rng.integers(sizes), rng.uniform(low, high)
            wider = latency.price_many(index[None])[0] < target
            step, goal = (1, sizes - 1) if wider else (-1, 0 * sizes)
            while (latency.price_many(index[None])[0] < target) == wider and (index != goal).any():
                index[rng.choice(np.flatnonzero(index != goal))] += step
            widths = Widths(g.choices[i] for g, i in zip(space.groups, index.tolist(), strict=True))
            if low <= latency.price_many(index[None])[0] <= high and widths not in taken:
                taken.add(widths)
                found.append(widths)
        if len(found) < wanted:
            raise RuntimeError(f"no {wanted} subnets between {low:.4g} and {high:.4g} ms")
    return found


def errors(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Mean, 90th and 99th percentile of the relative errors, shares within 5 and 10 %, rank correlation."""
    relative = np.abs(predicted - measured) / measured
    return {
        "mean": float(relative.mean()),
        "p90": float(np.quantile(relative, 0.9)),
        "p99": float(np.quantile(relative, 0.99)),
        "within_5": float((relative <= 0.05).mean()),
        "within_10": float((relative <= 0.10).mean()),
        "spearman": float(spearmanr(predicted, measured).statistic),
        "bias": float(np.median(predicted / measured) - 1),
    }


def figures(state: State) -> dict[str, Any] | None:
    """All figures of one network; None before its first round is complete."""
    values = state.values
    rounds = [np.array(r["ms"]) for r in values.get("rounds", []) if None not in r["ms"]]
    if not rounds:
        return None
    best = np.minimum(rounds[0], rounds[-1])
    found = {
        "subnets": len(best),
        "fastest_ms": float(best.min()),
        "slowest_ms": float(best.max()),
        **{key: values[key] for key in ("build", "seconds", "versions")},
        "errors": {key: errors(np.array(values["predicted"][key]), best) for key in PREDICTORS},
        "table_errors_each_round": [errors(np.array(values["predicted"]["table"]), r) for r in rounds],
        "bars": BARS,
    }
    if len(rounds) == 2:
        gaps = np.subtract(values["rounds"][1]["at"], values["rounds"][0]["at"]) / 60
        found["gap_minutes"] = {"least": float(gaps.min()), "median": float(np.median(gaps))}
        noise = errors(np.maximum(*rounds), best) | {"spearman": float(spearmanr(*rounds).statistic)}
        found["noise"] = noise | {"bias": float(np.median(rounds[1] / rounds[0]) - 1)}
        differences = reached(noise)
        # Where measuring again differs by more than a bar, the bar becomes 1.5 times that difference.
        found["bars"] = {
            key: 1.5 * differences[key] if differences[key] > bar else bar for key, bar in BARS.items()
        }
    table = reached(found["errors"]["table"])
    found["met"] = {key: bool(table[key] <= bar) for key, bar in found["bars"].items()}
    return found


def reached(found: dict[str, float]) -> dict[str, float]:
    """The figures that the bars are about."""
    return {**{key: found[key] for key in ("mean", "p90", "p99")}, "disorder": 1 - found["spearman"]}


def markdown(report: dict[str, Any]) -> str:
    """The report as tables, ready for docs/benchmarks/latency-tables.md."""
    lines = [
        "| network | predicted by | mean error | within 5 % | within 10 % | Spearman | bias | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in report.items():
        head = (
            f"{name.replace('-', ', ')} px: {found['subnets']} subnets, {found['fastest_ms']:.3f} to "
            f"{found['slowest_ms']:.3f} ms; {found['build']['rows']} rows"
        )
        rows = [(PREDICTORS[key], found["errors"][key], found["seconds"][key]) for key in PREDICTORS]
        if "noise" in found:
            gap = found["gap_minutes"]["least"]
            rows.append((f"*noise: measured again, at least {gap:.0f} minutes later*", found["noise"], None))
        for label, entry, seconds in rows:
            bold = "**" if label == PREDICTORS["table"] else ""
            lines.append(
                f"| {head} | {bold}{label}{bold} | {bold}{entry['mean']:.2%}{bold} | "
                f"{entry['within_5']:.0%} | {entry['within_10']:.0%} | {entry['spearman']:.4f} | "
                f"{entry['bias']:+.1%} | {'' if seconds is None else f'{seconds:.0f}'} |"
            )
            head = ""
    lines += [
        "",
        "| network | figure | table | noise | bar | counts as | met |",
        "|---|---|---|---|---|---|---|",
    ]
    labels = {
        "mean": "mean error",
        "p90": "error that 90 % stay below",
        "p99": "error that 99 % stay below",
        "disorder": "1 - Spearman",
    }
    for name, found in report.items():
        table, noise = reached(found["errors"]["table"]), reached(found["noise"]) if "noise" in found else {}
        for key, label in labels.items():
            again = f"{noise[key]:.2%}" if noise else "not yet"
            lines.append(
                f"| {name} | {label} | {table[key]:.2%} | {again} | {BARS[key]:.0%} | "
                f"{found['bars'][key]:.2%} | {'yes' if found['met'][key] else '**no**'} |"
            )
    lines.append("")
    for name, found in report.items():
        build = found["build"]
        lines.append(
            f"- {name}: table in {found['seconds']['table']:.0f} s ({build['networks']} networks, "
            f"calibration included; opening and exporting the network took {build['open_seconds']:.0f} s "
            f"more), peak memory {build['peak_bytes'] / 1e9:.2f} GB"
        )
    return "\n".join(lines).replace(" %", "%").replace("%", " %") + "\n"


def draw(states: dict[str, State], path: Path) -> None:
    """Predicted against measured latency, and the relative error, for each network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    columns = min(3, len(states))
    bands = -(-len(states) // columns)
    figure, axes = pyplot.subplots(
        2 * bands, columns, figsize=(5.2 * columns, 7 * bands), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[:]:
        axis.set_visible(False)
    for number, (name, state) in enumerate(states.items()):
        above, below = axes[2 * (number // columns) :, number % columns][:2]
        rounds = [r["ms"] for r in state.values["rounds"] if None not in r["ms"]]
        best = np.min(rounds, axis=0)
        for key, colour in COLOURS.items():
            predicted = np.array(state.values["predicted"][key])
            style = {"s": 10, "color": colour, "alpha": 0.6, "linewidths": 0, "label": PREDICTORS[key]}
            above.scatter(best, predicted, **style)
            below.scatter(best, 100 * (predicted / best - 1), **style)
        above.plot([best.min(), best.max()], [best.min(), best.max()], color="black", linewidth=0.8)
        above.set(title=f"{name.replace('-', ', ')} px", ylabel="predicted, ms", yscale="log")
        for level in (-5, 0, 5):
            below.axhline(level, color="black", linewidth=0.8, linestyle="-" if level == 0 else ":")
        # Errors below 10 % on a straight scale, larger ones on a logarithmic one: nothing is left out.
        below.set(xlabel="measured, ms", ylabel="error of the prediction, %")
        below.set_yscale("symlog", linthresh=10)
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        for axis in (above, below):
            axis.set_visible(True)
            axis.set_xscale("log")
            axis.grid(alpha=0.3)
        for ticks in (above.xaxis, below.xaxis, above.yaxis):
            ticks.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ticks.set_minor_formatter(NullFormatter())
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(2, columns), markerscale=2)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse, let a process of its own do what is due for each network, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("networks", nargs="*", metavar="NETWORK", help=f"default: all of {', '.join(NETWORKS)}")
    add("--folder", type=Path, required=True, help="where tables, subnets and measurements are kept")
    add("--subnets", type=int, help="subnets a network (default: 300 and 100)")
    add("--choices", type=int, default=CHOICES, help=f"widths a group (default: {CHOICES})")
    add("--gap-minutes", type=float, default=60, help="least time between the two rounds (default: 60)")
    add("--device", default="cpu", help="hardware profile (default: cpu)")
    add("--core", type=int, help="stay on this processor core")
    add("--here", action="store_true", help="measure in this process, without a report")
    options = parser.parse_args()
    names = options.networks or list(NETWORKS)
    if unknown := set(names) - NETWORKS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.here:
        if options.core is not None:
            os.sched_setaffinity(0, {options.core})
        for name in names:
            measure(name, options)
        return
    for name in names:  # in a process of its own, so that its peak memory is known
        started = [arg for arg in sys.argv[1:] if arg not in options.networks]
        subprocess.run([sys.executable, __file__, "--here", *started, name], check=True)
    states = {name: State.of(options.folder, name) for name in names}
    report = {name: found for name, state in states.items() if (found := figures(state))}
    if not report:
        return
    draw({name: states[name] for name in report}, options.folder / "report.png")
    write_file(options.folder / "report.json", json_bytes({"processor": _processor(), "networks": report}))
    write_file(options.folder / "report.md", markdown(report).encode())
    print(markdown(report))


if __name__ == "__main__":
    main()
