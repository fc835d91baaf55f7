# Two commands for users: `make demo` and `make test`. Both do all their own set-up in .venv.
PYTHON ?= python3
# `TORCH=torch==2.13.0 make test` installs that build (a CPU wheel, say); empty means: let pip choose.
TORCH ?=
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1
# Bytecode is written where a module is first imported: pip would compile all of torch, most of it for nothing.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test pytest oldest cuda lint tables docs links clean

demo: $(VENV)/.base
	$(BIN)/pyro-vae demo

# The types take one core for as long as the tests need to be collected on both.
test: $(VENV)/.dev
	@$(MAKE) --no-print-directory -j 2 lint pytest

pytest: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --doctest-modules pyro_vae tests

# What hangs on a release of PyTorch (graphs, private names, Adam), on the oldest that setup.cfg allows.
# pip takes gigabytes of CUDA for it.
OLDEST := $(shell sed -n 's/^ *torch>=//p' setup.cfg).0
oldest:
	@$(MAKE) --no-print-directory VENV=.venv-oldest TORCH=torch==$(OLDEST) .venv-oldest/.dev
	.venv-oldest/bin/python -m pytest -n $(WORKERS) --dist worksteal \
		tests/test_torch_private.py tests/test_contract.py tests/inference/graphs tests/training/test_adam.py

# The tests that take a device on a GPU, and the table of speed there. Without a GPU: one line, no skips.
cuda: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests --device cuda
	$(BIN)/python -m benchmarks.speed --device cuda

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tables and the chart of speed, made anew from benchmarks/results/*.json.
tables: $(VENV)/.dev
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/front_page.py

# The site, in docs/_build/html. A warning is an error: a docstring that does not render, a page that
# no page lists, a link within the site that leads nowhere.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

# Links to other sites, over the network.
links: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/linkcheck

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One call each: pip resolves, and builds the project, once a call.
$(VENV)/.base: $(BIN)/python setup.cfg
	$(BIN)/pip install -q --no-compile $(if $(TORCH),"$(TORCH)") -e ".[cli,data]"
	touch $@

$(VENV)/.dev: $(BIN)/python setup.cfg
	$(BIN)/pip install -q --no-compile $(if $(TORCH),"$(TORCH)") -e ".[test]"
	touch $(VENV)/.base $@

$(VENV)/.docs: $(BIN)/python setup.cfg
	$(BIN)/pip install -q $(if $(TORCH),"$(TORCH)") -e ".[docs]"
	touch $(VENV)/.base $@

clean:
	rm -rf $(VENV) build docs/_build *.egg-info runs
