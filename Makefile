# Two commands for users: `make demo` and `make test`. Both do all their own set-up in .venv.
PYTHON ?= python3
# `TORCH=torch==2.13.0 make test` installs that build first (a CPU wheel, say); empty means: let pip choose.
TORCH ?=
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint tables clean

demo: $(VENV)/.base
	$(BIN)/pyro-vae demo

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --doctest-modules pyro_vae tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The README tables, made anew from benchmarks/results/*.json.
tables: $(VENV)/.dev
	$(BIN)/python benchmarks/tables.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(BIN)/python setup.cfg
	$(if $(TORCH),$(BIN)/pip install -q "$(TORCH)")
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install -q -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info runs
