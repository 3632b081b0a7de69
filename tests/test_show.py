"""Results as people read them: at most ten lines and 80 columns, the main figures, the next command."""

import pytest
from result_examples import EXPORT, SEARCH, compared, comparison

from bcnet.pipeline.results import AccuracyDifference, EstimateSummary
from bcnet.plain import counted, loss_text
from bcnet.show import show_summary, show_table
from bcnet.show.tables import columns, short_count
from bcnet.width_search.latency_budget import LatencyBudget


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_search_is_told_in_at_most_ten_lines_with_the_next_command_for_its_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_summary(SEARCH, "bcnet slice --run night")
    lines = shown(capsys)
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80
    assert "latency    0.393 ms measured, 0.405 ms predicted; budget 0.410 ms" in lines
    assert "accuracy   98.61% in the supernet, before fine-tuning" in lines
    assert lines[-1] == "next       bcnet slice --run night"


def test_a_budget_of_the_90th_percentile_stands_beside_that_percentile(
    capsys: pytest.CaptureFixture[str],
) -> None:
    p90 = {"budget": LatencyBudget(ms=0.41, p90=True)}
    show_summary(SEARCH.model_copy(update=p90))
    lines = shown(capsys)
    assert max(map(len, lines)) <= 80
    assert "latency    p90 0.410 ms measured, 0.405 ms predicted; p90 budget 0.410 ms" in lines
    show_summary(EXPORT.model_copy(update=p90))
    (line,) = (line for line in shown(capsys) if line.startswith("latency"))
    assert line.startswith("latency    p90 ")
    assert "p90 budget" in line


def test_an_estimate_shows_latencies_as_latencies(capsys: pytest.CaptureFixture[str]) -> None:
    show_summary(
        EstimateSummary(
            folder="runs/nano/build-lut",
            table="latency_tables/nano.json",
            device="nano",
            target={"device": "nano"},
            rows_used=12,
            full_ms=4.0,
            narrowest_ms=0.5,
            peaks=None,
            shares={},
            fitted_on="cpu",
            off_there=None,
        ),
        "bcnet search --latency 60%",
    )
    assert shown(capsys) == [
        "estimated  12 layers from the roofline of nano: nothing was measured",
        "latency    full network about 4.000 ms, narrowest about 0.500 ms",
        "file       latency_tables/nano.json",
        "next       bcnet search --latency 60%",
    ]


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
    trained = EXPORT.original.model_copy(update={"state": "head trained"})
    show_summary(EXPORT.model_copy(update={"original": trained}))
    assert "original   99.72% after its head was trained: 0.97 points lost" in shown(capsys)
    unverified = {"verified": False, "measured": None, "verify_with": "measure it"}
    show_summary(EXPORT.model_copy(update=unverified))
    lines = shown(capsys)
    assert lines[0].startswith("unverified cpu")
    assert lines[-1] == "next       measure it"


def test_the_comparison_marks_what_is_not_separable_in_eighty_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scratch = "found (from scratch)"
    show_summary(
        comparison(
            compared("original", 0.672, None),
            compared("uniform (from scratch)", 0.377),
            compared("found (inherited)", 0.3912, accuracy=0.987),
            compared(scratch, 12.5),
            not_separable=(("uniform (from scratch)", "found (inherited)"),),
            notes=("the machine is noisy",),
        )
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
    ("difference", "low", "high", "sentence"),
    [
        (
            *(0.0134, 0.0062, 0.0206),
            "found (inherited) is more accurate than uniform (inherited): "
            "by 1.34 points on the same test images (95 %: 0.62 to 2.06)",
        ),
        (
            *(-0.0134, -0.0206, -0.0062),
            "found (inherited) is less accurate than uniform (inherited): "
            "by 1.34 points on the same test images (95 %: 0.62 to 2.06)",
        ),
        (
            *(0.001, -0.004, 0.006),
            "accuracy does not separate found (inherited) from uniform (inherited): "
            "+0.10 points on the same test images (95 %: -0.40 to +0.60)",
        ),
    ],
)
def test_a_sentence_says_whether_accuracies_are_separated(
    difference: float, low: float, high: float, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, uniform = "found (inherited)", "uniform (inherited)"
    own = AccuracyDifference(found=found, uniform=uniform, difference=difference, low=low, high=high)
    show_summary(comparison(compared(uniform, 0.377), compared(found, 0.391), difference=own))
    lines = shown(capsys)
    assert max(map(len, lines)) <= 80
    assert sentence in " ".join(map(str.strip, lines))


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


@pytest.mark.parametrize(
    ("count", "nouns", "text"),
    [
        (0, ("network",), "0 networks"),
        (1, ("network",), "1 network"),
        (1, ("pass", "passes"), "1 pass"),
        (2, ("pass", "passes"), "2 passes"),
        (12345, ("image",), "12,345 images"),
    ],
)
def test_nouns_agree_with_their_counts(count: int, nouns: tuple[str, ...], text: str) -> None:
    assert counted(count, *nouns) == text


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
    show_summary(EXPORT.model_copy(update={"backend": "onnx\x1b[2Jruntime\n::error::"}))
    show_table(["layer"], [["conv\x1b]0;title\x07"]])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "onnx\\x1b[2Jruntime\\n::error::" in out
    assert "conv\\x1b]0;title\\x07" in out
