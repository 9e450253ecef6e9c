# Each target sets itself up: a virtual environment with pinned versions, made once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# How pytest uses the cores. In one process, to use a debugger for example: make test WORKERS=0
WORKERS ?= logical
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# Threads that wait by spinning slow each other down by several times on a shared machine.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo setup test test-unit test-slow coverage check lint format-check types imports docs format clean

demo: $(READY)
	$(BIN)/python scripts/demo.py

setup: $(READY)

test: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST)

test-unit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m unit

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

coverage: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST) --cov

check: lint format-check types imports

lint: $(READY)
	$(BIN)/ruff check .

format-check: $(READY)
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports --no-logo

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs site

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
		"sepstop needs Python 3.11 or newer; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@
