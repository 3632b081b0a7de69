"""The commands of `bcnet` beside those of the pipeline's stages: a group of commands is a file."""
