# make demo: set up, train, evaluate, serve and query, in a few minutes.   make test: set up and test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test check claims lock clean

help: ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(READY) ## make .venv and install everything in it, pinned by constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(not ok)' || \
	  { echo "hfa needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $$($(PYTHON) -V); try: make PYTHON=python3.11" >&2; exit 2; }
	@echo "==> Setting up $(VENV) (two to four minutes the first time)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt --editable '.[dev]'
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true # on all cores, pip on one; some files are templates
	@touch $(READY)

demo: $(READY) ## train HFA and SimpleMind, evaluate both, serve them, send signed requests
	@$(BIN)/python -m experiments.quickstart

test: $(READY) ## run the tests
	@echo "==> Testing"
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: $(READY) ## format, lint, types and the direction of imports
	@echo "==> Checking"
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@out=$$($(BIN)/lint-imports 2>&1) || { echo "$$out"; exit 1; }

claims: $(READY) ## hold every figure of every document to the results it was read from
	@$(BIN)/python -m experiments.claims

lock: $(READY) ## write constraints.txt anew from what is installed
	@{ echo "# What \`make setup\` installs, pinned; written by \`make lock\`."; \
	   $(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//'; } > constraints.txt

clean: ## remove what was built and run here
	rm -rf $(VENV) outputs multirun .hfa .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
