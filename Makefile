# `make` prints what there is; CI and people call the same targets.
.DEFAULT_GOAL := help
.PHONY: help setup demo up down test test-fast lint format bench load clean
PYTHON ?= python3
PROJECT ?= examples.flights
BIN := .venv/bin
STAMP := .venv/.installed

help: ## print the targets
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"Toque needs Python 3.11 to 3.13, {sys.executable} is {sys.version.split()[0]}; run make PYTHON=python3.12" if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,examples]'
	@touch $@

setup: $(STAMP) ## create .venv and install everything into it

demo: $(STAMP) ## the whole kitchen on real flights, about five minutes
	@TOQUE_PROJECT=$(PROJECT) $(BIN)/python -m ray_apps.cli demo

up: $(STAMP) ## start Redis, Ray and the serving counter on this machine
	@TOQUE_PROJECT=$(PROJECT) $(BIN)/python -m ray_apps.cli up

down: ## end all that `make up` or `make demo` started
	@test ! -x $(BIN)/python || $(BIN)/python -m ray_apps.cli down

test: $(STAMP) ## the whole test suite
	$(BIN)/python -m pytest

test-fast: $(STAMP) ## the tests that take no cluster and no patience
	$(BIN)/python -m pytest -m "not slow and not ray"

lint: $(STAMP) ## ruff, mypy strict, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## every benchmark in load/, each with its ratio to a peer or floor
	@set -e; for bench in load/bench_*.py; do echo "== $$bench"; $(BIN)/python -m load.$$(basename $$bench .py); done

load: $(STAMP) ## locust against the running counter; exit code 1 when the SLO is missed
	@$(BIN)/python -m load.run

clean: down ## remove what was built and stored here (.venv stays)
	rm -rf .toque build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
