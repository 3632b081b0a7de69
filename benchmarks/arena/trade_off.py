"""The trade-off between latency and accuracy, as a figure. In: records of the arena. Out: an SVG file.

    python trade_off.py ../results/arena/cifar10-residual*.json --output trade_off.svg

Each record's rows are drawn at their measured latency and the points of accuracy that they lose, both
relative to the original of that record.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

NAMES = {
    "auto": "bcnet",
    "torch-pruning-norm": "Torch-Pruning, global group norm",
    "torch-pruning-taylor": "Torch-Pruning, global Taylor",
    "uniform": "all widths scaled alike",
}
MOST = 5.5  # points lost; rows that lose more are marked at the edge, with their number


def main() -> None:
    parser = argparse.ArgumentParser(description="draws the points lost at each measured latency")
    parser.add_argument("records", type=Path, nargs="+", help="files arena.json of one network")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    budgets = [budget for path in options.records for budget in json.loads(path.read_text())["budgets"]]
    by_row: list[dict[str, Any]] = [{row["row"]: row for row in budget["rows"]} for budget in budgets]
    drawn = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = drawn.add_subplot()
    axes.axhline(0, color="0.6", linestyle=":", label="original")
    for number, (name, shown) in enumerate(NAMES.items()):
        entries = sorted((rows[name] for rows in by_row if name in rows), key=lambda entry: entry["share"])
        lost = [100 * entry["lost"] for entry in entries]
        spread = [
            [100 * (entry["accuracy_high"] - entry["accuracy"]) for entry in entries],
            [100 * (entry["accuracy"] - entry["accuracy_low"]) for entry in entries],
        ]
        colour = "black" if name == "auto" else f"C{number}"
        axes.errorbar(
            [100 * entry["share"] for entry in entries],
            lost,
            yerr=spread,
            color=colour,
            linestyle="-" if name in ("auto", "uniform") else "--",
            marker="osD^"[number],
            linewidth=1.2,
            capsize=3,
            label=shown,
        )
        for entry, points in zip(entries, lost, strict=True):
            if points > MOST:
                axes.annotate(
                    f"{points:.1f}",
                    (100 * entry["share"], MOST),
                    color=colour,
                    xytext=(0, 14),
                    textcoords="offset points",
                    arrowprops={"arrowstyle": "->", "color": colour},
                    ha="center",
                )
    axes.set_ylim(MOST, -1.2)
    axes.set_xlabel("latency, measured (% of the original's)")
    axes.set_ylabel("points of accuracy lost")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    with matplotlib.rc_context({"svg.hashsalt": "arena"}):
        drawn.savefig(options.output, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
