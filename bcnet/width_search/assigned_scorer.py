"""Score widths that can take several sets of channels by the best one, chosen on other images.

In: supernets with `assignments`, widths. Out: the mean of the supernets' scores. Of several assignments, the
one with the lowest loss on one half of the validation images is scored on the other half: the lowest of
several losses on the same images would be biased low, most of all for widths with many assignments.
"""

from collections.abc import Sequence
from dataclasses import replace

from bcnet.data.image_data import ImageData
from bcnet.data.kept_batches import KEPT_BYTES, KeptBatches
from bcnet.data.splits import shared_out
from bcnet.space.subnet import Subnet
from bcnet.space.supernet import Supernet
from bcnet.space.width_space import Widths
from bcnet.training.task import Task
from bcnet.width_search.scorer import Scorer, SupernetSide, best_first, score_of


class AssignedScorer(Scorer):
    """Scores widths by the best of `assignments.scored` assignments, always the same ones."""

    def __init__(
        self,
        supernets: Sequence[Supernet],
        data: ImageData,
        images: int,
        task: Task | None = None,
        *,
        amp: bool = False,
        shared: bool = False,
    ) -> None:
        assert supernets[0].assignments is not None
        self._assignments = supernets[0].assignments
        choosing, judging = shared_out(data.val, 2)
        super().__init__(supernets, replace(data, val=judging), images, task, amp=amp, shared=shared)
        self._choosing = KeptBatches(data, choosing, KEPT_BYTES // 2, str(self._device))

    def subnet(self, side: SupernetSide, widths: Widths) -> Subnet:
        """The best assignment of these widths; all sides choose among the same ones."""
        offered = self._assignments.of(self.space, widths, self._assignments.scored, *widths)
        if len(offered) == 1:
            return offered[0]
        scores = [
            score_of(self.predicted(self.recalibrated(side, own), self._choosing), self.task)
            for own in offered
        ]
        return offered[min(range(len(offered)), key=lambda place: best_first(scores[place]))]
