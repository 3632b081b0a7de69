"""A device over real ssh with a misbehaving agent: one line that names it, within a time limit, no hang."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sshd import SSHD, Sshd

from bcnet.cli import main
from bcnet.errors import DeviceError, NetworkError
from bcnet.runtimes import ssh_line
from bcnet.runtimes.onnxruntime import OnnxRuntime
from bcnet.runtimes.ssh import SshDevice
from bcnet.runtimes.ssh_line import HostLost

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: openssh-server)")

MODEL = bytes(200_000)  # it travels as a file; nobody reads it

# The interpreter of the device: it is started with the agent's file and folder, and speaks for the agent.
FAKE = f"""#!{sys.executable} -ES
import base64, hashlib, json, sys, time
out, folder = sys.stdout.buffer, sys.argv[2]
def raw(content):
    out.write(content)
    out.flush()
def say(**message):
    raw(json.dumps(message).encode() + b"\\n")
def answer(number, **values):
    say(id=number, answer=values)
def hello(number):
    answer(number, python="3.11", machine="x86_64", folder=folder, power_mode=None)
def usual(request):
    if request["do"] == "hello":
        hello(request["id"])
    elif request["do"] in ("have", "put"):
        answer(request["id"], have=-1)
def act(request):
    number = request["id"]
BEHAVIOUR
for line in sys.stdin:
    act(json.loads(line))
"""

ON_HELLO = {
    "a banner before the protocol": (
        'raw(b"Welcome to Ubuntu!\\n"); hello(number)',
        r"^device sent b'Welcome to Ubuntu!', which is not an answer of bcnet's agent; its shell must print",
    ),
    "output without an end and without a line": (
        'while True: raw(b"x" * 65536)',
        r"^device sent a line of more than 33554432 bytes \(b'x+'\.\.\.\), which is not an answer",
    ),
    "lines without an end": (
        "while True: raw(b'{\"id\": 9}\\n')",
        "^device answered request 9 instead of 1",
    ),
    "no object": ('raw(b"3\\n")', "^device sent b'3', which is not an answer of bcnet's agent"),
    "no UTF-8": (r'raw(b"\xff\xfe\x80\n")', "which is not an answer of bcnet's agent"),
    "deep JSON": (
        'raw(b"[" * 200_000 + b"\\n")',
        r"^device sent b'\[+'\.\.\. \(200000 long\), which is not an answer",
    ),
    "a whole number of 5000 digits": ('raw(b"1" * 5000 + b"\\n")', "which is not an answer of bcnet's agent"),
    "no facts": ("answer(number)", "^device: its answer to 'hello' is not valid: python is None, expected a"),
    "a name of a machine without an end": (
        'answer(number, python="3", machine="x" * 10_000, folder="", power_mode=None)',
        r"machine is 'x+'\.\.\. \(10000 long\), expected a string of at most 4096 characters",
    ),
}

ON_JOB = {
    "an answer to another request": (
        "answer(number - 1, ms=[1.0])",
        r"^device answered request (\d) instead of (?!\1)\d",
    ),
    "an id that is a text": ("say(id=str(number), answer={})", "^device answered request '3' instead of 3"),
    "NaN": (
        'raw(b\'{"id": %d, "answer": {"ms": [1.0, NaN]}}\\n\' % number)',
        r"^device: its answer to 'time' is not valid: ms\[1\] is nan, expected a time from 0",
    ),
    "1e400": (
        'raw(b\'{"id": %d, "answer": {"ms": [1.0, 1e400]}}\\n\' % number)',
        r"^device: its answer to 'time' is not valid: ms\[1\] is inf, expected a time from 0",
    ),
    "a time below zero": ("answer(number, ms=[-1e-9])", r"ms\[0\] is -1e-09, expected a time from 0"),
    "texts for times": ('answer(number, ms=["1.0"])', r"ms\[0\] is '1.0', expected a time in ms"),
    "no times": ("answer(number)", "^device: its answer to 'time' is not valid: ms is None, expected a list"),
    "no answer at all": ("say(id=number)", "^device: its answer to a job is None, expected an object"),
    "an error of control characters": (
        'say(id=number, error=dict(kind="device", message="\\x1b[2Jbad\\n::error::x" + "y" * 9999))',
        r"^device: \\x1b\[2Jbad\\n::error::xy+\.\.\. \(\d+ characters\)$",
    ),
    "an error without a kind": (
        'say(id=number, error="no")',
        "^device sent an error without a kind and a message: 'no'",
    ),
    "a file of 10^18 bytes": (
        'answer(number, ms={"$file": "0" * 64, "size": 10**18})',
        "^device has a file of 1000000000000000000 bytes, expected 0 to 4294967296",
    ),
    "a file by a path": (
        'answer(number, ms={"$file": "../../etc/passwd", "size": 1})',
        "^device names a file '../../etc/passwd', expected a SHA-256",
    ),
    "no base64": ('answer(number, ms={"$base64": 3})', "^device: an answer cannot be unpacked: "),
    "half a line, then the end": (
        "raw(b'{\"id\": '); sys.exit()",
        r"^device: the agent died 3 times in one job \(it ended with code 0\)",
    ),
    "waiting without a pause": (
        'while True: say(id=number, waiting="\\x1b[2J")',
        r"^device sent \d+ waiting messages within a short time",
    ),
}

ON_FILES = {
    "a file that never gets there": ("answer(number, have=0)", "^device has 0 of 200000 bytes of a file"),
    "more of a file than there is": (
        "answer(number, have=10**18)",
        "^device: its answer to 'have' is not valid: have is 1000000000000000000, expected a whole number",
    ),
}

ON_GET = {
    "a file that never comes": ('answer(number, data="")', "^device sent 0 bytes of a file, expected 9"),
    "another file's content": (
        'answer(number, data=base64.b64encode(b"x" * 9).decode())',
        "^device sent a file of 9 bytes whose content does not match its name",
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    found = Sshd(tmp_path_factory.mktemp("hostile") / "sshd").start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", found.path)
        yield found
    found.stop()


Fake = Callable[[str], Path]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """An interpreter whose agent runs this code for each request instead of the usual answer."""

    def made(code: str) -> Path:
        path = tmp_path / "python"
        indented = "".join(f"    {line}\n" for line in code.splitlines())
        path.write_text(FAKE.replace("BEHAVIOUR\n", indented), encoding="utf-8")
        path.chmod(0o755)
        return path

    return made


def hostile(path: Path, step_s: float = 30.0) -> SshDevice:
    return SshDevice(
        "device", python=str(path), folder=str(path.parent / "there"), patience_s=0, step_s=step_s
    )


def on(what: str, code: str) -> str:
    """Code that runs `code` for requests of this kind, and answers others as usual."""
    return f"if request['do'] == '{what}':\n    {code}\nelse:\n    usual(request)"


def refusal(device: SshDevice, kind: type[DeviceError] = DeviceError) -> str:
    start = time.monotonic()
    try:
        with pytest.raises(kind) as caught:
            OnnxRuntime(device).time_network(MODEL, 0, 0.01, 2)
    finally:
        device.close()
    assert time.monotonic() - start < 60
    assert (kind is DeviceError) == (not isinstance(caught.value, NetworkError))
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_an_agent_that_behaves_is_heard_whatever_it_says_beside(server: Sshd, fake: Fake) -> None:
    flood = 'for _ in range(300): sys.stderr.write("x" * 65536)\n    answer(number, ms=[1.0, 2.0])'
    device = hostile(fake(on("job", flood)))
    try:
        assert OnnxRuntime(device).time_network(MODEL, 0, 0.01, 2).tolist() == [1.0, 2.0]
    finally:
        device.close()


@pytest.mark.parametrize("name", ON_HELLO)
def test_nonsense_when_it_is_greeted(server: Sshd, fake: Fake, name: str) -> None:
    code, message = ON_HELLO[name]
    assert_matches(message, refusal(hostile(fake(on("hello", code)))))


# Of the values that no answer has, one goes the whole way; `test_answers.py` has them all.
VALUES = ("1e400", "a time below zero", "texts for times", "no times", "no answer at all")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in VALUES else ()) for name in ON_JOB]
)
def test_nonsense_as_an_answer_to_a_job(server: Sshd, fake: Fake, name: str) -> None:
    code, message = ON_JOB[name]
    kind = NetworkError if "the end" in name else DeviceError
    assert_matches(message, refusal(hostile(fake(on("job", code))), kind))


@pytest.mark.parametrize("name", ON_FILES)
def test_files_that_are_sent_for_ever(server: Sshd, fake: Fake, name: str) -> None:
    code, message = ON_FILES[name]
    both = f"if request['do'] in ('have', 'put'):\n    {code}\nelse:\n    usual(request)"
    assert_matches(message, refusal(hostile(fake(both))))


@pytest.mark.parametrize("name", ON_GET)
def test_files_that_are_fetched_for_ever(server: Sshd, fake: Fake, name: str) -> None:
    code, message = ON_GET[name]
    job = 'answer(number, ms={"$file": "0" * 64, "size": 9})'
    both = f"if request['do'] == 'get':\n    {code}\nel{on('job', job)}"
    assert_matches(message, refusal(hostile(fake(both))))


def test_silence_when_it_is_greeted(server: Sshd, fake: Fake) -> None:
    text = refusal(hostile(fake(on("hello", "time.sleep(99)")), step_s=2.0))
    assert text == "device cannot be reached: no answer after 2 s"


def test_silence_while_a_job_is_done(server: Sshd, fake: Fake) -> None:
    device = hostile(fake(on("job", 'sys.stderr.write("x" * 999); time.sleep(99)')))
    try:
        with pytest.raises(DeviceError, match=r"^device: no answer after 1 s; the job was stopped$"):
            device.call({"do": "probe"}, 1.0)
    finally:
        device.close()


def test_an_agent_that_reads_nothing_is_given_up(
    server: Sshd, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_line, "SLOWEST", 1e8)
    device = hostile(fake(on("hello", "hello(number); time.sleep(99)")), step_s=3.0)
    try:
        device.hello()
        with pytest.raises(
            DeviceError, match=r"^device: it did not accept a request within 0\.5 s; the job was stopped"
        ):
            device.call({"do": "probe", "list": ["x" * 1000] * 9000}, 0.5)  # more than pipe and window hold
    finally:
        device.close()


@pytest.mark.slow
def test_a_shell_that_prints_without_an_end_is_given_up(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Sshd(tmp_path / "sshd")
    server.extra = ["ForceCommand yes hostile"]
    server.start()
    monkeypatch.setenv("PATH", server.path)
    try:
        text = refusal(hostile(fake("usual(request)"), step_s=3.0))
    finally:
        server.stop()
    assert text == "device cannot be reached: no answer after 3 s"


def test_a_host_that_is_closed_early_is_one_line(server: Sshd, fake: Fake) -> None:
    device = hostile(fake('sys.stderr.write("\\x1b[31mout of paper\\n"); sys.exit(3)'))
    with pytest.raises(HostLost) as caught:
        device.hello()
    assert str(caught.value) == r"device cannot be reached: \x1b[31mout of paper"
    device.close()


@pytest.mark.parametrize("times", ["[[1.0, 1e400]]", "[[-1.0, -1.0]]", "[[1.0]]"])
def test_nothing_of_a_hostile_profile_reaches_a_table(
    there: Path, fake: Fake, times: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"""
what = request.get("job", request)["do"]
if request["do"] != "job":
    usual(request)
elif what == "probe":
    answer(number, probe=dict(matmul_ms=0.1))
elif what == "fingerprint":
    answer(number, fingerprint=dict(processor="x"))
else:
    raw(b'{{"id": %d, "answer": {{"names": ["a", "b"], "walls_ms": [9.0], "ms": {times}}}}}\\n' % number)
"""
    path = Path("hw_profiles/far.toml")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(sys.executable, str(fake(code))), encoding="utf-8")
    tables = {file: file.read_bytes() for file in Path("latency_tables").iterdir()}
    assert main(["build-lut", "--device", "far"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bcnet: ")]
    assert_matches("^bcnet: device: its answer to 'profile' is not valid: ", line)
    left = {file: file.read_bytes() for file in Path("latency_tables").iterdir() if file.suffix == ".json"}
    assert left == {file: content for file, content in tables.items() if file.suffix == ".json"}


def assert_matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text
