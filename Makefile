# Every target makes .venv when it is missing and says what it runs.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
EXP    ?= exp
# pytest-xdist; tests/conftest.py says how many workers, and which tests stay together.
SIDE_BY_SIDE = -n auto --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast lint bench board clean

help:            ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

quickstart: $(VENV)/installed  ## install, then train a small network on real digits (3 minutes)
	$(BIN)/python main.py

test: $(VENV)/installed-dev    ## all tests, side by side: no GPU, no network
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE)

test-fast: $(VENV)/installed-dev  ## the tests without Ray and subprocesses
	$(BIN)/python -m pytest -q -m "not slow" $(SIDE_BY_SIDE)

lint: $(VENV)/installed-dev    ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/installed-dev   ## the measurements of bench/README.md
	$(BIN)/python -m bench

board: $(VENV)/installed       ## TensorBoard on the experiments, EXP=exp/NAME for one
	$(BIN)/tensorboard --logdir $(EXP)

clean:           ## remove caches (data and experiments stay)
	rm -rf .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else "selfstudy needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.11" % v[:2])'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed pyproject.toml
	$(BIN)/pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $@
