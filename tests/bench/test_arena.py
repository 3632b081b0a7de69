"""The arena on a tiny trained network: all rows to the same end, resumable, with a table and a figure."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONFIG, measure_briefly

from bcnet.bench import arena, arena_rows
from bcnet.bench.arena_cells import Cell, Networks
from bcnet.bench.arena_report import as_text, interval, paired, report_of
from bcnet.bench.arena_rows import PLAIN, ROWS, rows_of
from bcnet.bench.arena_search import supernet_config
from bcnet.bench.arena_starts import Starts
from bcnet.bench.outside_job import Failed, NotInstalled, package
from bcnet.cli import main
from bcnet.config import load_config
from bcnet.errors import UsageError
from bcnet.pipeline import fine_tuning
from bcnet.pipeline.open_problem import open_problem
from bcnet.registry import auto_methods
from bcnet.sealed import unseal_tensors
from bcnet.space.importance import CRITERIA
from bcnet.training.recipe import Recipe
from bcnet.width_search.inherit import Original

FOLDER = Path("runs/arena/bench/arena")
OWN = ("auto", "group-fisher", "supernet, 1 pass", "bcnet", "uniform, l1", "uniform (from scratch)")
TOML = '[model]\nweights = "trained.pt"\n' + CONFIG.replace("[search]", "[search]\nprune_epochs = 1")
COMMAND = ["bench", "arena", "--budgets", "70%", *(word for row in OWN for word in ("--row", row))]


@pytest.fixture(scope="module")
def folder(trained_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained network in whose arena three rows were run at one budget and one seed."""
    path = shutil.copytree(trained_project, tmp_path_factory.mktemp("arena") / "folder")
    with contextlib.chdir(path), pytest.MonkeyPatch.context() as patch:
        measure_briefly(patch)
        Path("bcnet.toml").write_text(TOML, encoding="utf-8")
        assert main(COMMAND) == 0
    return path


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the working folder."""
    monkeypatch.chdir(folder)
    measure_briefly(monkeypatch)
    return folder


def report() -> Any:
    return json.loads((FOLDER / "arena.json").read_text(encoding="utf-8"))


def test_all_rows_are_run_to_the_same_end_and_compared_with_the_original(here: Path) -> None:
    found = report()
    (budget,) = found["budgets"]
    rows = {row["row"]: row for row in budget["rows"]}
    assert list(rows) == ["original", *OWN]
    assert rows["original"]["passes"] is None
    assert rows["original"]["share"] == 1.0
    for name in OWN:
        assert rows[name]["passes"] == 1
        assert rows[name]["measured_at_the_end"]
        assert rows[name]["lost"] == pytest.approx(rows["original"]["accuracy"] - rows[name]["accuracy"])
        assert rows[name]["macs"] < rows["original"]["macs"]
    assert rows["uniform, l1"]["source"] == "l1"
    assert rows["group-fisher"]["source"] == "group-fisher's own weights"
    assert rows["supernet, 1 pass"]["source"] in [
        f"the {side} side of a supernet trained for 1 of the passes" for side in ("left", "right")
    ]
    assert rows["supernet, 1 pass"]["widths"] == rows["auto"]["widths"]
    assert rows["bcnet"]["source"] in (*CRITERIA, "iterative-taylor")  # the original's channels
    assert rows["uniform, l1"]["widths"] == rows["uniform (from scratch)"]["widths"]
    assert rows["uniform (from scratch)"]["source"].startswith("from scratch")
    assert sum(row["best"] for row in budget["rows"]) == 1


def test_each_cell_has_its_network_and_which_images_it_answers_correctly(here: Path) -> None:
    for cell in report()["cells"]:
        assert (FOLDER / cell["file"]).is_file()
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(cell["correct"]), dtype=np.uint8))[:60]
        assert bits.mean() == pytest.approx(cell["accuracy"], abs=1e-6)
    auto = next(cell for cell in report()["cells"] if cell["row"] == "auto")
    assert auto["found_by"] in [own.name for own in auto_methods()]
    assert auto["measured_ms"] <= 0.7 * auto["original_ms"] * 1.001
    assert auto["distilled"]


def test_widths_of_a_supernet_are_those_that_its_search_finds(here: Path) -> None:
    cell = next(own for own in report()["cells"] if own["row"] == "bcnet")
    found = json.loads((FOLDER / "supernets/bcnet/search-70/result.json").read_text(encoding="utf-8"))
    assert cell["widths"] == found["best"]["widths"]
    assert cell["found_by"] == "bcnet, a supernet of 2 passes"
    assert found["budget"]["share"] == 0.7
    assert found["margin"] == 0


def test_every_supernet_of_the_arena_gets_as_many_passes() -> None:
    config = load_config(None, {"train": {"epochs": 24}, "search": {"latency_ms": 5.0}})
    for method, epochs in (("bcnet", 12), ("unilateral", 24), ("psenet", 24), ("cafenet", 24)):
        own, passes = supernet_config(config, method, "50%")
        assert (own.train.method, own.train.epochs, passes) == (method, epochs, "24 passes")
        assert own.search.budgets == {"latency": "50%"}
        assert own.search.method == "evolution"


def test_a_supernet_that_cannot_be_trained_as_configured_is_left_out(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["--row", "psenet", "--run", "other", "--json", "--set", "train.step=distilled"]
    assert main(["bench", "arena", "--budgets", "70%", *rows]) == 0
    found = json.loads(capsys.readouterr().out)["budgets"][0]
    assert "with psenet each path has a part of its own" in found["omitted"]["psenet"]


def test_the_table_fits_100_columns_and_the_figure_has_every_row(here: Path) -> None:
    text = (FOLDER / "arena.txt").read_text(encoding="utf-8")
    assert all(len(line) <= 100 for line in text.splitlines())
    assert re.search(r"^uniform, l1 +0\.\d{3}!? +\d\.\d\dx +\d", text, re.MULTILINE)
    pytest.importorskip("matplotlib")
    assert (FOLDER / "arena.svg").read_text(encoding="utf-8").count("<!-- uniform") >= 2


def test_a_finished_arena_neither_trains_nor_measures_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = report()
    monkeypatch.setattr(fine_tuning, "fit_network", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(arena, "measured_alternately", lambda *_: pytest.fail("measured again"))
    assert main([*COMMAND, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == before


def test_measuring_again_trains_nothing_and_replaces_the_latencies(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = report()
    monkeypatch.setattr(fine_tuning, "fit_network", lambda *_, **__: pytest.fail("trained again"))
    assert main([*COMMAND, "--measure"]) == 0
    assert report()["cells"] == before["cells"]
    assert report()["rounds_ms"].keys() == before["rounds_ms"].keys()
    assert report()["rounds_ms"] != before["rounds_ms"]


def test_a_lost_network_is_made_again_with_the_same_result(here: Path) -> None:
    cell = next(own for own in report()["cells"] if own["row"] == "uniform, l1")
    (FOLDER / cell["file"]).unlink()
    assert main(COMMAND) == 0
    again = next(own for own in report()["cells"] if own["row"] == "uniform, l1")
    assert again["digest"] == cell["digest"]
    assert again["correct"] == cell["correct"]


def test_only_auto_is_run_again_where_it_chooses_among_other_methods(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, made = report(), list[str]()

    def tuned(_: Networks, cell: Cell) -> None:
        made.append(cell.name)
        raise Failed("not now")

    (auto,) = (own for own in before["cells"] if own["row"] == "auto")
    assert auto["chosen_among"] == [own.name for own in auto_methods()]
    with monkeypatch.context() as patch:
        patch.setattr(arena_rows, "auto_methods", lambda: auto_methods()[:2])
        patch.setattr(Networks, "_tuned", tuned)
        patch.setattr(Cell, "weights", property(lambda cell: cell.name))  # no two have the same network
        assert main(COMMAND) == 0
        assert made == ["auto at 70%, seed 0", "supernet, 1 pass at 70%, seed 0"]  # of the same widths
        shown = capsys.readouterr().err
        assert "auto at 70%, seed 0 did not choose among uniform, latency-greedy: it is made again" in shown
        (budget,) = report()["budgets"]
        assert budget["omitted"] == {"auto": "not now", "supernet, 1 pass": "not now"}
        assert [row["row"] for row in budget["rows"]] == ["original", OWN[1], *OWN[3:]]
    assert main(COMMAND) == 0
    assert report() == before


def test_a_cell_whose_training_was_finished_but_not_kept_is_not_trained_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("runs/arena", "runs/stopped")
    made, command = Path("runs/stopped/bench/arena"), [*COMMAND, "--run", "stopped"]
    cells = (made / "cells.jsonl").read_bytes().splitlines(keepends=True)
    last = next(number for number, line in enumerate(cells) if b'"uniform (from scratch) at' in line)
    (made / "cells.jsonl").write_bytes(b"".join(cells[:last]))

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(arena.Arena, "_finish", stopped)
        assert main(command) == 130
    checkpoint = made / "checkpoint-uniform-from-scratch-at-70-seed-0.safetensors"
    assert checkpoint.exists()
    checkpoint.rename(made / "checkpoint.safetensors")  # as earlier versions called that of any cell
    capsys.readouterr()
    assert main(command) == 0
    continuing = "fine-tuning: uniform (from scratch) at 70%, seed 0: continuing after epoch 1 of 1"
    assert continuing in capsys.readouterr().err
    assert not list(made.glob("checkpoint*"))
    kept = json.loads((made / "arena.json").read_text(encoding="utf-8"))["cells"]
    assert [cell["digest"] for cell in kept] == [cell["digest"] for cell in report()["cells"]]


def test_rows_with_the_same_widths_and_weights_share_one_network(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {own["row"]: own for own in report()["cells"]}["bcnet"]
    tuned, made = Networks.tuned, list[str]()

    def counted(networks: Networks, cell: Cell) -> dict[str, Any] | str:
        made.append(cell.name)
        return tuned(networks, cell)

    widths = {"widths": found["widths"], "predicted_ms": 1.0, "measured_ms": 1.0, "original_ms": 2.0}
    monkeypatch.setattr(Networks, "tuned", counted)
    monkeypatch.setattr(Starts, "found", lambda _, row, share: {**widths, "note": "", "found_by": row.method})
    rows = [word for row in ("adapruner", "latency-greedy", "uniform, l1") for word in ("--row", row)]
    command = ["bench", "arena", "--budgets", "70%", "--run", "shared", "--json", *rows]
    assert main(command) == 0
    assert made == ["adapruner at 70%, seed 0", "uniform, l1 at 70%, seed 0"]
    shown = capsys.readouterr()
    assert "latency-greedy at 70%, seed 0: the network of adapruner at 70%, seed 0" in shown.err
    cells = {own["row"]: own for own in json.loads(shown.out)["cells"]}
    first, second, third = cells["adapruner"], cells["latency-greedy"], cells["uniform, l1"]
    assert first["digest"] == second["digest"] != third["digest"]
    assert second["found_by"] == "latency-greedy"
    assert second["file"] == "networks/latency-greedy-at-70-seed-0.onnx"
    assert main([*command, "--row", "latency-milp"]) == 0  # later, too
    assert len(made) == 2


def test_after_a_failed_seed_later_seeds_of_the_row_are_left_out(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Networks.tuned

    def failing(networks: Networks, cell: Cell) -> dict[str, Any] | str:
        if cell.seed == 2:
            return tuned(networks, cell)
        return "diverged" if cell.seed == 1 else {"made": "by another process at the same time"}

    monkeypatch.setattr(Networks, "tuned", failing)
    monkeypatch.setattr(Networks, "_tuned", lambda *_: pytest.fail("trained for nothing"))
    row = ["--row", "uniform, l1", "--seeds", "1,2,0", "--run", "failing"]
    assert main(["bench", "arena", "--budgets", "70%", *row]) == 0
    text = Path("runs/failing/bench/arena/arena.json").read_text(encoding="utf-8")
    (budget,) = json.loads(text)["budgets"]
    assert budget["omitted"] == {"uniform, l1": "diverged"}
    assert [row["row"] for row in budget["rows"]] == ["original"]


def test_rows_that_cannot_be_made_are_reported_and_the_arena_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(job: Any) -> Any:
        package("no_such_package", "no-such-package")

    monkeypatch.setitem(arena_competitors(), "fastnas", absent)
    rows = ["--row", "fastnas", "--row", "supernet, 4 passes", "--row", "uniform", "--run", "other"]
    assert main(["bench", "arena", "--budgets", "2%", *rows, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["budgets"][0]
    assert [row["row"] for row in found["rows"]] == ["original"]
    assert found["omitted"]["fastnas"] == "not installed: pip install no-such-package"
    assert found["omitted"]["supernet, 4 passes"] == (
        "it needs 4 passes before fine-tuning, and every network gets 1 in all (slice.epochs)"
    )
    assert "the fastest takes" in found["omitted"]["uniform"]


def arena_competitors() -> dict[str, Callable[[Any], Any]]:
    from bcnet.bench import outside

    return outside.COMPETITORS


def test_torch_pruning_meets_the_budget_and_leaves_the_output_layer(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_pruning")
    row = ["--row", "torch-pruning-taylor", "--run", "other", "--json"]
    assert main(["bench", "arena", "--budgets", "70%", *row]) == 0
    original, cell = json.loads(capsys.readouterr().out)["cells"]
    assert cell["measured_ms"] <= 0.7 * cell["original_ms"] * 1.05
    assert cell["params"] < original["params"]
    assert cell["passes"] == 1
    assert all(width % 8 == 0 for width in cell["widths"])
    # It enters fine-tuning with statistics of its own, as all networks that inherit do.
    path = Path("runs/other/bench/arena/starts/70-torch-pruning-taylor.safetensors")
    state, _ = unseal_tensors(path)
    problem = open_problem(load_config(None))
    recipe = Recipe.of(problem.config, 1, 1.0)
    images = problem.config.search.recalibration_images
    again = Original(problem.model, problem.space, problem.data, recipe, images).recalibrated(state).state
    assert all(torch.allclose(state[name], again[name], rtol=1e-5, atol=1e-6) for name in state)


@pytest.mark.slow
def test_every_row_has_a_network_or_the_reason_why_there_is_none(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "slice.epochs=2", "--set", "train.epochs=2"]
    assert main(["bench", "arena", "--budgets", "70%", "--run", "every", "--json", *settings]) == 0
    found = json.loads(capsys.readouterr().out)
    (budget,), cells = found["budgets"], {cell["row"]: cell for cell in found["cells"]}
    names = [row.name for row in rows_of(())]
    assert [*cells, *budget["omitted"]].count("original") == 1
    assert {*cells, *budget["omitted"]} == {"original", *names}
    assert not cells.keys() & budget["omitted"].keys()
    for name in names:
        if name in cells:
            own = cells[name]
            assert own["passes"] == 2
            assert own["measured_ms"] <= 0.7 * own["original_ms"] * 1.05 or "slower" in own["note"]
            assert own["params"] < cells["original"]["params"]
            assert (FOLDER.parents[2] / "every/bench/arena" / own["file"]).is_file()
    for passes in (4, 8):
        assert f"it needs {passes} passes" in budget["omitted"].pop(f"supernet, {passes} passes")
    for name, reason in budget["omitted"].items():  # an outside library at most, for a reason of its own
        assert name in arena_competitors()
        assert reason.startswith(("not installed", "failed on this network", "its network differs"))


def test_an_unknown_row_budget_or_seed_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--row", "nobody"], "unknown row 'nobody'; known: auto; uniform;"),
        (["--budgets", "half"], "--budgets: a latency share is written as 60%"),
        (["--budgets", "120%"], "--budgets are below 100%"),
        (["--seeds", "0,x"], "--seeds takes whole numbers"),
    ):
        assert main(["bench", "arena", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_bounds_beside_the_latency_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = CONFIG.replace("[search]", "[search]\nmax_macs = 1000000\nmax_size_mb = 1.0")
    Path("bcnet.toml").write_text(text, encoding="utf-8")
    assert main(["bench", "arena"]) == 1
    shown = capsys.readouterr().err
    assert "support no other bounds: remove search.max_macs and search.max_size_mb" in shown


def test_a_network_without_trained_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bcnet.toml").write_text(CONFIG, encoding="utf-8")
    assert main(["bench", "arena"]) == 1
    assert "starts from a trained network: set model.weights" in capsys.readouterr().err


def test_a_row_is_also_run_without_distillation_where_that_is_asked_for() -> None:
    assert [row.name for row in rows_of(())] == list(ROWS)
    assert [row.name for row in rows_of(("auto" + PLAIN,))] == ["auto" + PLAIN]
    both = rows_of(("auto", "uniform"), plain=True)
    assert [(row.name, row.distilled) for row in both] == [
        ("auto", True),
        ("auto" + PLAIN, False),
        ("uniform", True),
        ("uniform" + PLAIN, False),
    ]
    with pytest.raises(UsageError, match="unknown row 'autos'"):
        rows_of(("autos",))


def test_a_package_that_is_missing_is_named_with_what_it_lacks() -> None:
    with pytest.raises(NotInstalled, match=r"^not installed: pip install its-name$"):
        package("no_such_package", "its-name")


def test_intervals_are_over_seeds_or_of_one_seed_over_images() -> None:
    # Student's t of two degrees of freedom: 4.3027 standard errors of the mean.
    low, high, over = interval([0.79, 0.80, 0.81], 100, True)
    assert (low, high, over) == (
        pytest.approx(0.775158, abs=1e-5),
        pytest.approx(0.824842, abs=1e-5),
        "seeds",
    )
    assert interval([0.9, 1.0], 100, True)[1] == 1.0  # no share is larger
    low, high, over = interval([0.5], 100, True)  # Wilson's
    assert (low, high, over) == (
        pytest.approx(0.403832, abs=1e-5),
        pytest.approx(0.596168, abs=1e-5),
        "images",
    )
    assert interval([0.5], 100, False) == (None, None, None)


def test_rows_are_compared_image_by_image() -> None:
    same, other = np.array([1.0, 0, 1, 1]), np.array([1.0, 0, 1, 1])
    assert paired(same, other) == 1.0
    # 12 images, three of which one network has right and the other wrong: t = 0.25 / (0.4523 / sqrt(12)).
    first = np.ones(12)
    second = np.array([0.0] * 3 + [1.0] * 9)
    assert paired(first, second) == pytest.approx(0.08188, abs=1e-4)
    assert paired(None, second) is None


def cell(row: str, accuracy: float, correct: str, ms: float, **more: Any) -> dict[str, Any]:
    own = {"row": row, "accuracy": accuracy, "correct": correct, "shape": row, "measured_ms": ms}
    return {**own, "original_ms": 2.0, "file": "", **more}


def test_the_best_row_is_one_that_keeps_the_budget() -> None:
    cells = [
        cell("original", 1.0, "ff", 2.0),
        cell("a", 0.5, "f0", 1.0, seed=0),
        cell("b", 0.875, "fe", 1.3, seed=0),
        cell("c", 0.75, "fc", 0.9, seed=0),
    ]
    about = {
        "metric": "accuracy",
        "test_images": 8,
        "model": "m",
        "data": "d",
        "device": "x",
        "passes": 1,
        "seeds": [0],
    }
    found = report_of(about, ["a", "b", "c"], {0.5: cells}, {0.5: {}}, {("d", 0.5): "not installed"})
    rows = {row["row"]: row for row in found["budgets"][0]["rows"]}
    assert rows["b"]["over_budget"]
    assert rows["c"]["best"]
    assert rows["a"]["to_best"] == 0.25
    assert rows["a"]["speed_up"] == 2.0
    assert rows["a"]["lost"] == 0.5
    text = as_text(found)
    assert "0.650!" in text
    assert "d: not installed" in text


def test_latencies_of_the_end_are_relative_to_the_original_in_the_same_round() -> None:
    cells = [cell("original", 1.0, "ff", 2.0), cell("a", 0.5, "f0", 1.0, seed=0)]
    about = {"metric": "accuracy", "test_images": 8}
    # The machine is twice as slow in the last two rounds: both networks are.
    rounds = {"original": [2.0, 4.0, 4.0], "a": [1.0, 2.0, 2.1]}
    row = report_of(about, ["a"], {0.5: cells}, {0.5: rounds}, {})["budgets"][0]["rows"][1]
    assert row["share"] == 0.5
    assert row["latency_ms"] == 1.0
    assert row["measured_at_the_end"]
