# Each target sets itself up: a virtual environment with pinned versions, made once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.ready-demo
# How pytest uses the cores. In one process, to use a debugger for example: make test WORKERS=0
WORKERS ?= logical
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# Threads that wait by spinning slow each other down by several times on a shared machine.
export OMP_WAIT_POLICY ?= passive

# What is tried with the lowest versions: the README, and each way in.
LOWEST_TESTS := tests/test_readme.py tests/callbacks/test_trainer.py tests/callbacks/test_lightning.py \
	tests/runs/test_select.py tests/cli/test_select_command.py tests/report/test_html.py

.PHONY: demo setup test test-unit test-slow test-lowest coverage package docs check lint format-check \
	types imports format clean

# The demo needs none of the developers' packages.
demo: $(if $(wildcard $(READY)),$(READY),$(DEMO_READY))
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

# The wheel and the sdist, as on the package index; the wheel is installed alone and tried.
package: $(READY)
	rm -rf dist build $(VENV)-package
	$(BIN)/python -m build
	$(PYTHON) -m venv $(VENV)-package
	$(VENV)-package/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	$(VENV)-package/bin/python scripts/check_package.py

# With the lowest versions that pyproject.toml admits; of torch, the pinned one.
test-lowest: $(READY)
	rm -rf $(VENV)-lowest
	$(PYTHON) -m venv $(VENV)-lowest
	$(BIN)/python scripts/lowest.py > $(VENV)-lowest/lowest.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/lowest.txt \
		--editable '.[lightning,peft,plot,report]' pytest hypothesis tensorboard
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -W default --disable-warnings $(LOWEST_TESTS)

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
	rm -rf $(VENV) $(VENV)-package $(VENV)-lowest build dist runs site

# install EXTRA,WHAT IT IS: into the virtual environment.
define install
@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	"sepstop needs Python 3.11 or newer; name one with: make PYTHON=python3.12")'
@echo "First, $(2) are installed into $(VENV); this takes a few minutes, once."
$(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$(1)]'
@touch $@
endef

$(READY): pyproject.toml constraints.txt
	$(call install,dev,the developers' 180 packages (2.8 GB))

$(DEMO_READY): pyproject.toml constraints.txt
	$(call install,demo,the demo's 75 packages (1.9 GB))
