"""Which layers are binary: rows of both forms from the device, and the network of the least loss by them."""

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import CONFIG, PROFILE, measure_briefly
from onnx import numpy_helper
from test_json_docs import NAMED, keys

from bcnet.allocation.loss_tables import total
from bcnet.cli import main
from bcnet.config import load_config
from bcnet.errors import SpaceError
from bcnet.latency_tables.mixed_slots import BITS, Bits, covering_bits, mixed_slots
from bcnet.latency_tables.model import LayerSlot
from bcnet.latency_tables.rows import BINARY
from bcnet.latency_tables.table import LatencyTable
from bcnet.models.reactnet import reactnet_small
from bcnet.pipeline.layer_forms import assigned, layers_read
from bcnet.pipeline.layer_precisions import choice_losses, with_bits
from bcnet.pipeline.mixed_latency import mixed_latency
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.search_inputs import bounds_of
from bcnet.space.width_space import Widths

MODEL = """[model]
name = "reactnet-small"
weights = "real.pt"
args = {{widths = {widths}, depths = {depths}, binary = {binary}}}
"""


def write_project(
    folder: Path, widths: tuple[int, ...], depths: tuple[int, ...], runtime: str = "openvino"
) -> None:
    """A trained real network, to be configured; a device that is timed briefly."""
    torch.manual_seed(0)
    real = reactnet_small(1, 10, widths=widths, depths=depths, binary="none")
    with torch.no_grad():
        for block in real[1]:  # type: ignore[union-attr]
            # Shifts in series have the same gradients, so that training leaves them equal.
            block.act1[2].bias.normal_()
            block.sign2.bias.copy_(block.act1[2].bias)
    torch.save(real.state_dict(), "real.pt")
    configure(widths=list(widths), depths=list(depths), binary='"none"')
    (folder / "hw_profiles").mkdir()
    (folder / "hw_profiles/cpu.toml").write_text(PROFILE.replace("onnxruntime", runtime))


def configure(**args: object) -> None:
    """Write the configuration with these arguments of the network."""
    config = CONFIG.replace("[train]\n", "[train]\namp = false\n").replace('latency = "75%"\n', "")
    Path("bcnet.toml").write_text(MODEL.format(**args) + config)


@pytest.fixture
def problem(folder: Path) -> Problem:
    """Two blocks, so four layers that may be binary, and four groups."""
    write_project(folder, (64, 64), (1, 1))
    return open_problem(load_config(None))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_bound_on_the_size_counts_one_bit_for_a_weight_where_the_device_packs_it(
    folder: Path, runtime: str
) -> None:
    write_project(folder, (64,), (1,), runtime)
    configure(widths=[64], depths=[1], binary='"both"')
    own = open_problem(load_config(None, {"search": {"max_size_mb": 0.02}}))
    (bound,) = bounds_of(own)
    binary = 2 * 64 * 64 * 9  # weights of 128 channels
    size = bound.cost(own.space.largest())
    assert size == len_of_constants(own) - (4 * binary - binary // 8 - 4 * 128) * (runtime == "openvino")
    assert bound.holds(own.space.largest()) == (runtime == "openvino")


def len_of_constants(problem: Problem) -> int:
    file = onnx.load_from_string(problem.graph.variant(problem.space.largest()))
    return sum(numpy_helper.to_array(entry).nbytes for entry in file.graph.initializer)


@pytest.mark.slow
def test_every_assignment_has_the_layers_of_its_own_network(problem: Problem) -> None:
    names = ("1.0.conv1", "1.0.conv2", "1.1.conv1", "1.1.conv2")
    binary = assigned(problem, names, (1, 1, 1, 1))
    reads = layers_read(binary.graph, binary.model)
    assert [tuple(own.items()) for own in reads if own] == [
        ((0, False),),
        ((0, True), (1, False)),
        ((1, True), (2, False)),
        ((2, True), (3, False)),
        ((3, True),),
    ]

    def slots(bits: Bits) -> tuple[LayerSlot, ...]:
        return assigned(problem, names, bits).graph.slots

    together = [tuple(own) for own in reads]
    networks = {bits: slots(bits) for bits in covering_bits(together, 4)}
    assert len(networks) == 4
    joint = mixed_slots(networks, together, len(problem.choices))
    widths = problem.space.random(0)
    bits = (1, 1, 32, 32)  # in none of the four
    own = slots(bits)
    assert [slot.at((*widths, *bits)) for slot in joint] == [slot.at(widths) for slot in own]
    assert sum(slot.at(widths).op == BINARY for slot in own) == 2


@pytest.mark.slow
def test_the_network_of_the_least_loss_within_the_budget_is_chosen_and_can_be_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    write_project(folder, (64,), (1,))
    measure_briefly(monkeypatch)
    assert main(["one-bit", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(keys(found)) - NAMED == set()  # the documented ones
    assert found["rows_measured"] > 0
    rows = LatencyTable.load(Path(found["table"])).rows
    forms = {(spec.op, spec.in_channels, spec.out_channels) for spec, _ in rows if spec.kernel == (3, 3)}
    assert {(op, a, b) for op in ("Conv", BINARY) for a in (32, 64) for b in (32, 64)} <= forms

    problem = open_problem(load_config(None))
    mixed = mixed_latency(problem)
    assert mixed.rows_measured == 0
    losses = choice_losses(problem, mixed.names)
    space = with_bits(problem.space, mixed.names)
    index = np.array(list(itertools.product(*(range(len(group.choices)) for group in space.groups))))
    fit = index[mixed.model.price_many(index) <= found["limit_ms"] + 1e-5]
    assert len(fit) < len(index) == 4 * 4
    assert found["loss"] == pytest.approx(min(total(losses, own) for own in fit))
    bits = [1 if name in found["binary"] else 32 for name in mixed.names]
    chosen = Widths((*found["widths"], *bits))
    assert found["predicted_ms"] == pytest.approx(float(mixed.model(chosen)), abs=1e-5)
    assert found["predicted_ms"] <= found["limit_ms"]
    assert [own["binary"] for own in found["layers"]] == [own == 1 for own in bits]
    assert [own["in_channels"] for own in found["layers"]] == [chosen[0], chosen[1]]

    # Measured again are both forms: of the real network now, all others by the next choice.
    assert main(["build-lut", "--again", "--json"]) == 0
    out, err = capfd.readouterr()
    left = LatencyTable.load(Path(found["table"])).rows
    assert json.loads(out)["rows_measured"] == len(left) < len(rows)
    assert {spec.op for spec, _ in left} == {spec.op for spec, _ in rows} - {BINARY}
    assert f"{len(rows) - len(left)} rows of the forms with binary layers removed: `bcnet one-bit`" in err
    assert mixed_latency(problem).rows_measured == len(rows) - len(left)

    # The network is an ordinary one: nothing is missing for it but whole networks.
    configure(widths=[64], depths=[1], binary=json.dumps(found["binary"]))
    assert main(["build-lut", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["rows_measured"] == 0


def test_losses_of_bits_are_those_of_one_layer_alone_and_never_negative(problem: Problem) -> None:
    names = ("1.0.conv1", "1.0.conv2", "1.1.conv1", "1.1.conv2")
    losses = choice_losses(problem, names)
    assert [len(own) for own in losses] == [2, 2, 2, 2, *[len(BITS)] * 4]
    assert all(own[-1] == 0 <= own[0] < np.inf for own in losses)
    assert sum(own[0] > 0 for own in losses[4:]) > 0


@pytest.mark.parametrize("loss", [np.inf, np.nan])
def test_a_network_without_a_finite_loss_is_refused(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    monkeypatch.setattr("bcnet.pipeline.trained_scores.loss_of", lambda _: loss)
    with pytest.raises(SpaceError, match=f"narrowed has a loss of {loss}; train it first, at a lower rate$"):
        choice_losses(problem, ("1.0.conv1",))


@pytest.mark.parametrize(
    ("runtime", "binary", "flags", "reason"),
    [
        ("onnxruntime", '"none"', (), "onnxruntime on 'cpu' has no 1-bit kernels, so no layer gains by one"),
        (
            "openvino",
            '"none"',
            ("--precision", "fp16"),
            "1-bit kernels are for files in fp32 or int8, not fp16;",
        ),
        ("openvino", '"both"', (), "precisions are chosen on the real network, from which the binary one is"),
        (
            "openvino",
            '["1.0.conv3"]',
            (),
            "there is no layer '1.0.conv3' that can be binary; known: 1.0.conv1",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused_in_one_line(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    runtime: str,
    binary: str,
    flags: tuple[str, ...],
    reason: str,
) -> None:
    write_project(folder, (64,), (1,), runtime)
    configure(widths=[64], depths=[1], binary=binary)
    assert main(["one-bit", *flags]) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"bcnet: {reason}")


def test_a_network_without_binary_layers_is_refused_before_another_device_is_advised(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("bcnet.toml").write_text(CONFIG, encoding="utf-8")
    assert main(["one-bit"]) == 1
    assert "bcnet: model 'digits' has no layers that can be binary" in capfd.readouterr().err


def test_a_network_without_trained_weights_is_refused(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_project(folder, (64,), (1,))
    config = Path("bcnet.toml")
    config.write_text(config.read_text().replace('weights = "real.pt"\n', ""))
    assert main(["one-bit"]) == 1
    reason = "bcnet: precisions are chosen by losses of the trained network: set model.weights to those of"
    assert reason in capfd.readouterr().err


def test_one_of_several_devices_has_to_be_named(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_project(folder, (64,), (1,))
    profiles = Path("hw_profiles")
    (profiles / "desk.toml").write_text((profiles / "cpu.toml").read_text())
    config = Path("bcnet.toml")
    text = config.read_text().replace("[search]\n", '[search]\nlatency = "75%"\n')
    config.write_text(f'device = ["cpu", "desk"]\n{text}')
    assert main(["one-bit"]) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.endswith("and there are several: cpu, desk; name one of them, e.g. --device cpu")
