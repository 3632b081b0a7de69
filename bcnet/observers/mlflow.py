"""MLflow: a run per command, with its settings, figures by step and results. In: events. Out: MLflow's runs.

Where runs go is MLflow's own setting (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME).
"""

import re
from typing import Any

from bcnet.observers import Event, Followed, figures, imported, observer

LONGEST = 500  # characters of a parameter: MLflow's own limit is 6000
NOT_ALLOWED = re.compile(r"[^\w\-. /:]")  # in names of metrics


class MLflow:
    """Logs settings as parameters, figures as metrics, and the numbers of a stage's result as metrics."""

    def __init__(self, followed: Followed) -> None:
        self._client: Any = imported("mlflow", "mlflow-skinny", "mlflow")
        self._failed = False
        self._client.start_run(run_name=f"{followed.folder.name} {followed.command}")
        self._client.set_tags({"bcnet.run": followed.folder.name, "bcnet.command": followed.command})
        self._client.log_params({key: str(value)[:LONGEST] for key, value in followed.settings.items()})

    def __call__(self, event: Event) -> None:
        """Log an event's figures at its step; of a stage that ended, those of its result."""
        if event.name == "command failed":
            self._failed = True
        elif event.name == "stage finished":
            stage, result = event.values["stage"], event.values.get("result") or {}
            self._log(figures(Event(stage, result)), None)
        elif "step" in event.values:
            self._log(figures(event), event.values["step"])

    def _log(self, found: dict[str, float], step: int | None) -> None:
        allowed = {NOT_ALLOWED.sub("_", key): value for key, value in found.items()}
        self._client.log_metrics(allowed, step=step)

    def close(self) -> None:
        """End MLflow's run."""
        self._client.end_run("FAILED" if self._failed else "FINISHED")


@observer("mlflow", "a run per command at an MLflow tracking server")
def mlflow(followed: Followed) -> MLflow:
    """One for a command."""
    return MLflow(followed)
