"""The base of all results: values with a JSON form. In: values, or a file of the run. Out: the other one.

The JSON on disk and on stdout is the model's dump. All readers read it through the model, so what files of
earlier versions lack is known in this package alone: those keys have defaults, and any other file is refused.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from bcnet.errors import ArtifactError
from bcnet.runs import Stage, read_json
from bcnet.width_search.latency_budget import LatencyBudget

EARLIER_BUDGET = "budget_ms", "budget_share", "budget_p90"  # keys of earlier versions, replaced by `budget`

M = TypeVar("M", bound=BaseModel)


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Figure = Annotated[float | None, BeforeValidator(_known)]  # None for what is not finite: JSON has no word
Target = Mapping[str, Any]  # device, batch, threads, precision and host, as settings of a configuration


class Values(BaseModel):
    """A part of a result. Its `ABSENT` keys are left out where they are None; all others are `null` then."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")
    ABSENT: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        return {key: value for key, value in found.items() if value is not None or key not in self.ABSENT}

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return self.model_dump(mode="json")


class Budgeted(Values):
    """A part of a result with a latency budget; None if no latency is demanded."""

    budget: LatencyBudget | None

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, values: Any) -> Any:
        """Files of earlier versions have a key for each part of a budget."""
        if not isinstance(values, dict) or "budget_ms" not in values:
            return values
        ms, share, p90 = (values.get(key) for key in EARLIER_BUDGET)
        budget = None if ms is None else {"ms": ms, "share": share, "p90": bool(p90)}
        return {**{key: own for key, own in values.items() if key not in EARLIER_BUDGET}, "budget": budget}


class AccuracyLost(Values):
    """The original network's accuracy, and what a small network loses of it."""

    accuracy: float | None = None
    state: str | None = None  # "given", "head trained" or "trained"
    accuracy_lost: float | None = None


class StageResult(Values):
    """What a stage found. A file without a version is of version 1, and so are all files up to now."""

    VERSION: ClassVar[int] = 1
    FILE: ClassVar[str] = "result.json"

    stage: str

    @classmethod
    def read(cls, stage: Stage) -> Self:
        """The result in a stage's folder, not compared with its manifest.

        Raises ArtifactError with the command that makes it again.
        """
        path = stage.path(cls.FILE)
        return cls.parsed(read_json(path, stage.command), path, stage.command)

    @classmethod
    def checked(cls, stage: Stage) -> Self:
        """The same, compared with the manifest."""
        return cls.parsed(stage.json(cls.FILE), stage.path(cls.FILE), stage.command)

    @classmethod
    def parsed(cls, value: Any, path: Path, command: str) -> Self:
        """The result in `path`, from its JSON value. Raises ArtifactError with the command."""
        if isinstance(value, dict) and value.get("version", 1) != cls.VERSION:
            raise ArtifactError(f"{path} is from another version of bcnet; run `{command}` again")
        return parsed(cls, value, path, command, str(cls.model_fields["stage"].default))


def parsed(model: type[M], value: Any, path: Path, command: str, stage: str) -> M:
    """A model from the JSON value in `path`, which `stage` wrote. Raises ArtifactError with the command."""
    try:
        return model.model_validate_json(json.dumps(value))  # a latency's own rules are strict about objects
    except ValidationError as cause:
        where = ".".join(str(part) for part in cause.errors()[0]["loc"])
        what = f"{path}: {where}" if where else path
        raise ArtifactError(f"{what} is not what {stage} wrote; run `{command}` again") from None


def target_named(path: Path, command: str) -> Target | None:
    """The target that the result of a table or a search names; None where there is no result.

    All else in the file may be of another version: the command that makes it again must know its target.
    Search results of earlier versions name their device alone.
    """
    found = read_json(path, command) if path.exists() else None
    return found.get("target", {"device": found.get("device")}) if isinstance(found, dict) else None
