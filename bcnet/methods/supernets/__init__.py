"""Which channels of a supernet a width takes: a published method is a file."""
