# Every target makes the virtual environment it needs; requirements.lock says exactly which packages.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test check bench soak clean
.DEFAULT_GOAL := help

help: ## say what there is
	@sed -n 's/^\([a-z]*\):.*## /  make \1  -  /p' Makefile

demo: $(READY) ## the whole loop on real flights, about three minutes; KEEP=1 leaves the endpoint up
	KEEP=$(KEEP) $(BIN)/python examples/demo.py

# Two processes, each test file whole in one of them: a test that starts Ray waits more than it computes. In the order of the folders, as the
# longest files are not those with the most tests. WORKERS=0 runs all in one process.
test: $(READY) ## all tests, in two processes; WORKERS=4 in four
	$(BIN)/python -m pytest -n $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder

check: $(READY) ## lint, format, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## measure, and compare with the goals; QUICK=1 is shorter
	$(BIN)/python bench/run.py $(if $(QUICK),--quick)

soak: $(READY) ## half an hour of kills, upgrades and rollbacks under load, its history checked; MINUTES=5 SEED=1
	$(BIN)/python bench/soak.py --minutes $(or $(MINUTES),30) --seed $(or $(SEED),7)

clean: ## remove what was built here, the virtual environment too
	rm -rf $(VENV) build dist demo demo.json .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache wandb

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "ct needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the packages of requirements.lock; the first time takes some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
