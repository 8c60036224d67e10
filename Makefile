# Everything sets itself up in .venv: only Python 3.11 or later, pip and make are needed.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
USE := $(VENV)/.installed-use
DEVELOP := $(VENV)/.installed-develop
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test check faults format bench clean

help:
	@echo "make demo    the promise, proven: real flights, two workers, one killed half-way"
	@echo "make test    all tests, on a server that they start themselves"
	@echo "make faults  real processes and real faults, and a checker that reads the history; FAULT=F2 SEED=7 plays one"
	@echo "make check   format, lint, types, import layers"
	@echo "make bench   every figure of docs/performance.md, beside a hand-written redis-py loop"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Runnel needs Python 3.11 or later with venv. Set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(USE): $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[fast,embedded,reload,http]'
	@touch $@

$(DEVELOP): $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[test]'
	@touch $@ $(USE)

demo: $(USE)
	$(BIN)/runnel demo

test: $(DEVELOP)
	$(BIN)/pytest $(ARGS)

faults: $(DEVELOP)
	$(BIN)/python -m faults $(FAULT) $(if $(SEED),--seed $(SEED)) $(ARGS)

check: $(DEVELOP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(DEVELOP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(USE)
	$(BIN)/runnel bench --embedded $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
