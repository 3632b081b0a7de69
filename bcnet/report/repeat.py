"""How to repeat a run and use what it delivered. In: what was found. Out: commands, lines to paste."""

import json
import shlex
from contextlib import suppress
from pathlib import Path

from bcnet.agent.openvino_jobs import inference_precision
from bcnet.errors import BcnetError
from bcnet.hw_profiles import load_profile
from bcnet.pipeline.engine import FILE, named_for
from bcnet.pipeline.results import ExportSummary, FurtherExport, SearchSummary
from bcnet.report.found import Found
from bcnet.width_search.latency_budget import LatencyBudget

Exported = ExportSummary | FurtherExport


def environment_of(found: Found) -> dict[str, str]:
    """Where the run was made, and the backend and precision of its file."""
    own = dict(found.environment)
    if found.export:
        own |= {"backend": found.export.backend, "precision": found.export.precision}
    return own


def commands_of(found: Found) -> tuple[str, ...]:
    """The command that repeats the run, and those of its parts."""
    singly = [found.run.stage(name).command for name in ("train", "build-lut", "search", "slice", "export")]
    return (run_again(found, compared=found.compare is not None), *singly)


def run_again(found: Found, *, compared: bool) -> str:
    """The command that repeats the whole run, with the comparison wherever one is `compared`."""
    search = found.search
    words = shlex.split(found.run.stage("compare").command)
    words = words if compared else [word for word in words if word != "--compare"]
    own = (search.target or {}).get("precision") if search else None
    for each in search.precisions or () if search else ():
        words += [] if each.precision == own else ["--precisions", each.precision]
    target = (search.target if search else None) or (found.table.target if found.table else None) or {}
    for key, value in target.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [f"--{key}", str(each)]
    if search is not None:
        budget = (found.slice or search).budget
        if budget is not None:
            words += _budget_options(search, budget, found)
        elif search.min_accuracy is not None:
            words += ["--min-accuracy", f"{search.min_accuracy:g}"]
        words += ["--seed", str(search.seed)]
    return shlex.join(words)


def _budget_options(search: SearchSummary, budget: LatencyBudget, found: Found) -> list[str]:
    """The options that set the budget; with further devices, one for each."""

    def asked(own: LatencyBudget, added_ms: float | None) -> tuple[str, str]:
        return own.model_copy(update={"ms": own.ms + (added_ms or 0.0)}).option

    further = (found.slice or search).further
    if not further:
        return list(asked(budget, search.preprocess_ms))
    words = []
    every = (
        (search.device, budget, search.preprocess_ms),
        *((o.device, o.budget, o.preprocess_ms) for o in further),
    )
    for name, own, added_ms in every:
        if own is not None:
            flag, value = asked(own, added_ms)
            words += [flag, f"{name}={value}"]
    return words


def deployment_of(found: Found) -> tuple[str, ...]:
    """Lines to paste: they run the delivered file of each device, with zeros in place of images."""
    if found.export is None:
        return ()
    folder = Path(found.export.file).parent
    target = (found.search.target if found.search else None) or {}
    lines = _running(found.export, str(folder / FILE), target.get("threads", 1))
    for own in found.export.further or ():
        lines += ["", f"# on {own.device}"]
        lines += _running(own, str(folder / named_for(FILE, own.device)), _threads(own.device))
    load = f"bcnet.load({found.run.folder.name!r})"
    lines += ["", f"# in PyTorch, to be trained further: import bcnet; network = {load}"]
    if (folder / "predict.py").exists():
        lines += ["", f"# or: python {shlex.quote(str(folder / 'predict.py'))} photo.jpg"]
    if found.export.file.endswith(".engine"):
        lines += ["", f"# the engine: trtexec --loadEngine={shlex.quote(found.export.file)}"]
    return tuple(lines)


def _running(export: Exported, file: str, threads: int) -> list[str]:
    """Lines that run the `file` of a device."""
    runtime = export.backend.partition(" ")[0]
    return PROGRAMS.get(runtime, _in_onnxruntime)(export, file, threads)


def _threads(device: str) -> int:
    with suppress(BcnetError):  # the profile may be gone
        return load_profile(device).threads
    return 1


def _in_onnxruntime(export: Exported, file: str, threads: int) -> list[str]:
    return [
        "import json",
        "import numpy as np",
        "import onnxruntime",
        "",
        f"session = onnxruntime.InferenceSession({file!r})",
        'about = json.loads(session.get_modelmeta().custom_metadata_map["bcnet.preprocessing"])',
        "inputs = {",
        '    own["name"]: np.zeros([n if isinstance(n, int) else 1 for n in own["shape"]], own["dtype"])',
        '    for own in about["inputs"]',
        "}  # your images in place of the zeros",
        "outputs = session.run(None, inputs)",
    ]


def _in_openvino(export: Exported, file: str, threads: int) -> list[str]:
    """With the settings that the file was verified with, among them those that are not OpenVINO's own."""
    provider = "CPU"
    with suppress(BcnetError):  # the profile may be gone
        provider = load_profile(export.device).provider.upper()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": inference_precision(export.precision, provider),
        **({"INFERENCE_NUM_THREADS": str(threads)} if provider == "CPU" else {}),
    }
    file = export.one_bit_file or file
    return [
        "import numpy as np",
        "import openvino",
        "",
        f"settings = {json.dumps(settings)}",
        f"network = openvino.Core().compile_model({file!r}, {provider!r}, settings)",
        "inputs = {",
        "    own.any_name: np.zeros(own.shape, own.element_type.to_dtype()) for own in network.inputs",
        "}  # your images in place of the zeros",
        "outputs = list(network(inputs).values())",
    ]


# By the runtime in which the file was verified; ONNX Runtime runs those of all others.
PROGRAMS = {"openvino": _in_openvino}
