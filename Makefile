# make demo and make test set everything up on a Debian or Ubuntu machine with Python and a C compiler.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
TYPES := build/types

.PHONY: help setup demo test test-heavy lint tools clean

help: ## list what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-12s %s\n", $$1, $$2 }'

setup: $(STAMP) ## create .venv with edgec in it, or bring it up to date

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "edgec needs Python 3.10 to 3.13; install one and name it: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing; run: sudo apt-get install python3-venv"; exit 1; }
	@echo "setting up $(VENV) with edgec and what it needs, some 1.5 GB: minutes, depending on the network"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## compile the sample model, run it on real input, show sizes, speed and agreement
	@$(VENV)/bin/python samples/demo.py

test: tools lint ## check style and types, and run all tests but the heavy ones
	$(VENV)/bin/python -m pytest -m "not heavy" -n 2 --dist loadfile

test-heavy: tools $(STAMP) ## run the tests that take minutes each
	$(VENV)/bin/python -m pytest -m heavy

# mypy finds modules by their folders only, so it is shown the packages where pyproject.toml maps them
lint: $(STAMP) ## check style and types
	$(VENV)/bin/python -m ruff check .
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/edgec
	@ln -s $(CURDIR)/edgec/* $(CURDIR)/passes $(CURDIR)/runtimes $(CURDIR)/targets $(TYPES)/edgec/
	cd $(TYPES) && $(CURDIR)/$(VENV)/bin/python -m mypy --config-file $(CURDIR)/pyproject.toml

tools:
	@.ci/install-tools

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
