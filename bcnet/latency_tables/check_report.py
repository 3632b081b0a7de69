"""The result of a regression check of a latency table, as JSON, JUnit XML and GitHub Actions annotations.

In: a verdict and findings that need no statistics. Out: machine-readable text; `bcnet.show` prints for
people.
"""

from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree

from bcnet.latency_tables.regression_check import Verdict
from bcnet.latency_tables.row_changes import Change
from bcnet.plain import LONGEST, counted, milliseconds, plain

WORST = 10  # maximum number of single layers that are listed; all are counted


@dataclass(frozen=True)
class CheckReport:
    """A verdict on `table` with the data behind it.

    `against` names what the table was compared with: another table, or this machine now. `findings` do not
    depend on statistics, e.g. missing rows: any of them fails the check. `notes` are informational.
    `unchecked` counts the rows that could not be compared: those of other networks or settings. `recorded` is
    the file of recorded answers that was replayed instead of measuring: such a check never passes.
    """

    table: str
    against: str
    device: str
    verdict: Verdict
    rows: int
    unchecked: int
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    networks: int = 0
    rounds: int = 0
    seconds: float = 0.0
    recorded: str | None = None

    @property
    def exit_code(self) -> int:
        """0: ok; 3: slower, or a finding; 4: the machine differs, inconclusive, or replayed."""
        return 3 if self.findings else self.verdict.exit_code or (4 if self.recorded else 0)

    @property
    def status(self) -> str:
        """The verdict's status, or "incomplete" if there is a finding."""
        return "incomplete" if self.findings else self.verdict.status

    @property
    def headline(self) -> str:
        """The findings and the verdict in one line."""
        verdict, everything, total = self.verdict, self.verdict.everything, self.verdict.total
        findings = f"incomplete: {'; '.join(self.findings)}; times: " if self.findings else ""
        if self.recorded:
            findings = f"replayed from {self.recorded}, not measured now: {findings}"
        return (
            f"{findings}{verdict.status}: {verdict.reason} (all {self.rows} rows {everything.change:+.1%}, "
            f"95 % interval {everything.low:+.1%} to {everything.high:+.1%}; total time {total.change:+.1%})"
        )

    def to_json(self) -> dict[str, Any]:
        """All fields and the result; changes are fractions: 0.12 is 12 % slower."""
        result = {"status": self.status, "exit_code": self.exit_code, "headline": self.headline}
        return {"stage": "check-lut", **result, **asdict(self)}


def junit(report: CheckReport) -> bytes:
    """JUnit XML: one test case for the findings, one for all rows, and one for each kind of layer.

    A slowdown is a failure; test cases are skipped if the machine differs or the check is inconclusive.
    """
    verdict = report.verdict
    suite = ElementTree.Element("testsuite", name="bcnet check-lut", errors="0")

    def case(name: str, failure: str = "", skipped: str = "", kind: str = "slower") -> None:
        # XML allows no control characters; names of layers and messages of a runtime may contain some.
        name, failure, skipped = plain(name), plain(failure, LONGEST), plain(skipped, LONGEST)
        classname = plain(f"latency_tables.{report.device}")
        test = ElementTree.SubElement(suite, "testcase", classname=classname, name=name)
        if failure:
            ElementTree.SubElement(test, "failure", message=failure, type=kind).text = failure
        elif skipped:
            ElementTree.SubElement(test, "skipped", message=skipped)

    case("every row is there", failure="; ".join(report.findings), kind="incomplete")
    unsure = report.headline if report.exit_code == 4 else ""
    slower = {change.name: change for change in _slower(verdict)}
    case("all rows together", failure=report.headline if verdict.status == "slower" else "", skipped=unsure)
    kinds = {kind.name: kind for kind in verdict.kinds}
    for name in kinds:
        case(name, failure=sentence(slower[name]) if name in slower else "", skipped=unsure)
    for name, change in slower.items():
        if name not in kinds:
            case(name, failure=sentence(change))
    if report.notes:
        ElementTree.SubElement(suite, "system-out").text = plain("; ".join(report.notes), LONGEST)
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    suite.set("time", f"{report.seconds:.1f}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def junit_error(message: str) -> bytes:
    """JUnit XML of a check that could not be made: one test case with that error."""
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root, "testsuite", name="bcnet check-lut", tests="1", errors="1", failures="0", skipped="0"
    )
    test = ElementTree.SubElement(suite, "testcase", classname="latency_tables", name="the check is made")
    ElementTree.SubElement(test, "error", message=plain(message, LONGEST), type="error")
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def annotation(level: str, text: str) -> str:
    """A line that GitHub Actions shows as an annotation of the job."""
    return f"::{level} title=bcnet check-lut::{plain(text, LONGEST).replace('%', '%25')}"


def annotations(report: CheckReport) -> list[str]:
    """Lines that GitHub Actions shows as annotations of the table's file: errors, warnings, or one notice."""
    verdict = report.verdict

    def line(level: str, text: str) -> str:
        # A line break would begin a new command; GitHub decodes `%0A` to one.
        file = plain(report.table).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
        return f"::{level} file={file},title=bcnet check-lut::{plain(text, LONGEST).replace('%', '%25')}"

    code = 4 if report.recorded and not verdict.exit_code else verdict.exit_code
    level = {0: "notice", 3: "error", 4: "warning"}[code]
    lines = [line("error", finding) for finding in report.findings]
    lines.append(line(level, report.headline))
    lines += [line("error", sentence(change)) for change in _slower(verdict)[:WORST]]
    return lines


def _slower(verdict: Verdict) -> tuple[Change, ...]:
    """What is slower besides all rows together, if the verdict is that: a part of the rows, kinds, layers."""
    if verdict.status != "slower":
        return ()
    return (*((verdict.part,) if verdict.part else ()), *verdict.slower)


def sentence(change: Change) -> str:
    """A change as one sentence."""
    word = "slower" if change.change > 0 else "faster"
    return (
        f"{change.name}: {abs(change.change):.1%} {word} ({change.low:+.1%} to {change.high:+.1%}; "
        f"{milliseconds(change.then_ms)} ms then, {milliseconds(change.now_ms)} ms now, "
        f"{counted(change.rows, 'row')})"
    )
