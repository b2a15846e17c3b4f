# make serve: install and serve.  make test: install and run the tests.  make all: what CI runs.
# make faults: all of tests/faults, counted four times as high as in CI (some ten minutes).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: all serve test test-slow faults lint format
all: test lint test-slow

serve: .venv/served
	$(BIN)/fluxline serve
test: .venv/dev
	$(BIN)/pytest -q -n auto --maxprocesses=8 -m "not slow and not gpu"
test-slow: .venv/dev
	$(BIN)/pytest -q -n auto --maxprocesses=2 --dist=loadfile -m "slow and not soak"
faults: .venv/dev
	FAULTS_SCALE=4 $(BIN)/pytest -q -m slow --timeout=900 tests/faults
lint: .venv/dev
	$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/lint-imports
format: .venv/dev
	$(BIN)/ruff check --fix && $(BIN)/ruff format

.venv/served: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q -c constraints.txt -e . && touch $@
.venv/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q -c constraints.txt -e ".[dev,training]" && touch $@
