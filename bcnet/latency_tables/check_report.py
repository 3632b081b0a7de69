"""What a check of a latency table found, as JSON, as JUnit XML and as annotations of GitHub Actions.

In: a verdict and findings that need no statistics. Out: text for machines; `show.py` has that for people.
"""

from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree

from bcnet.latency_tables.gate import Change, Verdict
from bcnet.plain import LONGEST, plain

WORST = 10  # single layers that are listed; all are counted


@dataclass(frozen=True)
class CheckReport:
    """A verdict on `table`, and what it rests on.

    `against` names what it was compared with: another table, or this machine now. `findings` are certain,
    such as rows that are missing: any of them fails the check. `notes` are no fault. `unchecked` counts rows
    that could not be compared: those of other networks or settings. `recorded` is the file whose answers were
    replayed in the place of measurements: such a check never passes.
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
        """0 ok, 3 slower or a finding, 4 machine differs, inconclusive, or not measured now."""
        return 3 if self.findings else self.verdict.exit_code or (4 if self.recorded else 0)

    @property
    def status(self) -> str:
        """That of the verdict, or "incomplete" with a finding."""
        return "incomplete" if self.findings else self.verdict.status

    @property
    def headline(self) -> str:
        """The findings and the verdict in one line."""
        verdict, everything = self.verdict, self.verdict.everything
        findings = f"incomplete: {'; '.join(self.findings)}; times: " if self.findings else ""
        if self.recorded:
            findings = f"replayed from {self.recorded}, not measured now: {findings}"
        return (
            f"{findings}{verdict.status}: {verdict.reason} (all {self.rows} rows {everything.change:+.1%}, "
            f"95 % interval {everything.low:+.1%} to {everything.high:+.1%})"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it; changes are parts of one: 0.12 is 12 % slower."""
        said = {"status": self.status, "exit_code": self.exit_code, "headline": self.headline}
        return {"stage": "check-lut", **said, **asdict(self)}


def junit(report: CheckReport) -> bytes:
    """JUnit XML: one test for the findings, for all rows, for the machine, and for each kind of layer.

    Slower is a failure; where nothing can be said (the machine differs, inconclusive) tests are skipped.
    """
    verdict = report.verdict
    suite = ElementTree.Element("testsuite", name="bcnet check-lut", errors="0")

    def case(name: str, failure: str = "", skipped: str = "", kind: str = "slower") -> None:
        # XML has no control characters; names of layers and messages of a runtime may contain some.
        name, failure, skipped = plain(name), plain(failure, LONGEST), plain(skipped, LONGEST)
        of = plain(f"latency_tables.{report.device}")
        test = ElementTree.SubElement(suite, "testcase", classname=of, name=name)
        if failure:
            ElementTree.SubElement(test, "failure", message=failure, type=kind).text = failure
        elif skipped:
            ElementTree.SubElement(test, "skipped", message=skipped)

    case("every row is there", failure="; ".join(report.findings), kind="incomplete")
    unsure = report.headline if report.exit_code == 4 else ""
    slower = {change.name: change for change in verdict.slower} if verdict.status == "slower" else {}
    case("all rows together", failure=report.headline if verdict.status == "slower" else "", skipped=unsure)
    kinds = {kind.name: kind for kind in verdict.kinds}
    for name in kinds:
        case(name, failure=sentence(slower[name]) if name in slower else "", skipped=unsure)
    for name, change in slower.items():
        if name not in kinds:
            case(name, failure=sentence(change))
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    suite.set("time", f"{report.seconds:.1f}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def annotations(report: CheckReport) -> list[str]:
    """Lines that GitHub Actions shows at the table's file: errors, warnings, or one notice."""
    verdict = report.verdict

    def line(level: str, text: str) -> str:
        # A line break would begin a new command; GitHub decodes `%0A` to one.
        file = plain(report.table).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
        return f"::{level} file={file},title=bcnet check-lut::{plain(text, LONGEST).replace('%', '%25')}"

    code = 4 if report.recorded and not verdict.exit_code else verdict.exit_code
    level = {0: "notice", 3: "error", 4: "warning"}[code]
    lines = [line("error", finding) for finding in report.findings]
    lines.append(line(level, report.headline))
    if verdict.status == "slower":
        lines += [line("error", sentence(change)) for change in verdict.slower[:WORST]]
    return lines


def sentence(change: Change) -> str:
    """A change in words."""
    word = "slower" if change.change > 0 else "faster"
    return (
        f"{change.name}: {abs(change.change):.1%} {word} ({change.low:+.1%} to {change.high:+.1%}; "
        f"{change.then_ms:.4g} ms then, {change.now_ms:.4g} ms now, {change.rows} row(s))"
    )
