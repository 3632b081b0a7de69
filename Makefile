# make quickstart: install and run the whole pipeline on the built-in example.
# make test: what each change must pass. make test-fast: the tests of single parts, in under three minutes.
# make test-slow: the tests that `make test` leaves out. make docs: the pages of docs/ as a site, in site/.
# make arm-root: makes an aarch64 board that is emulated, for tests/arm (as root, on Debian); make arm-pythons: Python 3.6
# and 3.8 there, from python.org or from archives (make arm-pythons ARM_PYTHONS="Python-3.6.9.tar.xz ...").
# make notebook: executes the notebook of the documentation, on a quiet machine, and keeps its outputs.
# make wheel: a wheel and an sdist in dist/, and a brief `bcnet run` with the wheel and only what it requires.
# make package: the same in an environment that pip installs the wheel into, and the whole `bcnet run`.
# make oldest: the tests that depend most on PyTorch, and a brief `bcnet run`, with the oldest PyTorch that is allowed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARM_PYTHONS ?= 3.6.9 3.8.10
INSTALLED := $(VENV)/.installed
# Containers often ask Python to keep nothing of what it compiles. Then each of the many processes that the tests
# start compiles PyTorch again, for eight seconds.
unexport PYTHONDONTWRITEBYTECODE
OLDEST := build/oldest-torch
# What depends on PyTorch's tracing, operators, exporters and files.
OLDEST_TESTS := $(patsubst %,tests/%.py, \
  $(addprefix space/test_,trace_rules hard_layers channel_rules subnet supernet widen) \
  $(addprefix training/test_,loop supernet_step distill checkpoints) \
  $(addprefix onnx_export/test_,exportable quick_export fp16) width_search/test_inherit)

.PHONY: quickstart test lint tests test-fast test-slow docs notebook wheel package arm-root arm-pythons oldest oldest-tests oldest-run

# pip would compile every file, one after the other; Python compiles what is imported.
$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("bcnet needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev,docs]'
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/bcnet run

# The tests take two cores most of the time; all else is done beside them, one after the other.
test: $(INSTALLED)
	$(MAKE) --jobs 2 tests lint docs wheel

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

tests: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not slow and not long and not gpu'

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

arm-root: $(INSTALLED)
	PYTHON=$(BIN)/python tests/arm/make_root build/arm

arm-pythons: arm-root
	PYTHON=$(BIN)/python tests/arm/make_python build/arm $(ARM_PYTHONS)

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebook: $(INSTALLED)
	$(BIN)/python .ci/notebook

wheel: $(INSTALLED)
	rm -rf dist build/environment
	$(BIN)/python -m build > /dev/null
	$(BIN)/python .ci/linked-environment dist/*.whl build/environment
	.ci/try-pipeline build/environment --brief

package: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build > /dev/null
	.ci/try-wheel dist/*.whl

$(OLDEST)/.installed: pyproject.toml .ci/oldest-torch
	rm -rf $(OLDEST)
	.ci/oldest-torch $(OLDEST)
	touch $@

oldest: $(OLDEST)/.installed
	test -e dist/*.whl || $(MAKE) wheel
	$(OLDEST)/bin/python -m pip install --quiet --no-deps --force-reinstall dist/*.whl
	$(MAKE) --jobs 2 oldest-tests oldest-run

oldest-tests:
	$(OLDEST)/bin/python -m pytest $(OLDEST_TESTS)

oldest-run:
	.ci/try-pipeline $(OLDEST) --brief
