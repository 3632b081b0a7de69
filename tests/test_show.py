"""Results as people read them: at most ten lines and 80 columns, the main figures, the next command."""

from typing import Any

import pytest

from bcnet.plain import loss_text
from bcnet.show import show_comparison, show_summary, show_table
from bcnet.show.tables import columns, short_count

LATENCY = {"median_ms": 0.393, "p90_ms": 0.41, "spread": 0.01, "samples": 100}
SEARCH = {
    "stage": "search",
    "folder": "runs/night/search",
    "metric": "accuracy",
    "budget_ms": 0.41,
    "min_accuracy": None,
    "best": {"widths": [80] * 40, "predicted_ms": 0.405, "accuracy": 0.9861, "measured": LATENCY},
    "params": 1_429_466,
    "macs": 44_260_480,
    "candidates": 80,
    "pareto": 11,
    "note": "",
}
EXPORT: dict[str, Any] = {
    "stage": "export",
    "folder": "runs/default/export",
    "file": "runs/default/export/model.onnx",
    "device": "cpu",
    "backend": "onnxruntime 1.23.0",
    "precision": "fp32",
    "metric": "accuracy",
    "accuracy": 0.9875,
    "accuracy_torch": 0.9875,
    "predicted_ms": 0.405,
    "measured": LATENCY,
    "budget_ms": 0.41,
    "noise": 0.021,
    "original": {"accuracy": 0.9972, "accuracy_lost": 0.0097, "median_ms": 0.672, "speedup": 1.71},
    "verified": True,
    "output_error": 4.04e-7,
    "size_bytes": 5_719_418,
    "verify_with": None,
}


def entry(name: str, ms: float, passes: int | None = 18) -> dict[str, Any]:
    return {
        "name": name,
        "accuracy": 0.9972,
        "accuracy_low": 0.984,
        "accuracy_high": 1.0,
        "latency": {**LATENCY, "median_ms": ms},
        "rounds_ms": [ms] * 9,
        "noise": 0.034,
        "params": 1_914_490,
        "macs": 75_553_920,
        "passes": passes,
    }


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_search_is_told_in_at_most_ten_lines_with_the_next_command_for_its_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_summary(SEARCH)
    lines = shown(capsys)
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80
    assert "latency    0.393 ms measured, 0.405 ms predicted; budget 0.410 ms" in lines
    assert "accuracy   98.61% in the supernet, before fine-tuning" in lines
    assert lines[-1] == "next       bcnet slice --run night"


def test_an_export_says_what_was_lost_and_gained_against_the_original(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_summary(EXPORT)
    lines = shown(capsys)
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80
    assert lines[0] == "verified   cpu, onnxruntime 1.23.0, fp32"
    assert "original   99.72% as it was given: 0.97 points lost" in lines
    assert "speed      1.71 times that of the full network (0.672 ms)" in lines
    show_summary({**EXPORT, "original": {**EXPORT["original"], "state": "head trained"}})
    assert "original   99.72% after its head was trained: 0.97 points lost" in shown(capsys)
    show_summary({**EXPORT, "verified": False, "measured": None, "verify_with": "measure it"})
    lines = shown(capsys)
    assert lines[0].startswith("unverified cpu")
    assert lines[-1] == "next       measure it"


def test_the_comparison_marks_what_is_not_separable_in_eighty_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scratch = "found (from scratch)"
    show_comparison(
        {
            "metric": "accuracy",
            "networks": [
                entry("original", 0.672, None),
                entry("uniform (from scratch)", 0.377),
                {**entry("found (inherited)", 0.3912), "accuracy": 0.987},
                entry(scratch, 12.5),
            ],
            "not_separable": [["uniform (from scratch)", "found (inherited)"]],
            "notes": ["the machine is noisy"],
            "passes": 18,
            "test_images": 359,
            "device": "cpu",
            "budget_ms": 0.41,
            "predicted_ms": 0.405,
            "file": "runs/default/export/model.onnx",
        }
    )
    lines = shown(capsys)
    assert max(map(len, lines)) <= 80
    heading = ["network", "accuracy", "(95", "%)", "ms", "lost", "speed", "noise", "params"]
    assert lines[0].split() == heading
    cells = {line[:24].strip(): line[24:].split() for line in lines[2:6]}
    assert cells["original"] == ["99.72", "(98.4-100.0)", "0.672", "1.00x", "3%", "1.91M"]
    assert cells["found (inherited)"][3:] == ["1.02", "1.72x", "3%", "1.91M"]
    assert cells["uniform (from scratch)"][2] == "~0.377"
    assert cells["found (inherited)"][2] == "~0.391"
    assert cells[scratch][2] == "12.500"
    assert "~ latency not separable in 9 rounds: uniform (from scratch) / found (inherited)" in lines
    assert "trained for 18 passes over the training images each (original: as it was given)" in lines
    assert "note: the machine is noisy" in lines


@pytest.mark.parametrize(
    ("loss", "text"),
    [(0.85714, "0.8571"), (0.5, "0.5000"), (2.30258, "2.303"), (0.00012344, "0.0001234"), (1234.5, "1234")],
)
def test_losses_have_four_significant_digits_so_that_they_can_be_compared(loss: float, text: str) -> None:
    assert loss_text(loss) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1_914_490, "1.91M"), (999_600, "1.00M"), (75_553_920, "75.6M"), (1e9, "1.00G")],
)
def test_counts_have_three_digits(count: float, text: str) -> None:
    assert short_count(count) == text


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    assert columns(["a", "ms"], [["long name", "1"], ["b", "12.5"]]) == [
        "a            ms",
        "---------------",
        "long name     1",
        "b          12.5",
    ]


def test_what_a_device_says_of_itself_cannot_write_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_summary({**EXPORT, "backend": "onnx\x1b[2Jruntime\n::error::"})
    show_table(["layer"], [["conv\x1b]0;title\x07"]])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "onnx\\x1b[2Jruntime\\n::error::" in out
    assert "conv\\x1b]0;title\\x07" in out
