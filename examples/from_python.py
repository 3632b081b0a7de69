"""The whole job from Python: a network, its data and a budget in; a verified ONNX file out."""

from pathlib import Path

import torch

import bcnet
from bcnet.config import Config, DataConfig, ExportConfig
from bcnet.models.digits import digits

config = Config(data=DataConfig(name="digits"))
data = bcnet.load_data(config)
profile = bcnet.load_profile("cpu")
model = digits(in_channels=1, num_classes=10)

# What can be searched, and what any choice costs.
space = bcnet.discover_space(model, torch.zeros(1, *data.input_shape), bins=8, channel_multiple=8)
print(f"{len(space.groups)} groups, {space.params(space.largest()):,} parameters at full width")

# One supernet, and one latency table that other networks can share.
recipe = bcnet.Recipe(epochs=4, learning_rate=0.1, label_smoothing=0.05)
supernet = bcnet.train(bcnet.Supernet.with_extra(model, space), data, recipe).supernet
graph = bcnet.OnnxSupernet(model, space, (profile.batch, *data.input_shape))
table = bcnet.LatencyTable("cpu")
report = bcnet.build_lut(graph, profile, table)
table.save(Path("cpu.json"))
print(f"{report.rows} layers measured; predictions are off by {report.calibration.mean_error:.1%} on average")
latency_of = bcnet.LatencyModel(
    bcnet.LatencyTable.load("cpu.json"),
    report.calibration.setting,
    graph.slots,
    [group.choices for group in space.groups],
    report.calibration,
)

# The most accurate widths inside 60 % of the full network's latency.
budget = bcnet.Budget(target_ms=0.6 * latency_of(space.largest()))
found = bcnet.search(
    space,
    latency_of,
    bcnet.Scorer([supernet], data, images=128, shared=True),
    bcnet.SearchSettings(budget=budget, population=12, generations=3),
    measure_of=lambda widths: bcnet.measure_network(graph.variant(widths), profile, share=0.5),
)
widths = found.best.widths

# The winner as a plain network, fine-tuned, exported, verified.
tuned = bcnet.Recipe(epochs=3, learning_rate=0.03, label_smoothing=0.05)
small = bcnet.slice([supernet], widths, data, tuned).model
onnx = bcnet.export(small, (profile.batch, *data.input_shape), {"widths": str(widths)})
artifact = bcnet.Artifact(onnx, full=graph.variant(space.largest()))
limits, predicted_ms = ExportConfig(), found.best.predicted_ms
expected = bcnet.Expected(small, space, widths, data, limits, predicted_ms, budget)
verdict = bcnet.verify(artifact, expected, profile)
Path("model.onnx").write_bytes(onnx.SerializeToString())
ms = verdict.measured.median_ms
print(f"{widths}: accuracy {verdict.accuracy:.2%}, {ms:.3f} ms of {budget.target_ms:.3f} ms")
print("passed" if verdict.passed else f"failed: {verdict.failures}")
