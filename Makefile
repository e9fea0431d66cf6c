# `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON := .venv/bin/python
VERBATIM := .venv/bin/verbatim

.PHONY: help setup demo test check clean
help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: ## install what the other targets need (Debian 12, root); quick when it is there already
	@.ci/setup

demo: setup ## agents, servers and a gateway on this machine: what was recorded, searched, replayed (ONCE=1: end by itself)
	@ONCE=$(ONCE) $(PYTHON) -m tests.lab.demo

test: setup ## all tests: units, eBPF, the kernel floor in an emulator, end to end (T=path: only those)
	@$(PYTHON) -m pytest $(T)

check: setup ## format, lint, types, direction of imports
	@.venv/bin/ruff format --check --quiet . || { echo "make check: run '.venv/bin/ruff format .'" >&2; exit 1; }
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo

clean: ## remove everything that the other targets made, namespaces and pins included
	@[ ! -x $(PYTHON) ] || $(PYTHON) -m tests.lab clean
	@rm -rf .venv .cache build dist *.egg-info tests/lab/idp/node_modules .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find appliance api tests -name __pycache__ -type d -prune -exec rm -rf {} +
