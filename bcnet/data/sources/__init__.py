"""Where data comes from: a source is a file."""
