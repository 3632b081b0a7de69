"""The small network of a run as a PyTorch module. In: a run. Out: a module, or files that make one.

The network is an instance of the user's own class with fewer channels, trained and saved like any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bcnet.config import Config, load_config
from bcnet.errors import ArtifactError, explaining
from bcnet.models import expression
from bcnet.pipeline.finished import PROGRAM, WEIGHTS, sliced_model
from bcnet.pipeline.handover import check_loader, difference, groups_of, handover_files
from bcnet.pipeline.networks import given_model
from bcnet.pipeline.open_problem import open_problem
from bcnet.pipeline.problem import Problem
from bcnet.pipeline.results import SliceSummary
from bcnet.progress import working
from bcnet.run_choice import choose
from bcnet.run_list import require_run
from bcnet.runs import Run, write_files

FOLDER = "network"  # in a run's folder
TOLERANCE = 1e-3  # of outputs: torch.export decomposes operators, and sums in another order


def load(run: str | None = None, config: str | Path | None = None) -> nn.Module:
    """The small network that `bcnet slice` left in a run, in evaluation mode, on the CPU.

    `run` is the name of a run in runs/ (default: as for the commands); `config` is another file than
    bcnet.toml. Parameters need a gradient where they do in the network as it was given. Raises ArtifactError
    where nothing is sliced, or the run is of another network than the configured one.
    """
    file = None if config is None else Path(config)
    choice = choose(load_config(file), run, file, "read")
    require_run(choice.run)
    with choice.run.in_use():
        return Loaded.of(choice.run, choice.config).network


@dataclass(frozen=True)
class Loaded:
    """A run's problem, and the small network that it was sliced to, with the description of its inputs."""

    run: Run
    problem: Problem
    sliced: SliceSummary
    network: nn.Module
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, run: Run, config: Config) -> "Loaded":
        """Load the network of a run. Raises ArtifactError, see `load`."""
        from safetensors import safe_open

        stage = run.stage("slice")
        stage.manifest()
        found = SliceSummary.checked(stage)
        problem = open_problem(config, pixels=False)
        with working("loading the small network"):
            network = sliced_model(run, problem)
            delivered = torch.export.load(stage.path(PROGRAM)).module()
            renewed = f"restore what it was made of, or run `{stage.command}` again"
            with explaining(ArtifactError, f"{stage.path(PROGRAM)} does not run on the data", renewed):
                apart = difference(network, delivered, problem.data.example(1))
            if not apart <= TOLERANCE:
                raise ArtifactError(
                    f"{stage.folder} holds another network than the configured one (its outputs differ): "
                    f"{renewed}"
                )
        with safe_open(stage.path(WEIGHTS), "pt") as file:
            metadata = file.metadata() or {}
        return cls(run, problem, found, network, metadata)

    def write(self, folder: Path) -> "HandedOver":
        """Write the files that make the network without bcnet. Raises ModelError where they would not."""
        problem = self.problem
        config, data = problem.config, problem.data
        given = problem.model if problem.narrow is None else given_model(config, data)
        space = problem.space
        about = {
            "network": config.model.name,
            "groups": groups_of(space, space.check(self.sliced.widths)),
        }
        files = handover_files(given, self.network, about, self.metadata)
        with working("trying the files on a network that is made again"):
            check_loader(files, lambda: given_model(config, data), self.network, data.example(1))
        write_files({folder / name: content for name, content in files.items()})
        line, made = expression(config.model, data.input_shape[0], len(data.classes))
        code = (
            "import sys",
            line,
            f"sys.path.append({str(folder)!r})  # or copy load_network.py into your project",
            "from load_network import load_network",
            f"network = load_network({made}, {str(folder)!r})",
        )
        return HandedOver(str(folder), tuple(str(folder / name) for name in files), self.sliced, code)


@dataclass(frozen=True)
class HandedOver:
    """The files that were written, and the lines of Python that load the network from them."""

    folder: str
    files: tuple[str, ...]
    sliced: SliceSummary
    code: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        own = {"widths": list(self.sliced.widths), "params": self.sliced.params, "macs": self.sliced.macs}
        return {"folder": self.folder, "files": list(self.files), **own, "code": list(self.code)}
