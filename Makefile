PYTHON ?= python3
VENV ?= .venv
# The versions that were tested; `make CONSTRAINTS= …` takes the newest that the ranges allow.
CONSTRAINTS ?= -c constraints.txt
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

quickstart: $(VENV)/.installed ## install, and run the whole loop on a small long-tailed data set
	$(BIN)/windrow run quickstart

test: $(VENV)/.installed-dev lint ## lint, types, and all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## remove the environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "windrow needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[dev]'
	touch $@
