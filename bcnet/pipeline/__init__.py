"""The stages, in the order in which they run: train, build_lut, search, slice, export, compare.

Each file has a core function named like the file, free of files and flags, and `run(run, problem)`, which
calls it and saves what `results` has a model for. Commands open the problem once: see `open_problem.py`.
"""
