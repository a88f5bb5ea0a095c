# make run: install, and run the pipeline on the embedded model.  make test: install, and run the tests.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),--compile,--no-compile)

.DEFAULT_GOAL := run
.PHONY: run install test test-all campaign check audit bench bench-gpu bench-large pretrain clean docs

run: $(INSTALLED)
	$(BIN)/factsmith run

install: $(INSTALLED)

# Each process imports everything and starts servers of its own, so that more than cores cost more than they gain.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Also the slow tests, which repeat in every case what others show in one.
test-all: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'slow or not slow'

# Random kills, damage, faults and changed files, for MINUTES minutes each, with counts at the end.
MINUTES ?= 10
campaign: $(INSTALLED)
	FACTSMITH_CAMPAIGN=$(MINUTES) $(BIN)/python -m pytest tests/campaigns -m slow --capture=no

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities of the versions that were tested. It asks PyPI.
audit: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip-audit
	$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip

# The site, in build/docs. Warnings are errors, and it needs no network.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx --quiet -W --keep-going docs build/docs

bench: $(INSTALLED)
	$(BIN)/python benchmarks/floors.py
	$(BIN)/python benchmarks/low_rank.py factors
	$(BIN)/python benchmarks/low_rank.py
	$(BIN)/python benchmarks/startup.py

# BENCH holds the arguments, such as BENCH='--shape llama-3-8b --seconds 400'.
bench-gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py $(BENCH)

bench-large: $(INSTALLED)
	$(BIN)/python benchmarks/large.py

pretrain: $(INSTALLED)
	$(BIN)/factsmith pretrain

clean:
	rm -rf $(VENV) build dist *.egg-info

# constraints.txt holds the versions that were tested. On Linux, PyPI's torch brings several gigabytes of CUDA. The
# README shows how to install the CPU build first. Pip would compile every module, which takes longer than the rest.
# Python compiles those that it imports, and keeps what it compiled unless PYTHONDONTWRITEBYTECODE forbids it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Factsmith needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(COMPILE) --constraint constraints.txt --editable '.[dev]'
	touch $@
