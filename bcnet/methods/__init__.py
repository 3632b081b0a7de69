"""How many channels each group keeps, and which, from a trained network: a published method is a file."""
