"""The networks that fine-tuning starts from. In: a row, a budget. Out: tensors, and where they come from.

Widths of this package's methods are saved in `allocations.jsonl`, networks of other libraries and of methods
that train in `starts/`: both depend on measurements, and a stopped arena continues with what it had found.
One process finds them (`found`); then any process can make a starting network from them (`of`). All rows may
use the whole budget, without a margin, as measured alternately with the original.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bcnet.bench.arena_rows import Row
from bcnet.bench.arena_search import searched_widths
from bcnet.bench.arena_supernet import trained_supernet
from bcnet.bench.kept import Kept
from bcnet.bench.outside import COMPETITORS
from bcnet.bench.outside_job import Failed, Job, NotInstalled
from bcnet.errors import FOREIGN, ArtifactError, BcnetError, BudgetError, one_line
from bcnet.latency_tables.model import LatencyModel
from bcnet.measure.network_latency import measure_network
from bcnet.methods.uniform import allocate_uniformly
from bcnet.onnx_export.onnx_supernet import to_onnx
from bcnet.pipeline.alternating import ALTERNATIONS
from bcnet.pipeline.importance_file import importances_of
from bcnet.pipeline.original import trained_state
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.pruned import PrunedNetworks
from bcnet.pipeline.search_inputs import measuring
from bcnet.pipeline.search_trained import Proposals, best_measured
from bcnet.pipeline.search_trials import tried
from bcnet.pipeline.trained_scores import TrainedScores
from bcnet.pipeline.tuning import Tuning
from bcnet.progress import say
from bcnet.runs import Run, write_file
from bcnet.sealed import seal_tensors, unseal_tensors
from bcnet.space.extract import tensors_of, with_state
from bcnet.space.importance import CRITERIA, Criterion, Importances
from bcnet.space.inputs import arguments
from bcnet.space.subnet import State, Subnet
from bcnet.space.supernet import Supernet, cut
from bcnet.space.width_space import Widths
from bcnet.training.recipe import Recipe
from bcnet.width_search.budget import Budget
from bcnet.width_search.inherit import Inherited, Original, inherited
from bcnet.width_search.scorer import best_first

RECALIBRATED = "recalibrated"  # of a start: batch norms were recalibrated
QUICK, THOROUGH = 0.1, 0.5  # of the profile's duration, for one measurement


@dataclass(frozen=True)
class Start:
    """A small network's tensors, and as JSON values: its widths, latencies when it was found, its source."""

    state: State
    about: dict[str, Any]


def slug(*words: str) -> str:
    """A file name made of a row's words."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def percent(share: float) -> str:
    """A budget as the command line takes it."""
    return f"{100 * share:.10g}%"


class Starts:
    """The starts of all rows on one trained network. Raises where its device cannot measure."""

    def __init__(self, run: Run, problem: Problem, original: nn.Module, folder: Path, inputs: str) -> None:
        self.problem, self.space, self.folder, self.inputs = problem, problem.space, folder, inputs
        self.run = run
        self.original = original
        self.recipe = Recipe.of(problem.config, epochs=1, learning_rate=1.0)
        self._tensors = trained_state(run, problem)
        self._scores: dict[float, TrainedScores] = {}  # of the current budget
        self._known: dict[float, dict[Any, Inherited]] = {}  # of the current budget
        self._allocations = Kept(folder / "allocations.jsonl", inputs, lambda value: isinstance(value, dict))
        images = problem.config.search.recalibration_images
        self._inherit = Original(original, self.space, problem.data, self.recipe, images)

    @cached_property
    def latency(self) -> LatencyModel:
        """The table's predictions."""
        return self.problem.table.latency_model()

    @cached_property
    def _full(self) -> bytes:
        return self.problem.graph.variant(self.space.original())

    def found(self, row: Row, share: float) -> dict[str, Any]:
        """What a row's starting networks at a budget are made from: found once, and saved.

        Raises BudgetError where the method cannot reach the budget, NotInstalled or Failed for a competitor,
        Failed where the row takes more passes before fine-tuning than there are.
        """
        if row.outside:
            return self._outside(row.method, share).about
        self._check_passes(row)
        if row.searched:
            problem, method = self.problem, row.method
            found = searched_widths(self.run, problem, method, percent(share), self.folder)
        else:
            found = self._allocated(row, share)
        if row.supernet_passes:
            self._supernet(row.supernet_passes)
        elif not (row.scratch or row.pruned):
            _ = self._importances  # saved, so that all processes use the same
        return found

    def of(self, row: Row, share: float, seed: int, found: Mapping[str, Any]) -> Start:
        """A row's starting network at a budget, made from what was found; `seed` is for fresh weights.

        Raises Failed where there are no fresh weights.
        """
        if row.outside:
            return self._outside(row.method, share)
        about = dict(found)
        widths = self.space.check(Widths(about["widths"]))
        if row.scratch:
            fresh = self.problem.fresh
            if not fresh.from_scratch:
                raise Failed(f"cannot be trained from scratch: {fresh.note}")
            config = self.problem.config.model_copy(update={"seed": seed})
            network = cut(replace(self.problem, config=config).fresh_model(), self.space, widths)
            source = "; ".join(filter(None, ("from scratch", fresh.note)))
            return Start(tensors_of(network), {**about, "source": source})
        if row.pruned:
            pruned = self._pruned(row, share).found[widths]
            return Start(pruned.state, {**about, "source": pruned.source})
        if row.supernet_passes:
            own = self._of_supernet(widths, row.supernet_passes)
            return Start(own.state, {**about, "source": own.source, "supernet_passes": row.supernet_passes})
        own = self._inherited(widths, share, row.criteria)
        return Start(own.state, {**about, "source": own.source})

    def _check_passes(self, row: Row) -> None:
        config = self.problem.config
        before = config.search.prune_epochs if row.pruned else row.supernet_passes
        if before > config.slice.epochs:
            raise Failed(
                f"it needs {before} passes before fine-tuning, and every network gets {config.slice.epochs} "
                "in all (slice.epochs)"
            )

    def _allocated(self, row: Row, share: float) -> dict[str, Any]:
        key = f"{percent(share)} {row.allocation}"
        pruned = self._pruned(row, share) if row.pruned else None
        known = self._allocations.values.get(key)
        if known is not None and (pruned is None or Widths(known["widths"]) in pruned.found):
            return dict(known)
        start, original = time.perf_counter(), self.space.original()
        budget = Budget(share * float(self.latency(original)), share)
        proposals = Proposals(row.methods, self._scores_at(share), self.latency, (), pruned)
        search = self.problem.config.search
        measured = best_measured(proposals, budget, original, measuring(self.problem), search.measured)
        winner = measured.inside[0]
        if len(row.methods) > 1 and search.trials:  # as in a search with several methods
            tuning = Tuning.of(self.run, self.problem, self._importances, {})
            winner = tried(proposals, measured, tuning)
        found = winner.candidate
        about = {
            "widths": list(found.widths),
            "found_by": proposals.origin[found.widths],
            "predicted_ms": round(found.predicted_ms, 5),
            "measured_ms": found.measured.median_ms if found.measured else None,
            "original_ms": round(measured.budget_ms / share, 5),
            "note": measured.note,
            "allocation_s": round(time.perf_counter() - start, 1),
            **({"pruning_passes": pruned.found[found.widths].passes} if pruned else {}),
        }
        self._allocations.add(key, about)
        return about

    def _of_supernet(self, widths: Widths, passes: int) -> Inherited:
        """The better side of a supernet, recalibrated; fine-tuning is shorter by the supernet's passes."""
        supernet = self._supernet(passes)
        space = supernet.space
        found = [
            self._inherit.scored(
                f"the {side} side of a supernet trained for {passes} of the passes",
                supernet.narrow(Subnet.at(space, widths, side)).state,
            )
            for side in space.rule.sides
        ]
        return min(found, key=lambda own: best_first(own.score))

    def _supernet(self, passes: int) -> Supernet:
        return trained_supernet(self.problem, passes, self.folder / "starts", self.inputs)

    def _pruned(self, row: Row, share: float) -> PrunedNetworks:
        """The networks of a method that trains; its passes are subtracted from those of fine-tuning."""
        config = self.problem.config
        folder = self.folder / "starts" / slug(percent(share), row.allocation)
        inputs = {"inputs": self.inputs, "distilled": str(row.distilled)}
        search = config.search.model_copy(update={"prune_by": row.prune_by})
        problem = replace(self.problem, config=config.model_copy(update={"search": search}))
        return PrunedNetworks(row.methods[0], problem, self.original, folder, inputs, distilled=row.distilled)

    def _scores_at(self, share: float) -> TrainedScores:
        """Scores on the trained network, its channels in the order that is best at this budget."""
        if share not in self._scores:
            path = self.folder / "scores.jsonl"
            inputs = {"inputs": self.inputs}
            scores = TrainedScores(self.problem, self._tensors, path, inputs, self._importances)
            scores.choose_criterion(self._typical(share))
            self._scores = {share: scores}
        return self._scores[share]

    def _typical(self, share: float) -> Widths:
        """Uniform widths of the budget; each group's middle choice where these cannot reach it."""
        limit = share * float(self.latency(self.space.original()))
        try:
            return allocate_uniformly(self.space, (), self.latency, limit)
        except BudgetError:
            return Widths(group.choices[len(group.choices) // 2] for group in self.space.groups)

    def _inherited(self, widths: Widths, share: float, criteria: tuple[Criterion, ...]) -> Inherited:
        if share not in self._known:
            self._known = {share: {}}
        known, key = self._known[share], (widths, criteria)
        if key not in known:
            importances = self._importances
            own: Importances = {by: importances[by] for by in criteria}
            known[key] = inherited(self._inherit, widths, own, iterative=criteria == CRITERIA)[0]
        return known[key]

    @cached_property
    def _importances(self) -> Importances:
        return importances_of(self.run, self.problem, self.original)

    def _outside(self, method: str, share: float) -> Start:
        path = self.folder / "starts" / f"{slug(percent(share), method)}.safetensors"
        known = self._saved(path)
        if known is not None:
            return known
        start = time.perf_counter()
        model = with_state(self.problem.model, self.space, tensors_of(self.original)).eval()
        config = self.problem.config
        job = Job(
            model,
            self.problem.data.example(1),
            lambda network, thorough: self._share(network, THOROUGH if thorough else QUICK),
            share,
            self.problem.data,
            self.recipe,
            config.space.channel_multiple or self.problem.profile.channel_multiple,
        )
        try:
            pruned = COMPETITORS[method](job).eval()
            state = _on_cpu(tensors_of(pruned))
            self._check(state, pruned)
            state = _on_cpu(self._inherit.recalibrated(state).state)  # as for all rows that inherit
        except BcnetError:
            raise
        except ImportError as cause:
            raise NotInstalled(f"not installed completely: {one_line(cause)}") from None
        except FOREIGN as cause:
            raise Failed(f"failed on this network: {one_line(cause)}") from cause
        own_ms, original_ms = self._beside(self._exported(pruned), THOROUGH)
        widths = self._widths(state)
        about = {
            "widths": None if widths is None else list(widths),
            "found_by": method,
            "predicted_ms": None,
            "measured_ms": own_ms,
            "original_ms": original_ms,
            "note": "",
            "source": method,
            RECALIBRATED: True,
            "allocation_s": round(time.perf_counter() - start, 1),
        }
        write_file(path, seal_tensors(state, {"inputs": self.inputs, "about": about}))
        return Start(state, about)

    def _saved(self, path: Path) -> Start | None:
        if not path.exists():
            return None
        try:
            state, found = unseal_tensors(path)
        except ValueError as cause:
            raise ArtifactError(f"{path} cannot be read ({cause}); delete it to make it again") from None
        if found.get("inputs") != self.inputs or not found["about"].get(RECALIBRATED):
            say(f"{path} belongs to other settings: it is made again")
            return None
        return Start(state, dict(found["about"]))

    def _check(self, state: State, pruned: nn.Module) -> None:
        """Raise Failed unless the original's modules with these tensors compute the pruned network."""
        args, kwargs = arguments(self.problem.data.example(2))
        again = with_state(self.problem.model, self.space, state).eval()
        with torch.no_grad():
            own, rebuilt = pruned(*args, **kwargs), again(*args, **kwargs)
        if isinstance(own, Tensor) and not torch.allclose(own, rebuilt, rtol=1e-3, atol=1e-4):
            raise Failed(
                "its network differs from the original by more than narrower tensors, which is not supported"
            )

    def _widths(self, state: Mapping[str, Tensor]) -> Widths | None:
        """The space's widths that a network has; None where it is narrowed in other ways."""
        space, shapes = self.space.without_extra(), {name: tuple(t.shape) for name, t in state.items()}
        widths = Widths(space.widths_of(shapes))
        if min(widths, default=0) < 1 or any(
            width % g.unit for width, g in zip(widths, space.groups, strict=True)
        ):
            return None
        fits = all(
            space.shape(name, widths) == shape for name, shape in shapes.items() if name in space.shapes
        )
        return widths if fits else None

    def _exported(self, network: nn.Module) -> bytes:
        """A network's ONNX file to be timed: sliced from the full network's where that is possible."""
        widths = self._widths(tensors_of(network))
        if widths is not None:
            return self.problem.graph.variant(widths)
        proto = to_onnx(network.eval(), self.problem.data.example(self.problem.profile.batch))
        return bytes(self.problem.at_precision(proto).SerializeToString())

    def _share(self, network: nn.Module, duration: float) -> float:
        own, original = self._beside(self._exported(network), duration)
        return own / original

    def _beside(self, content: bytes, duration: float) -> tuple[float, float]:
        """The lowest of alternating measurements of a network and of the original, in ms."""
        files: list[tuple[int, bytes]] = [(0, content), (1, self._full)]
        found: tuple[list[float], list[float]] = ([], [])
        for number in range(ALTERNATIONS if duration > QUICK else 1):
            for place, file in files[:: -1 if number % 2 else 1]:
                own = measure_network(file, self.problem.profile, duration, quiet=True)
                found[place].append(own.median_ms)
        return min(found[0]), min(found[1])


def _on_cpu(state: Mapping[str, Tensor]) -> State:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def counts(problem: Problem, network: nn.Module) -> dict[str, int]:
    """Parameters, and multiply-accumulates an image in the convolutions and linear layers of the space."""
    shapes = {name: tensor.shape for name, tensor in tensors_of(network).items()}
    macs = sum(shapes[layer.weight].numel() * layer.positions for layer in problem.space.layers)
    return {"params": sum(p.numel() for p in network.parameters()), "macs": macs}
