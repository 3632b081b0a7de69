"""Which test images an exported network classifies correctly. In: its outputs and targets. Out: `Answers`.

Kept beside an export, so that two runs are compared image by image.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bcnet.data.image_data import ImageData
from bcnet.data.splits import Split
from bcnet.pipeline.results import Answers
from bcnet.training.task import Task, logits_of
from bcnet.width_search.temperature import are_classes

FILE = "answers.json"
Correct = NDArray[np.bool_]  # (N,), for each test image whether its class is predicted correctly


class Answered:
    """Passes batches of (outputs, targets) on, and keeps which images are classified correctly."""

    def __init__(self, task: Task, data: ImageData) -> None:
        self._by_class, self._data = task.metric is None, data
        self._correct: list[Correct] = []
        self._targets = hashlib.sha256()

    def seen(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """The same batches."""
        for outputs, targets in batches:
            if self._by_class and are_classes(targets):
                self._correct.append((logits_of(outputs).argmax(1) == targets).numpy())
                self._targets.update(targets.to(torch.int64).numpy().tobytes())
            yield outputs, targets

    @property
    def correct(self) -> Correct | None:
        """None where the metric is not accuracy, or targets are not classes."""
        found = np.concatenate(self._correct) if self._correct else np.zeros(0, dtype=bool)
        return found if len(found) == len(self._data.test) else None

    @property
    def answers(self) -> Answers | None:
        """The same, to be stored with what identifies the test images."""
        correct, test = self.correct, self._data.test
        if correct is None:
            return None
        named = self._targets.copy()
        named.update("\0".join(test.names if isinstance(test, Split) else ()).encode())
        sources = sources_of(self._data)
        return Answers(
            test=named.hexdigest()[:16],
            images=len(correct),
            correct=np.packbits(correct).tobytes().hex(),
            sources=None if sources is None else tuple(np.unique(sources, return_inverse=True)[1].tolist()),
        )


def sources_of(data: ImageData) -> NDArray[np.int64] | None:
    """The source that each test image is made from; None where all are independent."""
    test = data.test
    return test.sources.numpy() if isinstance(test, Split) and test.sources is not None else None


def correct_of(answers: Answers) -> Correct:
    """Which images were classified correctly. Raises ValueError for another number of bits."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(answers.correct), np.uint8))
    if not answers.images <= len(bits) < answers.images + 8:
        raise ValueError(f"{len(bits)} answers of {answers.images} images")
    return bits[: answers.images].astype(bool)
