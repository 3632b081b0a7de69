"""bcnet: put a CNN onto a device inside a latency budget. Names are loaded on first use."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bcnet.data import load_data as load_data
    from bcnet.hw_profiles import load_profile as load_profile
    from bcnet.latency_tables.model import LatencyModel as LatencyModel
    from bcnet.latency_tables.table import LatencyTable as LatencyTable
    from bcnet.methods.adapruner import allocate_by_scales as allocate_by_scales
    from bcnet.methods.group_fisher import FisherSettings as FisherSettings
    from bcnet.methods.group_fisher import Pruned as Pruned
    from bcnet.methods.group_fisher import SteadyRecipe as SteadyRecipe
    from bcnet.methods.group_fisher import prune_by_group_fisher as prune_by_group_fisher
    from bcnet.methods.latency_greedy import allocate_greedily as allocate_greedily
    from bcnet.methods.limits import Limits as Limits
    from bcnet.methods.loss_tables import LossTables as LossTables
    from bcnet.methods.loss_tables import importance_tables as importance_tables
    from bcnet.methods.loss_tables import loss_tables as loss_tables
    from bcnet.methods.program import Allocation as Allocation
    from bcnet.methods.program import SolverSettings as SolverSettings
    from bcnet.methods.program import allocate_exactly as allocate_exactly
    from bcnet.methods.uniform import allocate_uniformly as allocate_uniformly
    from bcnet.pipeline.build_lut import build_lut as build_lut
    from bcnet.pipeline.export import export as export
    from bcnet.pipeline.search_evolved import SearchResult as SearchResult
    from bcnet.pipeline.search_evolved import search as search
    from bcnet.pipeline.slice import slice as slice
    from bcnet.pipeline.train import train as train
    from bcnet.pipeline.verify import verify as verify
    from bcnet.supernet.discover import discover_space as discover_space
    from bcnet.supernet.evolution import SearchSettings as SearchSettings
    from bcnet.supernet.fit import Recipe as Recipe
    from bcnet.supernet.fit import fit_network as fit_network
    from bcnet.supernet.gates import measured_importances as measured_importances
    from bcnet.supernet.importance import channel_order as channel_order
    from bcnet.supernet.importance import extracted as extracted
    from bcnet.supernet.importance import importances as importances
    from bcnet.supernet.importance import kept_channels as kept_channels
    from bcnet.supernet.importance import reordered as reordered
    from bcnet.supernet.inherit import Inherited as Inherited
    from bcnet.supernet.inherit import Original as Original
    from bcnet.supernet.inherit import inherited as inherited
    from bcnet.supernet.measure import measure_network as measure_network
    from bcnet.supernet.onnx_graph import OnnxSupernet as OnnxSupernet
    from bcnet.supernet.paths import cut as cut
    from bcnet.supernet.paths import forward_path as forward_path
    from bcnet.supernet.paths import tensors_of as tensors_of
    from bcnet.supernet.paths import with_state as with_state
    from bcnet.supernet.score import Score as Score
    from bcnet.supernet.score import Scorer as Scorer
    from bcnet.supernet.score import score as score
    from bcnet.supernet.space import Widths as Widths
    from bcnet.supernet.space import WidthSpace as WidthSpace
    from bcnet.supernet.task import Task as Task

_HOME = {
    "Allocation": "bcnet.methods.program",
    "FisherSettings": "bcnet.methods.group_fisher",
    "Inherited": "bcnet.supernet.inherit",
    "LatencyModel": "bcnet.latency_tables.model",
    "LatencyTable": "bcnet.latency_tables.table",
    "Limits": "bcnet.methods.limits",
    "LossTables": "bcnet.methods.loss_tables",
    "OnnxSupernet": "bcnet.supernet.onnx_graph",
    "Original": "bcnet.supernet.inherit",
    "Pruned": "bcnet.methods.group_fisher",
    "Recipe": "bcnet.supernet.fit",
    "Score": "bcnet.supernet.score",
    "Scorer": "bcnet.supernet.score",
    "SearchResult": "bcnet.pipeline.search_evolved",
    "SearchSettings": "bcnet.supernet.evolution",
    "SolverSettings": "bcnet.methods.program",
    "SteadyRecipe": "bcnet.methods.group_fisher",
    "Task": "bcnet.supernet.task",
    "WidthSpace": "bcnet.supernet.space",
    "Widths": "bcnet.supernet.space",
    "allocate_by_scales": "bcnet.methods.adapruner",
    "allocate_exactly": "bcnet.methods.program",
    "allocate_greedily": "bcnet.methods.latency_greedy",
    "allocate_uniformly": "bcnet.methods.uniform",
    "build_lut": "bcnet.pipeline.build_lut",
    "channel_order": "bcnet.supernet.importance",
    "cut": "bcnet.supernet.paths",
    "discover_space": "bcnet.supernet.discover",
    "export": "bcnet.pipeline.export",
    "extracted": "bcnet.supernet.importance",
    "fit_network": "bcnet.supernet.fit",
    "forward_path": "bcnet.supernet.paths",
    "importance_tables": "bcnet.methods.loss_tables",
    "importances": "bcnet.supernet.importance",
    "inherited": "bcnet.supernet.inherit",
    "kept_channels": "bcnet.supernet.importance",
    "load_data": "bcnet.data",
    "load_profile": "bcnet.hw_profiles",
    "loss_tables": "bcnet.methods.loss_tables",
    "measure_network": "bcnet.supernet.measure",
    "measured_importances": "bcnet.supernet.gates",
    "prune_by_group_fisher": "bcnet.methods.group_fisher",
    "reordered": "bcnet.supernet.importance",
    "score": "bcnet.supernet.score",
    "search": "bcnet.pipeline.search_evolved",
    "slice": "bcnet.pipeline.slice",
    "tensors_of": "bcnet.supernet.paths",
    "train": "bcnet.pipeline.train",
    "verify": "bcnet.pipeline.verify",
    "with_state": "bcnet.supernet.paths",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'bcnet' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
