"""How far a file's outputs are from PyTorch's. In: outputs of both, by batches. Out: the largest error."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bcnet.errors import CheckFailed


class Differences:
    """How far a file's outputs are from PyTorch's, over all batches that were added."""

    def __init__(self) -> None:
        self.finite = True
        self._largest: dict[int, tuple[float, float]] = {}  # output -> its largest difference and value
        self._agreed = self._answers = 0
        self._images: list[Tensor] = []  # the largest difference of each image, in the first output

    def add(self, outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """Add a batch: outputs, and those expected. Raises CheckFailed if their shapes differ."""
        shapes, wanted = ([tuple(tensor.shape) for tensor in side] for side in (outputs, expected))
        if shapes != wanted:
            raise CheckFailed(f"the exported file gives outputs of {shapes}, PyTorch of {wanted}")
        for number, (output, reference) in enumerate(zip(outputs, expected, strict=True)):
            if not output.numel():
                continue
            self.finite = self.finite and bool(output.isfinite().all())
            before = self._largest.get(number, (0.0, 0.0))
            # In double precision, which also holds integers and the largest floats.
            found = (output.double() - reference.double()).abs().max(), reference.double().abs().max()
            self._largest[number] = max(before[0], float(found[0])), max(before[1], float(found[1]))
        if outputs and outputs[0].ndim > 1 and outputs[0].numel():
            apart = (outputs[0].double() - expected[0].double()).abs()
            self._images.append(apart.flatten(1).amax(1))
            same = outputs[0].argmax(1) == expected[0].argmax(1)
            self._agreed += int(same.sum())
            self._answers += same.numel()

    @property
    def relative(self) -> float:
        """The largest difference, relative to the output's largest value, over all outputs."""
        return max((error / max(size, 1e-12) for error, size in self._largest.values()), default=0.0)

    @property
    def typical(self) -> float:
        """The same for the median image, in the first output.

        In a network that takes signs, a sum that rounding moves across a threshold changes a single image.
        """
        if not self._images:
            return self.relative
        return float(torch.cat(self._images).median()) / max(self._largest[0][1], 1e-12)

    @property
    def agreement(self) -> float:
        """The share of predictions (largest value along axis 1 of the first output) that agree."""
        return self._agreed / self._answers if self._answers else 1.0
