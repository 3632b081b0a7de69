"""Which widths are best: scores of subnets, evolution, and bounds on what they cost."""
