"""The stages, in the order in which they run: train, build_lut, search, slice, export, compare.

Each file has a core function named like the file, free of files and flags, and `run(run, config)`, which
loads, calls and saves.
"""
