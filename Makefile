# Few verbs. `make demo` on a fresh machine is all it takes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LINKS  := .mypy_cache/installed/archipelago
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all style types clean

help:
	@echo "make setup   create .venv with the tested versions (quick when done)"
	@echo "make demo    learn the embedded stream on a local Ray; args: make demo ARGS='training.steps=100'"
	@echo "make test    the tests but the slow ones; a part: make test ARGS=tests/unit"
	@echo "make test-all  these, then the slow ones: kills, several nodes, whole jobs"
	@echo "make style   lint, format check, types"
	@echo "make clean   remove caches and demo runs; keeps .venv"

setup: $(STAMP)

# torch first: what depends on it then finds the tested build in place.
$(STAMP): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch torchvision
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python -m archipelago.jobs.demo $(ARGS)

# Two at a time: most of the running system's tests wait for Ray's processes. Slow files come first.
test: setup
	$(PYTEST) -m "not slow" $(ARGS)

# One at a time: each starts a Ray of its own, and two of them are too much for two cores.
test-all: test
	$(BIN)/python -m pytest -m slow $(ARGS)

style: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy knows packages by their folders: links show it what an installation looks like.
types: setup
	mkdir -p $(LINKS)
	ln -sfn $(addprefix $(CURDIR)/,archipelago/__init__.py archipelago/cli.py pipeline actors jobs) $(LINKS)
	$(BIN)/mypy

clean:
	rm -rf runs/demo build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
