# make quickstart: install and run the whole pipeline on the built-in example.
# make test: every check that CI runs. make test-fast: the tests of single parts, in under three minutes.
# make test-slow: the tests that `make test` leaves out. make docs: the pages of docs/ as a site, in site/.
# make package: a wheel and an sdist in dist/; installs the wheel into an empty environment and runs `bcnet run` there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test test-fast test-slow docs package

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("bcnet needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/bcnet run

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(MAKE) docs
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not slow and not long and not gpu'

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

package: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build
	.ci/try-wheel dist/*.whl
