# The two commands of the README: `make quickstart` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup quickstart test test-long test-endurance test-faults lint docs ship
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked dependencies (see README.md for sizes)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	touch $@

quickstart: setup
	$(BIN)/nnit run configs/quickstart.yaml

test: setup
	$(BIN)/python -m pytest -m "not long and not endurance" --durations=10

test-long: setup
	$(BIN)/python -m pytest -m long --durations=10

test-endurance: setup
	$(BIN)/python -m pytest -m endurance

# Ten times in a row; stops at the first failure.
test-faults: setup
	for round in 1 2 3 4 5 6 7 8 9 10; do \
		$(BIN)/python -m pytest -m fault -x --durations=0 --durations-min=1 || exit 1; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of README.md and docs/, in site/. Any warning is an error. The variable silences a note that
# Material for MkDocs ends in May 2027.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Put the artifacts of a finished run into the package: make ship RUN=runs/pushcube
# (with STATES= without the states that its hypernetwork learned on, which `nnit bench` wants)
STATES := align/states-*-$$(ls align/round-*.pt | sort -V | tail -n 1 | tr -dc 0-9).safetensors
SHIPPED := population/zoo population/trials/*/progress.json align/ghn.safetensors align/distillation-*.safetensors train/nnit.safetensors \
	evaluate/results.json evaluate/results.parquet evaluate/*/episodes {population,align,train,evaluate}/manifest.json
ship: SHELL := bash
ship:
	rm -rf nnit_dist/pretrained/$(notdir $(RUN))
	mkdir -p nnit_dist/pretrained/$(notdir $(RUN))
	cd $(RUN) && cp --parents -r $(SHIPPED) $(STATES) $(CURDIR)/nnit_dist/pretrained/$(notdir $(RUN))
