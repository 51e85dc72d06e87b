# From a fresh clone: `make demo` runs the main job, `make test` runs every check. `make help` lists the rest.
# Choose another Python (3.11 or newer) with `make demo PYTHON=/path/to/python3.12`.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
DEMO ?= examples/recipes/recipe.yaml

# The first Python that is new enough and can make virtual environments; the versions in constraints.txt were tested
# with 3.11, so that one is asked first. Looked for only when there is no environment yet.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

# Test files run side by side, each process with one thread of its own. WORKERS=0 runs them one after another, as a single
# GPU wants it.
WORKERS ?= 2

# Installing again is needed only when one of these changes; the stamps in the environment remember it.
PINS := pyproject.toml constraints.txt
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed
BENCH := $(VENV)/.bench-installed

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: install
install: $(CORE) ## make the environment and install Tunesmith into it

.PHONY: demo
demo: $(CORE) ## run the main job on the embedded base; prints the report's path at the end
	$(BIN)/tunesmith run $(DEMO)

.PHONY: test
test: lint pytest ## everything that must hold: style, types and the whole test suite

.PHONY: lint style types
lint: style types ## ruff (lint and format) and mypy
style: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: $(DEV)
	$(BIN)/mypy

.PHONY: pytest
pytest: $(DEV) ## the test suite alone; more options with ARGS="-k name"
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -ra -n $(WORKERS) --dist loadfile $(ARGS)

.PHONY: bench
bench: $(BENCH) ## every script in benchmarks/, each writes its own results (long)
	set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python $$script; done

.PHONY: accept
accept: export TUNESMITH_LONG := 1
accept: test bench ## the long acceptance: test, bench, and every example from its rows to its report
	rm -rf build/accept
	$(BIN)/python examples/sql/make_base.py
	set -e; for recipe in examples/*/recipe.yaml examples/sql/tutorial-*.yaml; do \
		run=build/accept/$$(basename $$(dirname $$recipe))-$$(basename $$recipe .yaml); \
		$(BIN)/tunesmith run $$recipe --out $$run; \
		test -s $$run/report.html; \
	done

.PHONY: docs
docs: $(CORE) ## write docs/recipe.md from the recipe's own fields
	$(BIN)/tunesmith recipe docs > docs/recipe.md.new
	mv docs/recipe.md.new docs/recipe.md

.PHONY: clean
clean: ## remove caches and build products; runs and the environment stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## clean, and remove the environment too
	rm -rf $(VENV)

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo "No Python 3.11 or newer with venv was found. Install one (on Debian: apt install python3-venv)," >&2; \
		echo "or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the packages after it then find it installed and choose no other build of it.
$(CORE): $(PINS) | $(BIN)/python
	$(PIP) torch
	$(PIP) -e '.[serve]'
	@touch $@

$(DEV): $(CORE)
	$(PIP) -e '.[dev,pandas,serve,onnx,openvino,gguf,search]'
	@touch $@

$(BENCH): $(DEV)
	$(PIP) -e '.[bench]'
	@touch $@
