"""Stage 2 without the device: a latency table from its roofline. In: a space, peaks. Out: an estimate.

How much of their peaks layers get is fitted on the processor's measured table. Nothing here is measured, the
table says so, and no network is called verified on it.
"""

from dataclasses import asdict, dataclass

from bcnet.errors import DeviceError
from bcnet.events import followed_stage
from bcnet.hw_profiles import HwProfile
from bcnet.hw_profiles.target import target_json
from bcnet.latency_tables.model import LatencyModel
from bcnet.latency_tables.roofline import (
    DEFAULT,
    DEFAULT_SOURCE,
    FEWEST,
    Peak,
    Roofline,
    RooflineError,
    error_of,
    estimate_table,
    estimated_calibration,
    fit,
    measured_rows,
)
from bcnet.latency_tables.table import LatencyTable
from bcnet.measure.network_design import needed_layers
from bcnet.measure.network_latency import setting_of
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.device_table import TABLES, model_key
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import EstimateSummary
from bcnet.plain import counted
from bcnet.progress import say
from bcnet.runs import Run, Stage, json_bytes
from bcnet.traits import PRECISIONS

PROCESSOR = TABLES / "cpu.json"


@dataclass(frozen=True)
class Fitted:
    """A roofline, where it comes from, and how far it is off there (None: no measured rows)."""

    roofline: Roofline
    source: str
    error: RooflineError | None


def roofline_on(profile: HwProfile, fitted: Roofline) -> tuple[Peak, Roofline]:
    """The peaks of a profile at its precision and threads, and the roofline under them.

    Raises DeviceError where the profile has no such peaks.
    """
    peaks = profile.roofline
    if peaks is None:
        raise DeviceError(
            f"device '{profile.name}' has no [roofline] peaks to estimate from: add them to "
            f"hw_profiles/{profile.name}.toml, or measure the device without --estimate"
        )
    teraops = peaks.teraops(profile.precision)
    if teraops is None:
        known = [name for name in PRECISIONS if peaks.teraops(name) is not None]
        raise DeviceError(
            f"device '{profile.name}' has no {profile.precision} peak; "
            f"choose --precision {' or '.join(known)}"
        )
    share = min(profile.threads, peaks.cores) / peaks.cores if peaks.cores else 1.0
    launch_ms = None if peaks.launch_us is None else peaks.launch_us / 1e3
    return Peak(teraops * 1e9 * share, peaks.bandwidth_gb_s * 1e6), fitted.elsewhere(launch_ms)


def estimate_lut(graph: OnnxSupernet, profile: HwProfile, table: LatencyTable, fitted: Fitted) -> int:
    """Fill `table` with estimated rows for every width of `graph`'s space; returns how many these are.

    Raises TableError where the table holds measured rows of this setting, DeviceError without peaks.
    """
    setting = setting_of(profile)
    peak, roofline = roofline_on(profile, fitted.roofline)
    layers = needed_layers(graph)
    assert profile.roofline is not None  # roofline_on has seen to it
    provenance = {
        "method": "roofline",
        "peaks": f"{peak.ops_per_ms / 1e9:g} * 10^12 {profile.precision} operations/s, "
        f"{peak.bytes_per_ms / 1e6:g} GB/s",
        "peaks from": profile.roofline.source,
        "shares": ", ".join(f"{name} {value:.4g}" for name, value in asdict(roofline).items()),
        "fitted on": fitted.source,
    }
    estimate_table(table, layers, setting, roofline, peak, provenance)
    choices = tuple(group.choices for group in graph.space.groups)
    model = LatencyModel(table, setting, graph.slots, choices, None)
    key = model_key(graph.slots, choices)
    table.calibrations[key, setting] = estimated_calibration(key, setting, model.rows_digest)
    return len(model.used)


def fitted_roofline() -> Fitted:
    """Fitted on the working folder's measured table of the processor; as shipped where that is not there."""
    if PROCESSOR.exists():
        table = LatencyTable.load(PROCESSOR)
        rows = measured_rows(table)
        if len(rows) >= FEWEST:
            dates = sorted({session.date for session in table.sessions if not session.estimate})
            measured = " to ".join({dates[0]: 0, dates[-1]: 0})
            source = f"{counted(len(rows), 'row')} of {PROCESSOR}, measured {measured}"
            roofline = fit(rows)
            return Fitted(roofline, source, error_of(roofline, rows))
    return Fitted(DEFAULT, DEFAULT_SOURCE, None)


@followed_stage("build-lut")
def run(run: Run, problem: Problem) -> EstimateSummary:
    """Write `latency_tables/<device>.json` from the device's roofline; also for each of several devices."""
    stage = run.stage("build-lut")
    first, *further = [_estimated(stage, own) for own in problem.devices]
    files = {first.FILE: json_bytes(first.to_json())}
    files |= {f"report-{own.device}.json": json_bytes(own.to_json()) for own in further}
    stage.finish(problem.table_inputs(), files)
    return first


def _estimated(stage: Stage, problem: Problem) -> EstimateSummary:
    """The table of one device."""
    config, path, profile = problem.config, problem.table.path, problem.profile
    fitted = fitted_roofline()
    with problem.table.being_built() as table:
        rows = estimate_lut(problem.graph, profile, table, fitted)
        for name in problem.precisions[1:]:
            other = problem.at(name)
            estimate_lut(other.graph, other.profile, table, fitted)
        table.save(path)
    say(
        f"{path}: {counted(rows, 'layer')} estimated from the roofline of '{profile.name}', nothing was "
        "measured"
    )
    error = fitted.error
    if error is None:
        say(f"shares of the peaks: {fitted.source}; build-lut --device cpu measures a table to fit them on")
    else:
        say(
            f"fitted on {fitted.source}: there the roofline is off by {error.mean_error:.1%} a row on "
            "average, "
            f"{error.within_10:.0%} of rows within 10 %, {error.within_25:.0%} within 25 %, Spearman "
            f"{error.spearman:.3f}, the sum of all rows by {error.sum_error:+.1%}; on another device by more"
        )
    latency = problem.table.latency_model()
    return EstimateSummary(
        folder=str(stage.folder),
        table=str(path),
        device=profile.name,
        target=target_json(config),
        rows_used=rows,
        full_ms=round(latency(problem.space.original()), 5),
        narrowest_ms=round(latency(problem.space.smallest()), 5),
        peaks=profile.roofline.source if profile.roofline else None,
        shares=asdict(roofline_on(profile, fitted.roofline)[1]),
        fitted_on=fitted.source,
        off_there=asdict(error) if error else None,
    )
