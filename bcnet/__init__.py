"""bcnet: put a CNN onto a device inside a latency budget. Names are loaded on first use."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bcnet.allocation.limits import Limits as Limits
    from bcnet.allocation.loss_tables import LossTables as LossTables
    from bcnet.allocation.loss_tables import importance_tables as importance_tables
    from bcnet.allocation.loss_tables import loss_tables as loss_tables
    from bcnet.allocation.problem import AllocationProblem as AllocationProblem
    from bcnet.allocation.problem import PruningProblem as PruningProblem
    from bcnet.allocation.problem import TrainedNetwork as TrainedNetwork
    from bcnet.data.image_data import ImageData as ImageData
    from bcnet.errors import BudgetError as BudgetError
    from bcnet.errors import DataError as DataError
    from bcnet.errors import DeviceError as DeviceError
    from bcnet.errors import NetworkError as NetworkError
    from bcnet.handover import load as load
    from bcnet.hw_profiles import load_profile as load_profile
    from bcnet.latency_tables.model import LatencyModel as LatencyModel
    from bcnet.latency_tables.table import LatencyTable as LatencyTable
    from bcnet.measure.file_timing import TimingReport as TimingReport
    from bcnet.measure.file_timing import TimingSettings as TimingSettings
    from bcnet.measure.file_timing import time_file as time_file
    from bcnet.measure.network_latency import measure_network as measure_network
    from bcnet.methods.adapruner import allocate_by_scales as allocate_by_scales
    from bcnet.methods.group_fisher import FisherSettings as FisherSettings
    from bcnet.methods.group_fisher import Pruned as Pruned
    from bcnet.methods.group_fisher import SteadyRecipe as SteadyRecipe
    from bcnet.methods.group_fisher import prune_by_group_fisher as prune_by_group_fisher
    from bcnet.methods.latency_greedy import allocate_greedily as allocate_greedily
    from bcnet.methods.latency_milp import Allocation as Allocation
    from bcnet.methods.latency_milp import SolverSettings as SolverSettings
    from bcnet.methods.latency_milp import allocate_exactly as allocate_exactly
    from bcnet.methods.uniform import allocate_uniformly as allocate_uniformly
    from bcnet.onnx_export.onnx_supernet import OnnxSupernet as OnnxSupernet
    from bcnet.pipeline.build_lut import build_lut as build_lut
    from bcnet.pipeline.configured_data import load_data as load_data
    from bcnet.pipeline.export import export as export
    from bcnet.pipeline.search_evolved import SearchResult as SearchResult
    from bcnet.pipeline.search_evolved import search as search
    from bcnet.pipeline.slice import slice as slice
    from bcnet.pipeline.train_supernet import train as train
    from bcnet.pipeline.verify import Artifact as Artifact
    from bcnet.pipeline.verify import Expected as Expected
    from bcnet.pipeline.verify import verify as verify
    from bcnet.registry import method as method
    from bcnet.space.channel_rules import ChannelRule as ChannelRule
    from bcnet.space.channel_rules import channel_rule as channel_rule
    from bcnet.space.discover import discover_space as discover_space
    from bcnet.space.extract import tensors_of as tensors_of
    from bcnet.space.extract import with_state as with_state
    from bcnet.space.importance import channel_order as channel_order
    from bcnet.space.importance import importances as importances
    from bcnet.space.importance import kept_channels as kept_channels
    from bcnet.space.importance import reordered as reordered
    from bcnet.space.subnet import Subnet as Subnet
    from bcnet.space.supernet import Supernet as Supernet
    from bcnet.space.supernet import cut as cut
    from bcnet.space.supernet import forward_path as forward_path
    from bcnet.space.width_space import WidthGroup as WidthGroup
    from bcnet.space.width_space import Widths as Widths
    from bcnet.space.width_space import WidthSpace as WidthSpace
    from bcnet.training.gradient_importance import measured_importances as measured_importances
    from bcnet.training.loop import fit_network as fit_network
    from bcnet.training.recipe import Recipe as Recipe
    from bcnet.training.task import Task as Task
    from bcnet.width_search.budget import Budget as Budget
    from bcnet.width_search.evolution import SearchSettings as SearchSettings
    from bcnet.width_search.inherit import Inherited as Inherited
    from bcnet.width_search.inherit import Original as Original
    from bcnet.width_search.inherit import inherited as inherited
    from bcnet.width_search.scorer import Score as Score
    from bcnet.width_search.scorer import Scorer as Scorer
    from bcnet.width_search.scorer import score as score

_HOME = {
    "Allocation": "bcnet.methods.latency_milp",
    "AllocationProblem": "bcnet.allocation.problem",
    "Artifact": "bcnet.pipeline.verify",
    "Budget": "bcnet.width_search.budget",
    "BudgetError": "bcnet.errors",
    "ChannelRule": "bcnet.space.channel_rules",
    "DataError": "bcnet.errors",
    "DeviceError": "bcnet.errors",
    "Expected": "bcnet.pipeline.verify",
    "FisherSettings": "bcnet.methods.group_fisher",
    "ImageData": "bcnet.data.image_data",
    "Inherited": "bcnet.width_search.inherit",
    "LatencyModel": "bcnet.latency_tables.model",
    "LatencyTable": "bcnet.latency_tables.table",
    "Limits": "bcnet.allocation.limits",
    "LossTables": "bcnet.allocation.loss_tables",
    "NetworkError": "bcnet.errors",
    "OnnxSupernet": "bcnet.onnx_export.onnx_supernet",
    "Original": "bcnet.width_search.inherit",
    "Pruned": "bcnet.methods.group_fisher",
    "PruningProblem": "bcnet.allocation.problem",
    "Recipe": "bcnet.training.recipe",
    "Score": "bcnet.width_search.scorer",
    "Scorer": "bcnet.width_search.scorer",
    "SearchResult": "bcnet.pipeline.search_evolved",
    "SearchSettings": "bcnet.width_search.evolution",
    "SolverSettings": "bcnet.methods.latency_milp",
    "SteadyRecipe": "bcnet.methods.group_fisher",
    "Subnet": "bcnet.space.subnet",
    "Supernet": "bcnet.space.supernet",
    "Task": "bcnet.training.task",
    "TimingReport": "bcnet.measure.file_timing",
    "TimingSettings": "bcnet.measure.file_timing",
    "TrainedNetwork": "bcnet.allocation.problem",
    "WidthGroup": "bcnet.space.width_space",
    "WidthSpace": "bcnet.space.width_space",
    "Widths": "bcnet.space.width_space",
    "allocate_by_scales": "bcnet.methods.adapruner",
    "allocate_exactly": "bcnet.methods.latency_milp",
    "allocate_greedily": "bcnet.methods.latency_greedy",
    "allocate_uniformly": "bcnet.methods.uniform",
    "build_lut": "bcnet.pipeline.build_lut",
    "channel_order": "bcnet.space.importance",
    "channel_rule": "bcnet.space.channel_rules",
    "cut": "bcnet.space.supernet",
    "discover_space": "bcnet.space.discover",
    "export": "bcnet.pipeline.export",
    "fit_network": "bcnet.training.loop",
    "forward_path": "bcnet.space.supernet",
    "importance_tables": "bcnet.allocation.loss_tables",
    "importances": "bcnet.space.importance",
    "inherited": "bcnet.width_search.inherit",
    "kept_channels": "bcnet.space.importance",
    "load": "bcnet.handover",
    "load_data": "bcnet.pipeline.configured_data",
    "load_profile": "bcnet.hw_profiles",
    "loss_tables": "bcnet.allocation.loss_tables",
    "measure_network": "bcnet.measure.network_latency",
    "measured_importances": "bcnet.training.gradient_importance",
    "method": "bcnet.registry",
    "prune_by_group_fisher": "bcnet.methods.group_fisher",
    "reordered": "bcnet.space.importance",
    "score": "bcnet.width_search.scorer",
    "search": "bcnet.pipeline.search_evolved",
    "slice": "bcnet.pipeline.slice",
    "tensors_of": "bcnet.space.extract",
    "time_file": "bcnet.measure.file_timing",
    "train": "bcnet.pipeline.train_supernet",
    "verify": "bcnet.pipeline.verify",
    "with_state": "bcnet.space.extract",
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
