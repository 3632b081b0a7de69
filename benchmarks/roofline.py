"""How far the roofline is off on this processor, and the shares of its peaks that bcnet ships with.

Builds a latency table for each network, fits the roofline on each and on all of them together, and prints how
far each fit is off on each network's rows: off the diagonal, on layers that it was not fitted on.

    python benchmarks/roofline.py --model torchvision:mobilenet_v2 --model torchvision:resnet18
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from bcnet.config import ModelConfig
from bcnet.hw_profiles import load_profile
from bcnet.latency_tables.roofline import error_of, fit, measured_rows
from bcnet.latency_tables.table import LatencyTable
from bcnet.models import build_model
from bcnet.onnx_export.onnx_supernet import OnnxSupernet
from bcnet.pipeline.build_lut import build_lut
from bcnet.space.discover import discover_space
from bcnet.training.loop import keep_freed_memory


def measured_table(name: str, size: int, path: Path) -> LatencyTable:
    """The network's table on this processor: from `path` where it is there, else measured and kept there."""
    if path.exists():
        return LatencyTable.load(path)
    profile = load_profile("cpu")
    torch.manual_seed(0)
    shape = (profile.batch, 3, size, size)
    model = build_model(ModelConfig(name=name), 3, 1000)
    space = discover_space(model, torch.zeros(shape), bins=8, channel_multiple=profile.channel_multiple)
    table = LatencyTable(profile.name)
    report = build_lut(OnnxSupernet(model, space, shape), profile, table, path=path)
    print(f"{name}: {report.rows} rows from {report.networks} networks in {report.seconds:.0f} s")
    return table


def main() -> None:
    """Parse, build, fit, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", action="append", help="as in bcnet.toml; may be repeated")
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--tables", type=Path, default=Path("roofline_tables"), help="folder for the tables")
    arguments = parser.parse_args()
    names = arguments.model or ["torchvision:mobilenet_v2", "torchvision:resnet18"]

    keep_freed_memory()
    arguments.tables.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name in names:
        path = arguments.tables / f"{name.replace(':', '-')}-{arguments.image_size}.json"
        table = measured_table(name, arguments.image_size, path)
        rows[name] = measured_rows(table)
        for session in table.sessions:
            print(f"{name}: {session.date}, {session.provenance}, probe {session.probe}")
    rows["all"] = [row for name in names for row in rows[name]]
    headings = ("rows", "error", "<=10 %", "<=25 %", "rank", "sum")
    print(f"{'fitted on':<26}{'off on':<26}" + "".join(f"{heading:>8}" for heading in headings))
    for fitted in rows:
        roofline = fit(rows[fitted])
        for name, own in rows.items():
            error = error_of(roofline, own)
            print(
                f"{fitted:<26}{name:<26}{error.rows:>8}{error.mean_error:>8.1%}{error.within_10:>8.0%}"
                f"{error.within_25:>8.0%}{error.spearman:>8.3f}{error.sum_error:>+8.1%}"
            )
        print(", ".join(f"{name} {value:g}" for name, value in asdict(roofline).items()))


if __name__ == "__main__":
    main()
