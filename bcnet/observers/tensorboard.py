"""TensorBoard: losses, rates and accuracies as scalars. In: events. Out: runs/NAME/tensorboard/."""

from typing import Any

from bcnet.observers import Event, Followed, figures, imported, observer


class TensorBoard:
    """Writes the figures of events that have a step to one folder per command."""

    def __init__(self, followed: Followed) -> None:
        tensorboard = imported("torch.utils.tensorboard", "tensorboard", "tensorboard")
        self._writer: Any = tensorboard.SummaryWriter(followed.folder / "tensorboard" / followed.command)

    def __call__(self, event: Event) -> None:
        """Add the figures of an event that has a step, as an epoch or a generation."""
        step = event.values.get("step")
        if step is None:
            return
        for name, value in figures(event).items():
            self._writer.add_scalar(name, value, step, event.at)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


@observer("tensorboard", "scalars for TensorBoard in `runs/NAME/tensorboard/`")
def tensorboard(followed: Followed) -> TensorBoard:
    """One for a command."""
    return TensorBoard(followed)
