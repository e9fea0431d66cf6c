# `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON := .venv/bin/python
VERBATIM := .venv/bin/verbatim

.PHONY: help setup demo chaos test fuzz bench check clean
help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: ## install what the other targets need (Debian 12, root); quick when it is there already
	@.ci/setup

demo: setup ## agents, servers and a gateway on this machine: what was recorded, searched, replayed (ONCE=1: end by itself)
	@ONCE=$(ONCE) $(PYTHON) -m tests.lab.demo

test: setup ## all tests: units, eBPF, the kernel floor in an emulator, end to end (T='path -k word …': only those)
	@$(PYTHON) -m $(if $(T),pytest $(T),tests.lanes)

bench: setup ## figures beside those of a peer in the same run, also in build/bench.json (ONLY=case: one; about 30 minutes)
	@.ci/peers
	@$(PYTHON) -m tests.bench $(ONLY)

fuzz: setup ## hostile bytes for all that reads captured bytes, half a minute a target (SECONDS=n each, ONLY=target,target)
	@$(PYTHON) -m tests.fuzz run $(if $(SECONDS),--seconds $(SECONDS)) $(if $(ONLY),--only $(ONLY))

chaos: setup ## kill parts at drawn moments while data flows, then compare with a quiet run (SEED=n SECONDS=300)
	@$(PYTHON) -m tests.e2e.chaos $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))

check: setup ## format, lint, types, direction of imports
	@.venv/bin/ruff format --check --quiet . || { echo "make check: run '.venv/bin/ruff format .'" >&2; exit 1; }
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo

clean: ## remove everything that the other targets made, namespaces and pins included
	@[ ! -x $(PYTHON) ] || $(PYTHON) -m tests.lab clean
	@rm -rf .venv .cache build dist *.egg-info tests/lab/idp/node_modules .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find appliance api tests -name __pycache__ -type d -prune -exec rm -rf {} +
