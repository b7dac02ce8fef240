# Every developer command of Kindling. `make` prints this list; only `setup/host.sh` needs root.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell test -x /usr/bin/python3 && echo /usr/bin/python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.locked
# `make test` sets COVERAGE: the stages then add up, in .coverage, which lines of agent/ they ran.
PYTEST := $(BIN)/$(if $(COVERAGE),coverage run --append,python) -m pytest -q

# What is compiled, laid out like the tree, and the tests of it.
COMPILED := build/compiled
COMPILED_TESTS := tests/conformance tests/unit/test_contract* \
  tests/unit/test_keeping.py tests/unit/test_metering.py tests/unit/test_pool.py \
  $(addprefix tests/component/test_,$(addsuffix .py,adoption compiled gateway_* gives_way job_runs preparing target* unread))

.PHONY: help demo test test-vm check unit component conformance compiled integration bench profile proto fmt lock install images software setup undo clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: ## set the host up, start the agent, deploy and call one function per contract
	@setup/demo.sh

test: ## the same set-up, then everything there is: checks, unit, component, conformance, integration
	@setup/test.sh

check: $(STAMP) ## formatting, lint, types, import rules, scripts; no root, no containerd, under a minute
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/style

unit: $(STAMP) ## the rules: no loop, no files
	@$(PYTEST) tests/unit

component: $(STAMP) ## one door at a time
	@$(PYTEST) tests/component

conformance: $(STAMP) ## golden transcripts, one per documented behaviour of a platform
	@$(PYTEST) tests/conformance

compiled: $(STAMP) ## compile what a warm call touches, and run the tests of it in that form
	@rm -rf $(COMPILED) && mkdir -p $(COMPILED) && cp -r agent $(COMPILED)
	@$(BIN)/python setup/compile.py . $(COMPILED) /usr/lib/kindling/compiled build/compiled-kept
	@KINDLING_TEST_FORM=compiled $(BIN)/python -m pytest -q --import-mode=append \
	  -o pythonpath="$(COMPILED) ." -o cache_dir=build/pytest_cache $(COMPILED_TESTS)

integration: $(STAMP) images software ## the real containerd, netlink, cgroups and storage (root, host set up)
	@$(BIN)/python -m pytest -q tests/integration

test-vm: ## what depends on kernel and cgroups, in a machine of Debian 13 (root, qemu; TESTS="…")
	@tests/vm/run.sh $(TESTS)

bench: $(STAMP) ## starts, warm path, density and pulls against peers, 15 minutes (root; ARGS=--quick: 3)
	@$(BIN)/python -m bench $(ARGS)

profile: $(STAMP) ## where the warm path spends its time (nginx and wrk, as setup/host.sh --dev brings)
	@$(BIN)/python -m bench.profile

proto: $(STAMP) ## generate agent/_pb from proto/
	@$(BIN)/python proto/generate.py

fmt: $(STAMP) ## format and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: ## pin the dependencies anew
	@setup/lock.sh

install: ## (re)install the agent below /usr/lib/kindling (root; KINDLING_COMPILED=0: plain Python)
	@setup/install.sh

images: ## build the sample images from the host's own packages
	@$(PYTHON) images/build.py

software: ## build images of other people's software for the tests, from Debian, Python and npm packages
	@$(PYTHON) images/software.py

setup: ## prepare this host (root); see setup/host.sh --help
	@setup/host.sh --dev

undo: ## take everything back that setup did (root)
	@setup/host.sh --undo

clean: ## remove what make made in this directory
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache images/.cache bench/out .coverage

$(STAMP): requirements-dev.lock
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@
