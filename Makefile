# make serve: install and serve.  make test: install and run the tests.  make all: what CI runs.
# make faults: all of tests/faults, counted four times as high as in CI (some ten minutes).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: all serve test test-slow faults lint proto format
all: test lint

serve: .venv/served
	$(BIN)/fluxline serve

test: .venv/dev
	$(BIN)/pytest -q -m "not slow and not gpu"

test-slow: .venv/dev
	$(BIN)/pytest -q -m "slow and not soak"

faults: .venv/dev
	FAULTS_SCALE=4 $(BIN)/pytest -q -m slow --timeout=900 tests/faults

lint: .venv/dev
	$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/lint-imports

proto: .venv/dev
	$(BIN)/python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src --grpc_python_out=src src/fluxline/server/rpc/image_gen.proto

format: .venv/dev
	$(BIN)/ruff check --fix && $(BIN)/ruff format

.venv/served: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q -c constraints.txt -e . && touch $@

.venv/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q -c constraints.txt -e ".[dev,training]" && touch $@
