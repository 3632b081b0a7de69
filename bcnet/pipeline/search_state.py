"""What a search has scored so far, so that a stopped one can continue; and candidates as they are stored.

In: candidates, generation by generation. Out: the same, up to the first line that was changed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bcnet.errors import ArtifactError
from bcnet.pipeline.results import ScoredNetwork, parsed
from bcnet.plain import counted
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

    def __init__(
        self, stage: Stage, inputs: Mapping[str, str], space: WidthSpace, path: Path | None = None
    ) -> None:
        """Read what a stopped search with the same inputs left; report what of it cannot be used.

        `path` is another file. Raises ArtifactError where the file cannot be read.
        """
        path = path or stage.path(STATE)
        self.files = [path, stage.path(OLD_STATE)]
        self._lines = lines_of_search(path, inputs)
        self.candidates = tuple(
            candidate_of(parsed(ScoredNetwork, value, path, stage.command, "search"), space)
            for generation in self._lines.values
            for value in generation
        )
        if self._lines.dropped:
            say(f"{path}: {self._lines.dropped}; what was scored from there on is scored again")
        elif not self.candidates and self.files[1].exists():
            say(f"{self.files[1]} is from an earlier version of bcnet: the search starts again")
        if self.candidates:
            say(f"continuing a search with {counted(len(self.candidates), 'candidate')} scored")

    def keep(self, candidates: Sequence[Candidate]) -> None:
        """Add the new candidates; `candidates` are all candidates of the search so far."""
        new = candidates[len(self.candidates) :]
        self._lines.append([scored_network(candidate).to_json() for candidate in new])
        self.candidates = tuple(candidates)


def lines_of_search(path: Path, inputs: Mapping[str, str]) -> SealedLines:
    """A file from which a stopped search continues. Raises ArtifactError where it cannot be read."""
    try:
        return SealedLines(path, inputs)
    except ValueError as cause:
        raise ArtifactError(f"{path} cannot be read ({cause}); delete it to search from the start") from None


def scored_network(candidate: Candidate) -> ScoredNetwork:
    """A candidate as it is stored in `search/`."""
    return ScoredNetwork(
        widths=candidate.widths,
        predicted_ms=candidate.predicted_ms,
        accuracy=candidate.score.accuracy,
        loss=candidate.score.loss,
        expected_accuracy=candidate.expected,
        generation=candidate.generation,
        measured=candidate.measured,
    )


def candidate_of(found: ScoredNetwork, space: WidthSpace) -> Candidate:
    """A candidate that was stored in `search/`. Raises ArtifactError where it is not in the space."""
    widths = Widths(found.widths)
    if len(widths) != len(space.groups) or any(
        width not in group.choices for width, group in zip(widths, space.groups, strict=True)
    ):
        raise ArtifactError(
            f"a candidate of search/ cannot be read ({widths} is not in the space); run `bcnet search` again"
        )
    score = Score(found.accuracy, -found.loss)
    return Candidate(widths, found.predicted_ms, score, found.generation, found.measured)
