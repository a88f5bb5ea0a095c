# make run: set everything up and run the pipeline on the model that ships.  make test: set up and test.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := run
.PHONY: run test test-all check bench bench-large pretrain clean

run: $(INSTALLED)
	$(BIN)/factsmith run

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Those too that show in every case, by minutes, what others show in one.
test-all: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'slow or not slow'

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/floors.py
	$(BIN)/python benchmarks/low_rank.py

bench-large: $(INSTALLED)
	$(BIN)/python benchmarks/large.py

pretrain: $(INSTALLED)
	$(BIN)/factsmith pretrain

clean:
	rm -rf $(VENV) build dist *.egg-info

# The exact set that was tested. On Linux, PyPI's torch brings several gigabytes of CUDA; the README tells how to
# install its CPU build first.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Factsmith needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
