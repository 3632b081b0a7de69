"""Summarise the arena's cells. In: cells and latencies by budget. Out: a report, as JSON and as a table.

Accuracies are means over seeds with a 95 % interval: Student's over several seeds, Wilson's over the test
images for one seed. Each row is compared with the best row of its budget by a paired t-test over the test
images; an image's value is the share of seeds that classify it correctly.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from bcnet.bench.arena_rows import ORIGINAL
from bcnet.pipeline.repeated import disagreement
from bcnet.plain import LONGEST, counted, plain

Cell = Mapping[str, Any]
OVER = 0.03  # by which the final measurement of the best row may exceed its budget
COLUMNS = 100


def report_of(
    about: Mapping[str, Any],
    rows: Sequence[str],
    cells: Mapping[float, Sequence[Cell]],
    latencies: Mapping[float, Mapping[str, Sequence[float]]],
    omitted: Mapping[tuple[str, float], str],
) -> dict[str, Any]:
    """The whole report; cells are those of a budget, the original first."""
    budgets = []
    for share, own in cells.items():
        found = [
            _standing(name, own, share, latencies[share], about["test_images"]) for name in (ORIGINAL, *rows)
        ]
        standings = [entry for entry in found if entry is not None]
        _compare(standings, own, about["test_images"])
        reasons = {name: reason for (name, at), reason in omitted.items() if at == share}
        timed = {f"'{cell['row']}'": latencies[share].get(cell["shape"], [0]) for cell in own}
        note = (timed and disagreement(timed)) or ""
        budgets.append({"budget": share, "rows": standings, "omitted": reasons, "note": note})
    kept = {
        (cell["row"], cell.get("budget"), cell.get("seed")): cell for own in cells.values() for cell in own
    }
    measured = {
        str(share): {shape: list(ms) for shape, ms in own.items()} for share, own in latencies.items()
    }
    return {**about, "budgets": budgets, "cells": list(kept.values()), "rounds_ms": measured}


def _standing(
    name: str, cells: Sequence[Cell], share: float, rounds: Mapping[str, Sequence[float]], images: int
) -> dict[str, Any] | None:
    """One row at one budget; None where none of its cells is made yet."""
    own = [cell for cell in cells if cell["row"] == name]
    if not own:
        return None
    original = cells[0]
    accuracies = [float(cell["accuracy"]) for cell in own]
    mean = float(np.mean(accuracies))
    low, high, over = interval(accuracies, images, own[0]["correct"] is not None)
    latency, relative, final = _latency(own[0], original, rounds)
    return {
        "row": name,
        "seeds": [cell.get("seed") for cell in own],
        "accuracy": round(mean, 6),
        "accuracy_low": low,
        "accuracy_high": high,
        "interval_over": over,
        "lost": round(float(original["accuracy"]) - mean, 6),
        "latency_ms": latency,
        "share": relative,
        "speed_up": round(1 / relative, 3) if relative else None,
        "measured_at_the_end": final,
        "over_budget": name != ORIGINAL and relative is not None and relative > share * (1 + OVER),
        **{key: own[0].get(key) for key in ("widths", "params", "macs", "passes", "source", "note")},
    }


def interval(
    values: Sequence[float], images: int, shares: bool
) -> tuple[float | None, float | None, str | None]:
    """A 95 % interval of the mean: low, high, and over what it is taken; None where there is none."""
    count, mean = len(values), float(np.mean(values))
    if count > 1:
        half = float(student.ppf(0.975, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
        low, high = mean - half, mean + half
        if shares:
            low, high = max(0.0, low), min(1.0, high)
        return round(low, 6), round(high, 6), "seeds"
    if not shares:
        return None, None, None
    found = binomtest(round(mean * images), images).proportion_ci(method="wilson")
    return round(float(found.low), 6), round(float(found.high), 6), "images"


def _latency(
    cell: Cell, original: Cell, rounds: Mapping[str, Sequence[float]]
) -> tuple[float | None, float | None, bool]:
    """A network's latency in ms and relative to the original's, and whether all were timed together.

    Relative to the original in the same round: the median of the rounds. Before that,
    as measured when it was found.
    """
    if cell["shape"] in rounds and original["shape"] in rounds:
        own, whole = np.array(rounds[cell["shape"]]), np.array(rounds[original["shape"]])
        return float(own.min()), round(float(np.median(own / whole)), 4), True
    if cell is original:
        return None, 1.0, False
    if cell.get("measured_ms"):
        return cell["measured_ms"], round(cell["measured_ms"] / cell["original_ms"], 4), False
    return None, None, False


def _compare(standings: list[dict[str, Any]], cells: Sequence[Cell], images: int) -> None:
    """Add to each row its difference to the best row, and the p-value of that difference."""
    candidates = [entry for entry in standings if entry["row"] != ORIGINAL and not entry["over_budget"]]
    best = max(candidates, key=lambda entry: entry["accuracy"], default=None)
    for entry in standings:
        entry["best"] = entry is best
        entry["to_best"] = entry["p"] = None
        if best is None or entry is best or entry["row"] == ORIGINAL:
            continue
        entry["to_best"] = round(best["accuracy"] - entry["accuracy"], 6)
        entry["p"] = paired(_right(cells, best["row"], images), _right(cells, entry["row"], images))


def _right(cells: Sequence[Cell], row: str, images: int) -> np.ndarray | None:
    """For each test image the share of a row's seeds that classify it correctly."""
    own = [cell["correct"] for cell in cells if cell["row"] == row]
    if not own or any(text is None for text in own):
        return None
    bits = [np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:images] for text in own]
    return np.asarray(np.mean(bits, axis=0))


def paired(first: np.ndarray | None, second: np.ndarray | None) -> float | None:
    """The two-sided p of a paired t-test; 1 where nothing differs, None where images are not known."""
    if first is None or second is None or len(first) < 2:
        return None
    difference = first - second
    deviation = float(difference.std(ddof=1))
    if deviation == 0:
        return 1.0 if difference[0] == 0 else 0.0
    statistic = abs(float(difference.mean())) / (deviation / math.sqrt(len(difference)))
    return round(float(2 * student.sf(statistic, len(difference) - 1)), 5)


def as_text(report: Mapping[str, Any]) -> str:
    """The report as tables of at most 100 columns, one for each budget."""
    passes, seeds = report["passes"], ", ".join(map(str, report["seeds"]))
    lines = textwrap.wrap(
        f"{report['model']} on {report['data']}, {report['device']}: fine-tuned for "
        f"{counted(passes, 'pass', 'passes')} each, seeds {seeds}",
        COLUMNS,
    )
    for budget in report["budgets"]:
        lines += ["", *_table(budget, report["metric"])]
    return "\n".join(lines)


def _table(budget: Mapping[str, Any], metric: str) -> list[str]:
    rows, percentages = budget["rows"], metric == "accuracy"
    final = all(entry["measured_at_the_end"] for entry in rows)
    when = "all timed together, alternating" if final else "each timed when it was found, not yet together"
    over = {entry["interval_over"] for entry in rows[1:]} - {None}
    of = f"; intervals of 95 % over {' or '.join(sorted(over))}" if over else ""
    lines = [f"at {budget['budget']:.3g} of the original's latency, {when}{of}"]
    table = [["row", "latency", "faster", metric, "interval", "lost", "to best", "p"]]
    for entry in rows:
        table.append(
            [
                entry["row"],
                ""
                if entry["share"] is None
                else f"{entry['share']:.3f}{'!' if entry['over_budget'] else ''}",
                "" if entry["speed_up"] is None else f"{entry['speed_up']:.2f}x",
                _value(entry["accuracy"], percentages),
                _range(entry, percentages),
                "" if entry["row"] == ORIGINAL else _value(entry["lost"], percentages),
                "best" if entry["best"] else _value(entry["to_best"], percentages),
                "" if entry["p"] is None else f"{entry['p']:.3f}",
            ]
        )
    sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *others in table:
        cells = [cell.rjust(size) for cell, size in zip(others, sizes[1:], strict=True)]
        lines.append("  ".join([name.ljust(sizes[0]), *cells]).rstrip())
    if any(entry["over_budget"] for entry in rows):
        lines.append(f"! over the budget by more than {OVER:.0%}")
    notes = [f"{name}: {reason}" for name, reason in budget["omitted"].items()]
    for note in filter(None, (*notes, budget["note"])):
        lines += textwrap.wrap(plain(note, LONGEST), COLUMNS, subsequent_indent="  ")
    return lines


def _value(value: float | None, percentages: bool) -> str:
    if value is None:
        return ""
    return f"{100 * value:.2f}" if percentages else f"{value:.4f}"


def _range(entry: Mapping[str, Any], percentages: bool) -> str:
    if entry["accuracy_low"] is None:
        return ""
    return f"{_value(entry['accuracy_low'], percentages)} to {_value(entry['accuracy_high'], percentages)}"
