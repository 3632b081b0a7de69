"""Stage 5, export. In: the small network. Out: an ONNX file that was run on the whole test set, and timed.

`export/`: model.onnx, verify.json. A failed check leaves what stood there before. Where the device is not at
hand, or its table is an estimate, the file is written and all but its latency is checked: it is not verified.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from onnx import ModelProto
from torch import Tensor, nn

from bcnet.artifacts import Run, digest, json_bytes, read_json, write_file
from bcnet.config import Config
from bcnet.errors import CheckFailed
from bcnet.pipeline.verify import verify
from bcnet.progress import announce, say, working
from bcnet.supernet.fit import metric_digest
from bcnet.supernet.onnx_graph import to_onnx
from bcnet.supernet.project import load_project
from bcnet.supernet.saved import searched_widths, sliced_model


def export(model: nn.Module, example: Any, metadata: Mapping[str, str]) -> ModelProto:
    """The network as ONNX for inputs as `example` (see `to_onnx`), with metadata that a deployer needs."""
    proto = to_onnx(model, example)
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto


def stage_inputs(run: Run, config: Config) -> dict[str, str]:
    """What this stage's manifest records."""
    project = load_project(config)
    supernet = run.stage("train").require(project.inputs())
    search = run.stage("search").require({"supernet": supernet, "device": project.device_key})
    return {
        "slice": run.stage("slice").require({"supernet": supernet, "search": search}),
        "search": search,
        "limits": digest(config.export.model_dump()),
        "metric": metric_digest(config),
        "device": project.device_key,
    }


def run(run: Run, config: Config) -> dict[str, Any]:
    """Export, verify, save. Raises CheckFailed (exit 3) where a check did not pass.

    In the summary, "not_verified" says why the latency could not be checked, or is None.
    """
    project = load_project(config)
    stage, inputs = run.stage("export"), stage_inputs(run, config)
    search = run.stage("search")
    found = read_json(search.path("result.json"), search.command)
    widths = searched_widths(run, project)
    model = sliced_model(run, project)
    data = project.data
    example = data.example(project.profile.batch)
    metadata = {
        "bcnet_version": version("bcnet"),
        "widths": str(widths),
        "classes": json.dumps(data.classes),
    }
    if found["estimate"]:
        metadata["latency"] = "estimate, not measured"
    elif project.replayed:
        metadata["latency"] = project.replayed
    if isinstance(example, Tensor) and example.ndim == 4:
        metadata["input"] = json.dumps({"layout": "NCHW", "shape": list(example.shape)})
    if data.mean:  # a Dataset's items are final: what it does to images, only its author knows
        metadata["preprocessing"] = json.dumps({"scale": 1 / 255, "mean": data.mean, "std": data.std})
    with working("exporting to ONNX"):
        proto = project.at_precision(export(model, example, metadata))
    predicted_ms = float(found["best"]["predicted_ms"])
    announce("verifying on the test images", len(data.test) / project.profile.batch * predicted_ms / 1000)
    not_measured = project.not_measured(project.latency_model()) or project.replayed
    report = verify(
        model,
        proto,
        project.space,
        widths,
        data,
        project.profile,
        config.export,
        predicted_ms=predicted_ms,
        budget_ms=found["budget_ms"],
        full=b"" if not_measured else project.graph.variant(project.space.original()),
        full_predicted_ms=float(found["full_predicted_ms"]),
        task=project.task,
        not_measured=not_measured,
    )
    summary = {
        "stage": "export",
        "folder": str(stage.folder),
        "file": str(stage.path("model.onnx")),
        "device": project.profile.name,
        "estimate": bool(found["estimate"]),
        "recorded": project.profile.recording,
        **report.to_json(),
    }
    if not report.passed:
        failed = stage.path("failed.json")
        write_file(failed, json_bytes(summary))
        raise CheckFailed(f"verification failed: {'; '.join(report.failures)} (details in {failed})")
    stage.finish(inputs, {"model.onnx": proto.SerializeToString(), "verify.json": json_bytes(summary)})
    stage.path("failed.json").unlink(missing_ok=True)
    if report.not_verified:
        return summary
    if report.budget_ms is not None and report.measured and report.measured.median_ms > report.budget_ms:
        say(
            f"measured {report.measured.median_ms:.4g} ms is over the budget of {report.budget_ms:.4g} ms, "
            f"within the {config.export.latency_tolerance:.0%} that export.latency_tolerance allows"
        )
    say(f"verified: {stage.path('model.onnx')}")
    return summary
