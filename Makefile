# Everything is set up by the targets themselves, in .venv: with uv where it is installed, else with
# venv and pip. Versions are those of constraints.txt.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt
export AGC_ML_REAL_DATA ?= $(abspath ../shared/data)
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Dozens of processes are started; without bytecode, importing costs each of them three times as much.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint clean bench-speed bench-delivery bench-loop bench-soak
.DEFAULT_GOAL := demo

demo: $(VENV)/.for-demo
	$(BIN)/agc-ml measure --pseudodata complete --workers 2 -o runs/demo --overwrite

test: $(VENV)/.for-dev
	@tests/system-parts
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.for-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Of the published models, which are not part of the repository.
bench-speed: $(VENV)/.for-dev
	$(BIN)/python benchmarks/speed.py --models $(AGC_ML_REAL_DATA)

# Of servers that it starts itself: xrootd has to be installed.
bench-delivery: $(VENV)/.for-dev
	@tests/system-parts
	$(BIN)/python benchmarks/delivery.py

# The loop from features to a fit with what was trained on them, and fifty kills of the service.
bench-loop: $(VENV)/.for-dev
	$(BIN)/python benchmarks/loop.py --models $(AGC_ML_REAL_DATA)

# Half an hour of the training service under floods, on loopback.
bench-soak: $(VENV)/.for-dev
	$(BIN)/python benchmarks/soak.py

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.for-demo: $(INPUTS)
	@tests/set-up $(VENV) fit
	@touch $@

$(VENV)/.for-dev: $(INPUTS)
	@tests/set-up $(VENV) dev
	@touch $@ $(VENV)/.for-demo
