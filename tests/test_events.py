"""Who follows a command: the log, lines on stderr, TensorBoard, MLflow."""

import json
from pathlib import Path

import pytest
import torch

from bcnet.config import DataConfig
from bcnet.config.config import Config
from bcnet.data.dataset import load_data
from bcnet.errors import ConfigError
from bcnet.events import Event, emit, is_observed, observed
from bcnet.models.digits import digits
from bcnet.observers import Followed, Guarded, imported
from bcnet.observers.mlflow import MLflow
from bcnet.observers.tensorboard import TensorBoard
from bcnet.pipeline.train_supernet import train
from bcnet.registry import OBSERVERS, ObserverKind
from bcnet.run_log import RunLog
from bcnet.show.events import EventLines
from bcnet.space.discover import discover_space
from bcnet.space.supernet import Supernet
from bcnet.training.recipe import Recipe

EPOCH = {"task": "training", "step": 2, "steps": 3, "loss": 0.5, "learning_rate": 0.1, "seconds": 4.2}


class Seen:
    """Keeps what it is called with."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = False

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed = True


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_observers_are_called_inside_the_block_and_closed_after_it_even_by_an_error() -> None:
    seen = Seen()
    emit("before")

    def interrupted() -> None:
        with observed([seen]):
            assert is_observed()
            emit("inside", value=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    emit("after")
    assert not is_observed()
    assert [(event.name, dict(event.values)) for event in seen.events] == [("inside", {"value": 1})]
    assert seen.closed


def test_the_log_begins_with_the_first_work_and_has_what_came_before(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    log = RunLog(folder, "train")
    log(Event("message", {"text": "first"}, at=0.25))
    assert not folder.exists()
    folder.mkdir()
    log(Event("stage started", {"stage": "train"}, at=1.0))
    log(Event("command failed", {"reason": "refused"}, at=2.0))
    assert list(folder.iterdir()) == []
    log(Event("epoch", {**EPOCH, "loss": float("nan")}, at=60.0))
    assert lines_of(folder / "log.jsonl") == [
        {"at": "1970-01-01T00:00:00.250Z", "command": "train", "event": "message", "text": "first"},
        {"at": "1970-01-01T00:00:01.000Z", "command": "train", "event": "stage started", "stage": "train"},
        {
            "at": "1970-01-01T00:00:02.000Z",
            "command": "train",
            "event": "command failed",
            "reason": "refused",
        },
        {"at": "1970-01-01T00:01:00.000Z", "command": "train", "event": "epoch", **EPOCH, "loss": None},
    ]


def test_a_log_that_cannot_be_written_is_reported_once_and_the_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").mkdir()
    log = RunLog(tmp_path, "train")
    for _ in range(3):
        log(Event("epoch", EPOCH))
    assert capsys.readouterr().err.count("log.jsonl is not written any more: Is a directory") == 1


def test_without_a_terminal_epochs_are_lines_but_not_more_than_one_a_second(
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([0.0, 0.0, 0.5, 1.5, 1.5])
    show = EventLines(verbose=False, clock=lambda: next(times))
    for step in (1, 2, 3):
        show(Event("epoch", {**EPOCH, "step": step, "steps": 4}))
    show(Event("generation", {"task": "searching", "step": 0}))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"training: epoch {step} of 4, loss 0.5000, rate 0.1, 4 s" for step in (1, 3)]


def test_verbose_prints_every_event_but_messages_which_are_printed_anyway(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show = EventLines(verbose=True)
    show(Event("message", {"text": "hello"}))
    show(Event("measured", {"widths": [8, 16], "used": 0.98765}))
    assert capsys.readouterr().err == "measured: widths 8-16, used 0.9877\n"


def test_tensorboard_gets_the_figures_of_events_with_a_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoard(Followed("train", tmp_path, {}))
    writer(Event("epoch", EPOCH))
    writer(Event("message", {"text": "no figures"}))
    writer(Event("subnets", {"task": "training", "step": 2, "steps": 3, "random 1": 0.75}))
    writer.close()
    found = EventAccumulator(str(tmp_path / "tensorboard" / "train")).Reload()
    names = ["training/loss", "training/learning_rate", "training/seconds", "training/random 1"]
    assert sorted(found.Tags()["scalars"]) == sorted(names)
    (loss,) = found.Scalars("training/loss")
    assert (loss.step, loss.value) == (2, 0.5)


def test_mlflow_gets_settings_figures_by_step_and_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    observer = MLflow(Followed("train", Path("runs/night"), {"train.epochs": 3}))
    observer(Event("epoch", EPOCH))
    result = {"final_loss": 0.5, "verified": True, "device": "cpu"}
    observer(Event("stage finished", {"stage": "train", "seconds": 9.0, "result": result}))
    observer.close()
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED"
    assert (run.data.params, run.data.tags["bcnet.run"]) == ({"train.epochs": "3"}, "night")
    metrics = {"training/loss": 0.5, "training/learning_rate": 0.1, "training/seconds": 4.2}
    assert run.data.metrics == {**metrics, "train/final_loss": 0.5}


def test_an_observer_whose_package_is_missing_says_how_to_install_it() -> None:
    with pytest.raises(ConfigError, match=r'needs the package nothing: pip install "bcnet\[none\]"'):
        imported("no_such_module", "nothing", "none")


def test_an_observer_that_fails_is_reported_once_and_the_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Seen):
        def __call__(self, event: Event) -> None:
            raise OSError("the server is gone")

    monkeypatch.setitem(OBSERVERS._registered, "own", ObserverKind("own", lambda _: Failing(), "fails"))
    with observed([Guarded("own", Followed("train", Path("runs/night"), {}))]):
        emit("epoch", **EPOCH)
        emit("epoch", **EPOCH)
    line = "the observer 'own' failed and is not called any more: OSError: the server is gone"
    assert capsys.readouterr().err.splitlines() == [line]


def test_an_unknown_observer_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown observer 'tensorbord'; did you mean 'tensorboard'"):
        Config.model_validate({"observers": ["tensorbord"]})


def test_following_a_training_does_not_change_it() -> None:
    data = load_data(DataConfig(name="digits", image_size=16, train_limit=96, test_limit=32), 0)
    torch.manual_seed(0)
    model = digits()
    space = discover_space(model, torch.zeros(1, *data.input_shape), bins=2)
    states = []
    for observers in ([], [Seen()]):
        supernet = Supernet.with_extra(model, space)
        with observed(observers):
            states.append(train(supernet, data, Recipe(2, 0.05, batch_size=16)).supernet.state)
    names = [event.name for event in observers[0].events]
    assert names.count("epoch") == 2
    assert names.count("subnets") >= 1
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
