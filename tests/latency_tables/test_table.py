"""Latency tables: arithmetic by hand, files that were damaged, and a real build on a small network."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import measure_briefly
from torch import Tensor, nn

from bcnet.errors import TableError
from bcnet.hw_profiles import HwProfile
from bcnet.latency_tables.model import LatencyModel, LayerSlot
from bcnet.latency_tables.rows import Calibration, LatencyStat, LayerSpec, Row, Session, Setting
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.layer_attribution import attribute
from bcnet.measure.network_design import covering_design
from bcnet.models.digits import digit_scenes
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.build_lut import build_lut
from bcnet.runtimes import runtime_here
from bcnet.space.discover import discover_space
from bcnet.space.width_space import Layer, Segment, WidthGroup, Widths, WidthSpace

SETTING = Setting("onnxruntime", "fp32", 1, 1, "default")
CONV = LayerSpec("Conv", 8, 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, "Relu", False, 16, 16)
QUICK = HwProfile(name="cpu", description="", runtime="onnxruntime", warmup_ms=1, seconds=0.02, iterations=6)


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_briefly(monkeypatch)


def stat(ms: float) -> LatencyStat:
    return LatencyStat(ms, ms * 1.1, 0.01, 10)


def table_of(rows: dict[LayerSpec, float]) -> LatencyTable:
    table = LatencyTable("cpu", [Session("2026-01-01", {"runtime": "onnxruntime"}, {"matmul_ms": 0.2})])
    table.rows = {(spec, SETTING): Row(spec, SETTING, stat(ms), 0) for spec, ms in rows.items()}
    return table


def pair(a: int, b: int) -> LayerSpec:
    return replace(CONV, in_channels=a, out_channels=b)


GRID = {pair(8, 8): 1.0, pair(8, 16): 2.0, pair(16, 8): 3.0, pair(16, 16): 5.0}


def test_a_saved_table_loads_as_it_was_and_saves_the_same_bytes(tmp_path: Path) -> None:
    table = table_of(GRID)
    table.calibrations["m", SETTING] = Calibration(
        "m", SETTING, "r", 0.1, 1.0, 12, 12, 0.01, 1.0, 1.0, 0.99, 0.01
    )
    table.save(tmp_path / "cpu.json")
    loaded = LatencyTable.load(tmp_path / "cpu.json")
    assert loaded == table
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "cpu.json").read_bytes()


def test_the_model_sums_rows_as_arithmetic_by_hand_does() -> None:
    slots = [
        LayerSlot("a", pair(16, 16), ((0, 1),), ((1, 1),), False, ("a",)),
        LayerSlot("b", pair(16, 16), ((1, 1),), ((0, 1),), False, ("b",)),
    ]
    calibration = Calibration("m", SETTING, "r", 0.5, 2.0, 12, 12, 0.0, 1.0, 1.0, 1.0, 0.0)
    model = LatencyModel(table_of(GRID), SETTING, slots, [(8, 16), (8, 16)], calibration)
    assert model(Widths((8, 16))) == pytest.approx(0.5 + 2.0 * (2.0 + 3.0))
    assert model(Widths((16, 16))) == pytest.approx(0.5 + 2.0 * 10.0)
    assert model.price_many(np.array([[0, 0], [1, 0]])).tolist() == pytest.approx([4.5, 10.5])
    # Between the choices: bilinear, (1 + 2 + 3 + 5) / 4 for each of the two layers.
    assert model(Widths((12, 12))) == pytest.approx(0.5 + 2.0 * 5.5)


def test_depthwise_layers_are_interpolated_along_one_channel_count() -> None:
    rows = {replace(CONV, in_channels=c, out_channels=c, groups=c): c / 10 for c in (8, 16, 32)}
    wanted = replace(CONV, in_channels=24, out_channels=24, groups=24)
    assert table_of(rows).latency_ms(wanted, SETTING) == pytest.approx(2.4)


def test_a_layer_outside_the_measured_range_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        TableError, match=r"no row for Conv 64->8 at .*, which was built for other layers; run `bcnet "
    ):
        table_of(GRID).latency_ms(pair(64, 8), SETTING)


def test_a_row_is_never_used_for_another_setting() -> None:
    with pytest.raises(
        TableError, match=r"batch 4, .* has: .*batch 1, .*Run `bcnet build-lut --device cpu` with"
    ):
        table_of(GRID).latency_ms(pair(8, 8), replace(SETTING, batch=4))


def test_the_digest_follows_its_own_rows_only() -> None:
    table = table_of(GRID)
    own = [pair(8, 8), pair(8, 16)]
    before = table.digest_of(own, SETTING)
    table.rows[pair(16, 16), SETTING] = Row(pair(16, 16), SETTING, stat(9.0), 0)
    assert table.digest_of(own, SETTING) == before
    table.rows[pair(8, 8), SETTING] = Row(pair(8, 8), SETTING, stat(9.0), 0)
    assert table.digest_of(own, SETTING) != before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "cut short or edited"),
        (lambda text: text.replace('"schema": 4', '"schema": 7'), "schema 7, but this bcnet reads 1 to 4"),
        (lambda text: text.replace('"median_ms": 1.0', '"median_ms": -1.0'), "greater than or equal to 0"),
        (lambda text: text.replace('"median_ms": 1.0', '"median_ms": NaN'), "median_ms"),
        (lambda text: text.replace('"out_channels": 16', '"out_channels": 8'), "two rows"),
        (lambda text: text.replace('"session": "', '"session": "5'), "a row names session '5"),
        (lambda text: text.replace('"device"', '"devise"'), "device"),
        (lambda text: text.replace('"spread"', '"spred"'), "spre"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "cpu.json"
    table_of(GRID).save(path)
    assert callable(damage)
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(TableError, match=message):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    "change", [('"scale": 1.0', '"scale": 0.5'), ('"offset_ms": 0.1', '"offset_ms": NaN')]
)
def test_an_edited_calibration_is_refused(tmp_path: Path, change: tuple[str, str]) -> None:
    table = table_of(GRID)
    table.calibrations["m", SETTING] = Calibration(
        "m", SETTING, "r", 0.1, 1.0, 12, 12, 0.01, 1.0, 1.0, 0.99, 0.01
    )
    table.save(tmp_path / "cpu.json")
    text = (tmp_path / "cpu.json").read_text(encoding="utf-8")
    assert text.count(change[0]) == 1
    (tmp_path / "cpu.json").write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(TableError, match="the calibration of model m was edited"):
        LatencyTable.load(tmp_path / "cpu.json")


def space_of(choices: tuple[tuple[int, ...], ...], meets: list[tuple[int, int]]) -> WidthSpace:
    """Groups that meet in layers as the pairs say."""
    groups = tuple(WidthGroup(f"g{i}", own[-1], own, (f"g{i}",)) for i, own in enumerate(choices))
    dimensions = {f"w{i}": {0: (Segment(b, 1),), 1: (Segment(a, 1),)} for i, (a, b) in enumerate(meets)}
    layers = tuple(Layer(f"w{i}", 1) for i in range(len(meets)))
    return WidthSpace("bcnet", groups, dimensions, {}, (), layers, (), ())


@pytest.mark.parametrize("meets", [[(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (0, 2), (2, 3)]])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_design_shows_every_pair_of_choices_of_groups_that_meet(
    meets: list[tuple[int, int]], size: int
) -> None:
    own = tuple(range(8, 8 * size + 1, 8))
    choices = (own, own[: max(2, size // 2)], own, own)
    networks = covering_design(space_of(choices, meets))
    for a, b in meets:
        shown = {(widths[a], widths[b]) for widths in networks}
        assert shown == set(itertools.product(choices[a], choices[b]))


class Branches(nn.Module):
    """Three branches, concatenated: four groups meet in the layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(1, 32, size, padding=size // 2) for size in (1, 3, 5))
        self.mix = nn.Conv2d(96, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([torch.relu(branch(x)) for branch in self.branches], 1)
        z: Tensor = self.head(torch.relu(self.mix(y)).mean((2, 3)))
        return z


def test_layers_behind_a_concatenation_are_sampled_and_any_widths_are_priced() -> None:
    model = Branches().eval()
    space = discover_space(model, torch.zeros(1, 1, 16, 16), bins=4, channel_multiple=8, min_width=0.25)
    graph, table = OnnxSupernet(model, space, (1, 1, 16, 16)), LatencyTable("cpu")
    report = build_lut(graph, QUICK, table)
    (mix,) = (slot for slot in graph.slots if slot.sampled and slot.template.op == "Conv")
    measured = {(spec.in_channels, spec.out_channels) for spec in mix_rows(table, mix)}
    assert {(24, 8), (96, 32)} <= measured
    choices = [group.choices for group in space.groups]
    model_of_table = LatencyModel(table, report.calibration.setting, graph.slots, choices, report.calibration)
    everything = [Widths(widths) for widths in itertools.product(*choices)]
    prices = model_of_table.price_many(model_of_table.indices(everything))
    assert prices.shape == (4**4,)
    assert (prices > 0).all()
    assert build_lut(graph, QUICK, table).measured == 0


class TwoBranches(nn.Module):
    """Two groups meet in the concatenation, three in the layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 48, 3, padding=1), nn.Conv2d(1, 96, 3, padding=1)
        self.mix = nn.Conv2d(144, 64, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        z: Tensor = self.head(torch.relu(self.mix(y)).mean((2, 3)))
        return z


def test_a_concatenation_of_two_groups_needs_no_network_for_every_sum() -> None:
    space = discover_space(TwoBranches().eval(), torch.zeros(1, 1, 8, 8))
    graph, table = OnnxSupernet(TwoBranches().eval(), space, (1, 1, 8, 8)), LatencyTable("cpu")
    report = build_lut(graph, QUICK, table)
    choices = [group.choices for group in space.groups]
    latency = LatencyModel(table, report.calibration.setting, graph.slots, choices, report.calibration)
    rng = np.random.default_rng(0)
    assert all(latency(space.random(rng)) > 0 for _ in range(200))


def mix_rows(table: LatencyTable, slot: LayerSlot) -> list[LayerSpec]:
    return [spec for spec, _ in table.rows if spec.family == slot.template.family]


def test_estimates_are_exact_at_rows_and_follow_the_arithmetic_between_them() -> None:
    def ms(a: int, b: int) -> float:
        return 0.1 + 0.001 * a + 0.002 * b + 0.0005 * a * b

    places = [(8, 8), (24, 8), (8, 40), (48, 24), (96, 32), (64, 16)]
    table = table_of({pair(a, b): ms(a, b) for a, b in places})
    rows = table.look_up(SETTING)
    assert rows.estimate_ms(pair(48, 24)) == pytest.approx(ms(48, 24))
    assert rows.estimate_ms(pair(40, 24)) == pytest.approx(ms(40, 24), rel=1e-6)
    with pytest.raises(TableError, match="batch 4"):
        table.look_up(replace(SETTING, batch=4)).estimate_ms(pair(40, 24))


def small_graph(bins: int = 2, width: int = 10) -> OnnxSupernet:
    torch.manual_seed(0)
    model = digit_scenes(num_classes=width).eval()
    space = discover_space(model, torch.zeros(1, 1, 16, 16), bins=bins, min_width=0.4)
    return OnnxSupernet(model, space, (1, 1, 16, 16))


def test_a_build_measures_every_layer_and_a_second_build_measures_nothing(tmp_path: Path) -> None:
    graph, table = small_graph(), LatencyTable("cpu")
    report = build_lut(graph, QUICK, table, path=tmp_path / "cpu.json")
    assert report.measured == report.rows == len(table.rows)
    assert all(row.stat.median_ms > 0 and row.session == 0 for row in table.rows.values())
    assert [entry.name for entry in tmp_path.iterdir()] == ["cpu.json"]
    again = LatencyTable.load(tmp_path / "cpu.json")
    assert again == table
    second = build_lut(graph, QUICK, again)
    assert (second.measured, second.networks) == (0, 0)
    assert second.calibration == report.calibration
    # Another head: only the classifier's rows are new.
    third = build_lut(small_graph(width=7), QUICK, again)
    assert third.measured == len(graph.space.groups[-1].choices)
    assert len(again.sessions) == 2


def test_every_profiled_millisecond_is_charged_to_a_layer() -> None:
    graph = small_graph()
    widths = graph.space.smallest()
    profile = runtime_here("onnxruntime").profile_nodes(graph.variant(widths), 5)
    charged = attribute(graph.slots, profile)
    assert charged.shape == (len(graph.slots), 5)
    assert charged.sum(0) == pytest.approx(np.sort(np.sum([ms for _, ms in profile], axis=0)))


def test_what_has_no_layer_is_charged_to_the_layer_that_runs_next() -> None:
    slots = [LayerSlot(n, CONV, (), (), False, (n, f"{n}_relu")) for n in ("a", "b")]
    one = np.ones(1)
    profile = [
        ("a_relu_nchwc", one),
        ("ReorderOutput_token_3", 2 * one),
        ("b/Fusion/", 4 * one),
        ("x", 8 * one),
    ]
    assert attribute(slots, profile).ravel().tolist() == [1.0, 14.0]


def test_slots_know_their_channels_at_any_widths() -> None:
    graph = small_graph()
    widths = graph.space.smallest()
    stem, head = graph.slots[0].at(widths), graph.slots[-1].at(widths)
    assert (stem.op, stem.in_channels, stem.out_channels) == ("Conv", 1, widths[0])
    assert (head.op, head.in_channels, head.out_channels) == ("Gemm", widths[-1], 10)
    assert [slot.template.add for slot in graph.slots].count(True) == 3


def test_a_variant_runs_in_the_runtime_and_has_the_widths_shapes() -> None:
    import onnx

    graph = small_graph()
    widths = graph.space.random(np.random.default_rng(1))
    content = graph.variant(widths)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    images = np.zeros((3, 1, 16, 16), np.float32)
    assert runtime_here("onnxruntime").predictor(content)(images)[0].shape == (3, 10)
    shapes = {entry.name: tuple(entry.dims) for entry in onnx.load_from_string(content).graph.initializer}
    assert all(
        shapes[layer.weight] == graph.space.shape(layer.weight, widths) for layer in graph.space.layers
    )


def test_the_file_holds_one_row_a_line(tmp_path: Path) -> None:
    table_of(GRID).save(tmp_path / "cpu.json")
    lines = (tmp_path / "cpu.json").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if '"layer"' in line]
    assert len(rows) == len(GRID)
    assert all(isinstance(json.loads(line.strip().rstrip(",")), dict) for line in rows)
