"""What a search has scored so far, so that a stopped one can continue; and candidates as JSON values.

In: candidates, generation by generation. Out: the same, up to the first line that was changed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bcnet.errors import ArtifactError
from bcnet.latency_tables.rows import LatencyStat
from bcnet.progress import say
from bcnet.runs import Stage
from bcnet.sealed import SealedLines
from bcnet.space.width_space import Widths, WidthSpace
from bcnet.width_search.evolution import Candidate
from bcnet.width_search.scorer import Score

STATE = "state.jsonl"
OLD_STATE = "state.json"  # of earlier versions


class SearchState:
    """The candidates of a search in `search/state.jsonl`: one line a generation."""

    def __init__(self, stage: Stage, inputs: Mapping[str, str], space: WidthSpace) -> None:
        """Reads what a stopped search with the same inputs left; reports what of it is not used.

        Raises ArtifactError where the file cannot be read.
        """
        path = stage.path(STATE)
        self.files = [path, stage.path(OLD_STATE)]
        try:
            self._lines = SealedLines(path, inputs)
        except ValueError as cause:
            raise ArtifactError(
                f"{path} cannot be read ({cause}); delete it to search from the start"
            ) from None
        self.candidates = tuple(
            candidate_from_json(value, space) for generation in self._lines.values for value in generation
        )
        if self._lines.dropped:
            say(f"{path}: {self._lines.dropped}; what was scored from there on is scored again")
        elif not self.candidates and self.files[1].exists():
            say(f"{self.files[1]} is from an earlier version of bcnet: the search starts again")
        if self.candidates:
            say(f"continuing a search with {len(self.candidates)} candidates scored")

    def keep(self, candidates: Sequence[Candidate]) -> None:
        """Add the new candidates; `candidates` are all candidates of the search so far."""
        new = candidates[len(self.candidates) :]
        self._lines.append([candidate_json(candidate) for candidate in new])
        self.candidates = tuple(candidates)


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON, as stored in `search/`."""
    return {
        "widths": list(candidate.widths),
        "predicted_ms": candidate.predicted_ms,
        "accuracy": candidate.score.accuracy,
        "loss": candidate.score.loss,
        **({} if candidate.expected is None else {"expected_accuracy": candidate.expected}),
        "generation": candidate.generation,
        "measured": asdict(candidate.measured) if candidate.measured else None,
    }


def candidate_from_json(value: dict[str, Any], space: WidthSpace) -> Candidate:
    """A candidate from its JSON in `search/`. Raises ArtifactError where that is not valid."""
    try:
        widths = Widths(int(width) for width in value["widths"])
        if not all(width in group.choices for width, group in zip(widths, space.groups, strict=True)):
            raise ValueError(f"{widths} is not in the space")
        predicted_ms = float(value["predicted_ms"])
        if not (math.isfinite(predicted_ms) and predicted_ms >= 0):
            raise ValueError(f"a latency of {predicted_ms} ms")
        return Candidate(
            widths,
            predicted_ms,
            Score(float(value["accuracy"]), -float(value["loss"])),
            int(value["generation"]),
            LatencyStat(**value["measured"]) if value["measured"] else None,
        )
    except (KeyError, TypeError, ValueError) as cause:
        raise ArtifactError(
            f"a candidate of search/ cannot be read ({cause}); run `bcnet search` again"
        ) from None
