"""Write summary.md: what is claimed, by how much, whether the goal is met, and where it comes from.

    python benchmarks/summary.py

In: results/claims.json, and the records in results/ that it names. README.md describes the format.
"""

import json
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REDUCED: Mapping[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "largest": max,
    "smallest": min,
}
GOALS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "at_most": ("≤", operator.le),
    "at_least": ("≥", operator.ge),
}
HEAD = """# What was measured

Made by `python benchmarks/summary.py` from `benchmarks/results/`; `-` where there is no interval or goal.
A claim links to its page, which has the noise and what falls short.

| claim | number | interval | goal | met | date | command | file |
|---|---|---|---|---|---|---|---|
"""


class ClaimError(Exception):
    """A claim that its record does not hold; the text names both."""


def load(path: Path) -> Any:
    """A record: JSON, or JSON lines as a list."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def value_at(record: Any, path: Sequence[Any]) -> Any:
    """What a path leads to. Raises LookupError.

    A text is a key, a number an index, a mapping selects the one element that has its values, and "*" takes
    the rest of the path from each element.
    """
    for place, step in enumerate(path):
        if step == "*":
            return [value_at(each, path[place + 1 :]) for each in record]
        if isinstance(step, Mapping):
            found = [each for each in record if all(each.get(key) == step[key] for key in step)]
            if len(found) != 1:
                raise LookupError(f"{len(found)} elements have {step}")
            record = found[0]
        else:
            record = record[step]
    return record


def numbers(claim: Mapping[str, Any], record: Any, path: Sequence[Any]) -> list[float]:
    """The numbers that a path leads to, in the unit that is shown."""
    found = value_at(record, path)
    values = found if isinstance(found, list) else [found]
    if "of" in claim:
        values = [REDUCED[claim["of"]](values)]
    return [claim.get("times", 1) * value for value in values]


def row(claim: Mapping[str, Any], results: Path) -> str:
    """The claim as a row of the table. Raises LookupError and others where the record does not hold it."""
    record = load(results / claim["file"])
    facts = {**claim, **{key: record[key] for key in ("command", "date") if key in record}}

    def shown(values: Sequence[float]) -> str:
        return " / ".join(format(value, claim["format"]) for value in values)

    values = numbers(claim, record, claim["number"])
    goal, met = "-", "-"
    for key, (sign, holds) in GOALS.items():
        if key in claim:
            goal = f"{sign} {claim[key]:g}"
            met = "yes" if all(holds(value, claim[key]) for value in values) else "**no**"
    cells = [
        f"[{claim['claim']}](../docs/benchmarks/{claim['page']}.md)",
        f"{shown(values)} {claim.get('unit', '')}".strip(),
        " to ".join(shown(numbers(claim, record, path)) for path in claim.get("interval", ())) or "-",
        *(goal, met, facts["date"], f"`{facts['command']}`", f"`{claim['file']}`"),
    ]
    return f"| {' | '.join(cells)} |\n"


def summary(results: Path) -> str:
    """The text of summary.md. Raises ClaimError."""
    text = HEAD
    for claim in load(results / "claims.json"):
        try:
            text += row(claim, results)
        except (OSError, LookupError, TypeError, ValueError) as error:
            name = claim.get("claim", "a claim without text")
            raise ClaimError(f"claims.json: {name!r}: {type(error).__name__}: {error}") from error
    return text


if __name__ == "__main__":
    try:
        (HERE / "summary.md").write_text(summary(HERE / "results"), encoding="utf-8")
    except ClaimError as error:
        raise SystemExit(str(error)) from None
