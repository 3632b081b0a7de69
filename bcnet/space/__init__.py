"""Which widths a network can have, and which of its tensors a choice of widths takes."""
