"""How weights are trained: learning rate, batches, optimiser, loss. In: a configuration. Out: a `Recipe`.

Digests of all settings that a training depends on tell whether a trained network still fits a configuration.
"""

import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils._pytree import tree_map_only

from bcnet.config import RENAMED_STEPS, Config, SliceConfig, TrainConfig
from bcnet.errors import ConfigError
from bcnet.registry import METHODS, SUPERNETS
from bcnet.runs import digest
from bcnet.space.inputs import arguments
from bcnet.training.task import Task, logits_of
from bcnet.user_code import code_of, import_function


@dataclass(frozen=True)
class Recipe:
    """How weights are trained; `bcnet.toml` documents each field."""

    epochs: int
    learning_rate: float
    optimizer: str = "sgd"
    rate_decay: str = "cosine"
    batch_size: int = 64
    base_batch: int | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    ema: float | None = None
    clip_gradients: float | None = None
    amp: bool = False
    half: torch.dtype = torch.bfloat16  # what `amp` computes in
    device: str = "cpu"
    seed: int = 0
    task: Task = field(default_factory=Task)

    @classmethod
    def of(cls, config: Config, epochs: int, learning_rate: float) -> "Recipe":
        """The recipe of a configuration, with this number of epochs and learning rate."""
        device = training_device(config)
        half = _half_of(device)
        return cls(
            epochs=epochs,
            learning_rate=learning_rate,
            optimizer=config.train.optimizer,
            rate_decay=config.train.rate_decay,
            batch_size=config.train.batch_size,
            base_batch=config.train.base_batch,
            momentum=config.train.momentum,
            weight_decay=config.train.weight_decay,
            warmup_epochs=config.train.warmup_epochs,
            label_smoothing=config.train.label_smoothing,
            ema=config.train.ema,
            clip_gradients=config.train.clip_gradients,
            amp=config.train.amp is not False and half is not None,
            half=half or torch.bfloat16,
            device=device,
            seed=config.seed,
            task=Task.of(config.task),
        )

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The task's loss of a batch, a scalar: by default cross entropy with label smoothing."""
        return self.task.loss_of(outputs, targets, self.label_smoothing)

    def training_loss(
        self, model: Callable[..., Any], inputs: Any, targets: Any, teacher: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """The training loss of a batch, and the outputs of `model`, which is called like the user's module.

        With a `teacher`'s logits (N, C, ...), their probabilities replace the targets. A custom training step
        gives no outputs: None.
        """
        args, kwargs = arguments(inputs)
        with self.autocast():
            if self.task.train_step is not None:
                return self.task.step(model, inputs, targets), None
            outputs = model(*args, **kwargs)
        # Outside of autocast: losses need float32, and not all of PyTorch's support autocast.
        outputs = tree_map_only(Tensor, _single, outputs)
        if teacher is not None:
            return nn.functional.cross_entropy(logits_of(outputs), teacher.softmax(1)), outputs
        return self.loss(outputs, targets), outputs

    def autocast(self) -> torch.autocast:
        """Half precision if `amp` is set."""
        return torch.autocast(self.device, dtype=self.half, enabled=self.amp)

    def scaler(self) -> GradScaler:
        """What scales losses before a backward pass, of a new training; it does nothing but for float16.

        Small gradients would be zero in float16, whose exponent has five bits; bfloat16 has those of float32.
        """
        return GradScaler(self.device, enabled=self.amp and self.half == torch.float16)

    @property
    def bfloat16(self) -> bool:
        """Whether bfloat16 is used, in which networks are scored, too: float16 might overflow there."""
        return self.amp and self.half == torch.bfloat16

    @property
    def highest_rate(self) -> float:
        """The learning rate, scaled with the whole batch where a `base_batch` is given.

        The linear scaling rule (Goyal et al. 2017, arXiv 1706.02677), whatever the number of processes.
        """
        # The quotient of equal sizes is 1, so that the given rate is kept to the last bit.
        return self.learning_rate * (self.batch_size / (self.base_batch or self.batch_size))

    def rate(self, progress: float) -> float:
        """The learning rate after `progress` epochs: linear warm-up, then decay to zero."""
        warmup = min(self.warmup_epochs, self.epochs / 2)
        if progress < warmup:
            return self.highest_rate * (progress + 1e-3) / warmup
        done = (progress - warmup) / max(self.epochs - warmup, 1e-9)
        done = min(1.0, done)
        left = 1 - done if self.rate_decay == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.highest_rate * left


@dataclass(frozen=True)
class Objective:
    """A loss that replaces the recipe's, e.g. distillation (`training/distill.py`).

    `loss(model, inputs, targets, recipe)` is a scalar, `model` the network, or a supernet's path, which is
    called like it; the `recipe` says in which precision. Its own `parameters` are trained with the network's
    and discarded afterwards; `key` is a digest of everything that it depends on.
    """

    loss: Callable[[Any, Any, Any, Recipe], Tensor]
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    key: str = ""


def training_digest(config: Config) -> str:
    """A hash of all settings that the training of one network depends on, except for its device."""
    train = config.train.model_dump(exclude={"train_device", "cuda_graph", "supernets", "teacher"})
    # Steps count by their first names, so that supernets of earlier versions stay valid.
    train["step"] = {new: old for old, new in RENAMED_STEPS.items()}.get(train["step"], train["step"])
    for later in ("ema", "clip_gradients", "base_batch"):  # settings that earlier versions did not have
        if train[later] is None:
            del train[later]
    if train["rate_decay"] == "cosine":
        del train["rate_decay"]
    rule = SUPERNETS[config.train.method]  # settings without effect are left out
    for own in () if rule.free else ("free_offset", "free_sets", "free_random"):
        del train[own]
    del train["draws" if rule.parallel else "parallel"]
    train["amp"] = train["amp"] is not False  # once the default; the precision is chosen for a whole run
    data, task = config.data, config.task
    functions = [_code(name) for name in (data.transforms, data.collate, task.loss, task.train_step)]
    named = ["rate"] if _named_rate(config, config.train) else []
    moves = [data.flip, data.shift] if data.augment == "light" else [data.augment]
    return digest([train, *moves, config.seed, functions, *named])


def fine_tuning_digest(config: Config) -> str:
    """The same for fine-tuning, beside the settings of `slice` themselves."""
    named = "named rate" if _named_rate(config, config.slice) else ""
    return training_digest(config) + named


def _named_rate(config: Config, own: TrainConfig | SliceConfig) -> bool:
    """Whether the rate is given, as its default: for trained weights, another is used where none is given."""
    default = type(own).model_fields["learning_rate"].default
    named = "learning_rate" in own.model_fields_set and own.learning_rate == default
    return named and (config.model.weights is not None or config.search.method not in METHODS.reserved)


def metric_digest(config: Config) -> str:
    """A hash of the metric, on which a supernet does not depend."""
    return digest(_code(config.task.metric))


def _code(name: str | None) -> tuple[str | None, str]:
    """A function's name in bcnet.toml, and its code if it is custom."""
    return name, code_of(import_function(name, ConfigError)) if name and ":" in name else ""


def training_device(config: Config) -> str:
    """cpu or cuda, according to `train_device`; auto uses CUDA if it is available."""
    wanted = config.train.train_device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train_device is cuda, but PyTorch finds no CUDA device; use cpu or auto")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _half_of(device: str) -> torch.dtype | None:
    """The half precision that the device supports natively: bfloat16, or on older GPUs float16; or none."""
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    native = platform.machine() in ("x86_64", "AMD64") and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else None
